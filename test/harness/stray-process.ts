/** A process that does what a worker's does with errors nobody caught: runs tools that leave some, and prints what came of each. */

import { EventEmitter } from "node:events";
import { AgentHarness, defineTool, memoryLog } from "@drover/harness";
import { strayOwner } from "@drover/harness/worker";
import type { Model } from "@drover/llm";
import { z } from "zod";

const unowned: string[] = [];
for (const event of ["uncaughtException", "unhandledRejection"] as const)
  process.on(event, (thrown: unknown) => {
    const owner = strayOwner();
    if (owner) owner.fail(thrown);
    else unowned.push(String(thrown));
  });

const never = () => new Promise(() => {});
const leaves: Record<string, () => unknown> = {
  rejection: () => {
    void Promise.reject(new Error("left"));
    return never();
  },
  timer: () => {
    setTimeout(() => {
      throw new Error("left");
    }, 1);
    return never();
  },
  emitter: () => {
    setImmediate(() => new EventEmitter().emit("error", new Error("left")));
    return never();
  },
  nested: async () => {
    void (async () => {
      await new Promise((resolve) => setTimeout(resolve, 1));
      throw new Error("left");
    })();
    await never();
  },
  late: () => {
    setTimeout(() => {
      throw new Error("left late");
    }, 1);
    return "fine";
  },
  neighbour: () => new Promise((resolve) => setTimeout(() => resolve("fine"), 50)),
};

const results: Record<string, unknown> = {};
await Promise.all(
  Object.entries(leaves).map(async ([name, execute]) => {
    let asked = 0;
    const model: Model = {
      id: "own/model",
      async call() {
        const calls = asked++ === 0 ? [{ id: "c", name, input: {} }] : [];
        const content = calls.map(({ id }) => ({
          type: "tool-call" as const,
          toolCallId: id,
          toolName: name,
          input: {},
        }));
        return {
          ok: true,
          text: calls.length > 0 ? "" : "Done.",
          toolCalls: calls,
          messages: calls.length > 0 ? [{ role: "assistant", content }] : [],
          finishReason: "stop",
          usage: { input: 1, output: 1, cached: 0 },
          costNanos: 0,
        };
      },
    };
    const base = { description: name, input: z.object({}), permission: "read", effect: "pure" } as const;
    const harness = new AgentHarness({
      tools: [defineTool({ ...base, name, execute: execute as never })],
      models: { custom: { "own/model": model } },
      model: "own/model",
      env: {},
    });
    const { tool_calls, status } = await harness.run("Do it.", { log: memoryLog() });
    results[name] = [status, tool_calls[0]?.status, tool_calls[0]?.output];
  }),
);
await new Promise((resolve) => setTimeout(resolve, 20));
console.log(JSON.stringify({ results, unowned }));
