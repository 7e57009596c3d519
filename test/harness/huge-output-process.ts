/** A process whose tools return far more than its heap holds as JSON. Says of each what came of it, and how often others had their turn meanwhile. */
import { AgentHarness, defineTool, memoryArtifacts, memoryLog } from "@drover/harness";
import type { Model } from "@drover/llm";
import { z } from "zod";

const megabyte = 2 ** 20;
const huge: Record<string, () => unknown> = {
  "the same string": () => new Array(2000).fill("x".repeat(megabyte)),
  buffer: () => ({ content: Buffer.alloc(300 * megabyte) }),
  bytes: () => [new Uint8Array(300 * megabyte)],
  holes: () => new Array(4_000_000_000),
  "a text": () => "é".repeat(100 * megabyte),
};
let ticks = 0;
const tick = () => {
  ticks++;
  next = setImmediate(tick);
};
let next = setImmediate(tick);
let returnedAt = 0;
const tools = Object.entries(huge).map(([what, make]) =>
  defineTool({
    name: what.replaceAll(" ", "_"),
    description: `Returns ${what}.`,
    input: z.object({}),
    permission: "read",
    effect: "pure",
    execute() {
      const output = make();
      returnedAt = ticks;
      return output;
    },
  }),
);
for (const [index, what] of Object.keys(huge).entries()) {
  const log = memoryLog();
  const harness = new AgentHarness({
    env: {},
    model: "huge/huge",
    tools,
    artifacts: memoryArtifacts(),
    models: { custom: { "huge/huge": caller(tools[index]!.name) } },
  });
  await harness.run("Do it.", { log });
  const [result] = (await log.read()).flatMap((event) => (event.type === "tool.result" ? [event.data] : []));
  console.log(JSON.stringify({ what, status: result!.status, artifact: result!.artifact, ticks: ticks - returnedAt }));
}
clearImmediate(next);

/** A model that calls one tool, once. */
function caller(name: string): Model {
  return {
    id: "huge/huge",
    worstCaseNanos: () => 0,
    async call({ messages }) {
      const called = messages.some(({ role }) => role === "tool");
      const toolCalls = called ? [] : [{ id: "call", name, input: {} }];
      const content = toolCalls.map(({ id, name, input }) => ({
        type: "tool-call" as const,
        toolCallId: id,
        toolName: name,
        input,
      }));
      return {
        ok: true,
        text: called ? "Done." : "",
        toolCalls,
        messages: [{ role: "assistant", content: called ? "Done." : content }],
        finishReason: called ? "stop" : "tool-calls",
        usage: { input: 1, output: 1, cached: 0 },
        costNanos: 0,
      };
    },
  };
}
