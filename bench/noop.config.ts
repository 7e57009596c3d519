/** A three-step agent that does nothing: model, tool, model, in no time. What is measured is Drover, not a provider. */
import { defineConfig, defineTool } from "@drover/harness";
import type { Model, ModelReply } from "@drover/llm";
import { z } from "zod";

const text = "y".repeat(200);

const noop: Model = {
  id: "noop/noop",
  async call({ messages }) {
    const last = messages.at(-1)!.role === "tool";
    const toolCalls = last ? [] : [{ id: "call_1", name: "nothing", input: {} }];
    const content = [
      { type: "text" as const, text },
      ...toolCalls.map(({ id, name, input }) => ({
        type: "tool-call" as const,
        toolCallId: id,
        toolName: name,
        input,
      })),
    ];
    const reply: ModelReply = {
      ok: true,
      text,
      toolCalls,
      messages: [{ role: "assistant", content }],
      finishReason: last ? "stop" : "tool-calls",
      usage: { input: 100, output: 20, cached: 0 },
      costNanos: 0,
    };
    return reply;
  },
};

/** A model that is never done: what a worker holds while it waits. */
const never: Model = {
  id: "noop/never",
  call: (_request, { signal }) =>
    new Promise((resolve) => {
      signal.addEventListener("abort", () =>
        resolve({ ok: false, code: "aborted", retryable: false, message: "aborted", text: "" }),
      );
    }),
};

export default defineConfig({
  tools: [
    defineTool({
      name: "nothing",
      description: "Does nothing.",
      input: z.object({}),
      permission: "read",
      effect: "pure",
      execute: () => "done",
    }),
  ],
  models: { custom: { "noop/noop": noop, "noop/never": never } },
});
