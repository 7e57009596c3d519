/** Labels have configured names only: what clients and models make up adds no series. */
import type { Observation } from "@drover/runs";
import { metricsText } from "@drover/telemetry";
import { expect, test } from "vitest";
import { runCounter } from "../../apps/worker/src/observe.ts";

const names = {
  agents: new Set(["default"]),
  models: new Set(["openai/gpt-5", "openai/*", "demo/demo"]),
  tools: new Set(["calculate"]),
};
const count = runCounter(names);
const usage = { input: 1, output: 1, cached: 0 };
const told = (model: string, tool: string, agent: string) => {
  const logged = (event: object) => count({ type: "logged", run: {}, event } as unknown as Observation);
  const call = { model, usage, cost_usd: 0.1, duration_ms: 1 };
  logged({ type: "model.call", data: call });
  logged({ type: "model.call", data: { ...call, cost_usd: null } });
  logged({ type: "model.failed", data: { model, retry_in_ms: null, usage, cost_usd: null } });
  logged({ type: "tool.result", data: { tool_name: tool, status: "denied", duration_ms: 1 } });
  count({ type: "claimed", run: { epoch: 1, agent, waitedMs: 1 } } as unknown as Observation);
  count({ type: "ended", moved: { agent, status: "failed", stopReason: "model_error" } } as unknown as Observation);
};
const series = async () => (await metricsText()).split("\n").filter((line) => line.startsWith("drover_")).length;

test("hundreds of made-up names are `other`", async () => {
  told("openai/gpt-5", "calculate", "default");
  told("openai/first", "first", "first");
  told("nobody/first", "first", "first");
  const before = await series();
  for (let n = 0; n < 300; n++) told(`openai/made-up-${n}`, `tool-${n}`, `agent-${n}`);
  for (let n = 0; n < 300; n++) told(`nobody-${n}/x`, `tool-${n}`, `agent-${n}`);
  expect(await series()).toBe(before);
  const text = await metricsText();
  expect(text).not.toMatch(/made-up|tool-\d|agent-\d|nobody-\d/);
  for (const label of [
    'model="openai/gpt-5"',
    'model="openai/other"',
    'model="other"',
    'tool="calculate"',
    'tool="other"',
    'agent="other"',
  ])
    expect(text).toContain(label);
});
