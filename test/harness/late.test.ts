/** What answers after it was given up: the run is over it, its answer is dropped, and that is counted. */
import { type AnyTool, type NewEvent, type RunInput, ToolRegistry } from "@drover/harness";
import { fold, type LoopOptions, noBudget, RunControl, runLoop } from "@drover/harness/worker";
import type { Model, ModelResult } from "@drover/llm";
import { expect, it } from "vitest";
import { tool } from "./scripted.ts";

const input: RunInput = {
  query: "Do it.",
  agent: "default",
  max_iterations: 5,
  limits: { soft_seconds: 60, hard_seconds: 60 },
  retry: { max_attempts: 1, backoff_ms: 0, max_backoff_ms: 0 },
};
const said = (text: string, call?: string): ModelResult => ({
  ok: true,
  text,
  toolCalls: call ? [{ id: "c", name: call, input: {} }] : [],
  messages: [],
  finishReason: "stop",
  usage: { input: 1, output: 1, cached: 0 },
  costNanos: 0,
});

/** One run in this process, and what it counts as late. */
function run(tools: AnyTool[], call: Model["call"]) {
  const late: unknown[] = [];
  const events: NewEvent[] = [{ type: "run.queued", data: input }];
  const control = new RunControl();
  const options: LoopOptions = {
    runId: "r",
    tenant: "t",
    workspace: "/nowhere",
    agentName: "default",
    agent: {},
    policies: [],
    approvals: { expiresAfterMs: 1000, onExpiry: "reject" },
    asking: "park",
    budget: noBudget,
    onBudget: "stop",
    model: { id: "my/model", call },
    toolbox: new ToolRegistry(tools).boxFor("default", {}),
    state: fold(events),
    control,
    append: async (event) => void events.push(event),
    onLate: (what) => late.push(what),
  };
  return { late, events, control, done: runLoop(options) };
}

/** A model that calls the tool once. */
const caller = (name: string): Model["call"] => {
  let calls = 0;
  return async () => (calls++ === 0 ? said("", name) : said("Done."));
};
const turns = async () => {
  for (let n = 0; n < 3; n++) await new Promise(setImmediate);
};

it.each<[string, (answer: PromiseWithResolvers<unknown>) => void, number]>([
  ["returns", ({ resolve }) => resolve("too late"), 1],
  ["fails", ({ reject }) => reject(new Error("too late")), 1],
  ["says that it was aborted", ({ reject }) => reject(new DOMException("aborted", "AbortError")), 0],
  ["never settles", () => {}, 0],
])("a tool that ignores its signal and %s later", async (_what, settle, counted) => {
  const answer = Promise.withResolvers<unknown>();
  const { late, events, done } = run([tool("slow", () => answer.promise, { timeoutMs: 20 })], caller("slow"));
  expect(await done).toMatchObject({ status: "completed" });
  expect(late).toEqual([]);
  const before = structuredClone(events);
  settle(answer);
  await turns();
  expect(late).toEqual(Array.from({ length: counted }, () => ({ tool: "slow" })));
  expect(events).toEqual(before);
});

it("a tool that ends with its signal's own reason, or in time, is not late", async () => {
  const heeding = tool(
    "slow",
    (_input, { signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason))),
    { timeoutMs: 20 },
  );
  for (const one of [heeding, tool("slow", () => "in time")]) {
    const { late, done } = run([one], caller("slow"));
    await done;
    await turns();
    expect(late).toEqual([]);
  }
});

it("a tool that settles after its run was stopped", async () => {
  const answer = Promise.withResolvers<unknown>();
  const begun = Promise.withResolvers<void>();
  const slow = tool("slow", () => {
    begun.resolve();
    return answer.promise;
  });
  const { late, control, done } = run([slow], caller("slow"));
  await begun.promise;
  control.stop("cancelled");
  expect(await done).toMatchObject({ status: "cancelled" });
  answer.resolve("too late");
  await turns();
  expect(late).toEqual([{ tool: "slow" }]);
});

it.each<[string, ModelResult | Error, number]>([
  ["answers", said("too late"), 1],
  ["says that it was aborted", { ok: false, code: "aborted", retryable: false, message: "", text: "" }, 0],
  ["throws", new Error("too late"), 0],
])("a model that ignores its signal and %s later", async (_what, result, counted) => {
  const answer = Promise.withResolvers<ModelResult>();
  const called = Promise.withResolvers<void>();
  const { late, events, control, done } = run([], () => {
    called.resolve();
    return answer.promise;
  });
  await called.promise;
  control.stop("cancelled");
  expect(await done).toMatchObject({ status: "cancelled" });
  const before = structuredClone(events);
  if (result instanceof Error) answer.reject(result);
  else answer.resolve(result);
  await turns();
  expect(late).toEqual(Array.from({ length: counted }, () => ({ model: "my/model" })));
  expect(events).toEqual(before);
});
