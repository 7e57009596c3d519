import { createEgress } from "@drover/egress";
import { ToolRegistry } from "@drover/harness";
import { builtinTools } from "@drover/tools";
import { describe, expect, it, onTestFinished } from "vitest";
import { waitTool } from "../../packages/tools/src/wait.ts";
import { callTool } from "./call.ts";

describe("wait", () => {
  it("ends at once when the run stops, before and while it waits", async () => {
    const reason = new Error("cancelled");
    const stopped = callTool(waitTool, { seconds: 3600 }, { signal: AbortSignal.abort(reason) });
    await expect(stopped).rejects.toMatchObject({ name: "AbortError", cause: reason });
    const controller = new AbortController();
    const waiting = callTool(waitTool, { seconds: 3600 }, { signal: controller.signal });
    controller.abort(reason);
    await expect(waiting).rejects.toMatchObject({ name: "AbortError", cause: reason });
  });

  it("takes 0 to 3600 seconds, and its own limit leaves room for them", async () => {
    for (const seconds of [-1, 3601, Number.NaN, "1"]) await expect(callTool(waitTool, { seconds })).rejects.toThrow();
    expect(await callTool(waitTool, { seconds: 0 })).toEqual({ waited_seconds: 0 });
    expect(await callTool(waitTool, { seconds: 0.01 })).toEqual({ waited_seconds: 0.01 });
    expect(waitTool.timeoutMs).toBeGreaterThan(3_600_000);
  });
});

describe("builtinTools", () => {
  it("are five pure reads whose every field is described to the model", () => {
    const egress = createEgress();
    onTestFinished(() => egress.close());
    const tools = builtinTools({ egress });
    expect(tools.map(({ name }) => name)).toEqual(["calculate", "file_read", "file_list", "http_get", "wait"]);
    const registry = new ToolRegistry();
    for (const tool of tools) {
      expect([tool.permission, tool.effect]).toEqual(["read", "pure"]);
      registry.register(tool);
    }
    const specs = registry.boxFor("default", {}).specs;
    for (const { name, inputSchema } of specs) {
      const { properties } = inputSchema as { properties: Record<string, { description?: string }> };
      for (const [field, { description }] of Object.entries(properties)) {
        expect(description, `${name}.${field}`).toBeTruthy();
      }
    }
  });
});
