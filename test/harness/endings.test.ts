/** How replies end, what is made of it, and what is booked for calls that do not end well: with a model of the test's own. */
import type { HarnessConfig, RunOptions } from "@drover/harness";
import { AgentHarness } from "@drover/harness";
import type { Model, ModelMessage, ModelRequest, ModelResult } from "@drover/llm";
import { describe, expect, it } from "vitest";
import { eventsOf, openLog, tool } from "./scripted.ts";

type Answer = ModelResult | ((request: ModelRequest) => ModelResult | Promise<ModelResult>);
const usage = { input: 1000, output: 100, cached: 0 };
const says = (text: string, finishReason = "stop", more: Partial<ModelResult & { ok: true }> = {}): ModelResult => ({
  ok: true,
  text,
  toolCalls: [],
  messages: text === "" ? [] : [{ role: "assistant", content: [{ type: "text", text }] }],
  finishReason,
  usage,
  costNanos: 1_000_000,
  ...more,
});
const calls = (...names: string[]): ModelResult => {
  const toolCalls = names.map((name, n) => ({ id: `c${n}`, name, input: {} }));
  const content = toolCalls.map(({ id, name, input }) => ({
    type: "tool-call" as const,
    toolCallId: id,
    toolName: name,
    input,
  }));
  return says("", "tool-calls", { toolCalls, messages: [{ role: "assistant", content }] });
};
const fails = (more: Partial<ModelResult & { ok: false }> = {}): ModelResult => ({
  ok: false,
  code: "model_error",
  retryable: true,
  retryAfterMs: 1,
  message: "it broke",
  text: "",
  ...more,
});

/** Runs a query against these answers, in their order; the last one again and again. */
async function ask(answers: Answer[], options: RunOptions = {}, config: HarnessConfig = {}, agent = {}) {
  const asked: ModelRequest[] = [];
  const model: Model = {
    id: "own/model",
    worstCaseNanos: ({ input, output }) => input * 1000 + output * 2000,
    async call(request) {
      asked.push(structuredClone({ ...request, tools: [] }));
      const answer = answers[Math.min(asked.length, answers.length) - 1]!;
      return typeof answer === "function" ? await answer(request) : answer;
    },
  };
  const harness = new AgentHarness({
    agents: { default: agent },
    tools: [tool("look", () => "seen")],
    models: { custom: { "own/model": model } },
    model: "own/model",
    retry: { maxAttempts: 3, backoffMs: 1, maxBackoffMs: 1 },
    env: {},
    ...config,
  });
  const log = openLog();
  const result = await harness.run("Do it.", { log, ...options });
  return { result, asked, events: log.events };
}
const lastText = (messages: ModelMessage[]) => JSON.stringify(messages.at(-1));

describe("a reply", () => {
  it.each([
    ["length", "Half an ans", "partial", "output_limit"],
    ["length", "", "error", "output_limit"],
    ["content-filter", "I cannot", "partial", "model_refused"],
    ["content-filter", "", "error", "model_refused"],
    ["other", "Something", "partial", "model_error"],
    ["other", "", "error", "model_error"],
    ["stop", "Done.", "success", null],
  ])("that ends with %s and %j is %s (%s)", async (finish, text, status, reason) => {
    const { result, asked } = await ask([says(text, finish)]);
    expect(result).toMatchObject({ status, stop_reason: reason, output: text === "" ? null : text, cost_usd: 0.001 });
    expect(asked).toHaveLength(1);
  });

  it("that was cut goes on where the agent wants it to, and is one answer", async () => {
    const { result, asked } = await ask(
      [says("One, ", "length"), says("two, ", "length"), says("three.")],
      {},
      {},
      { onLength: "continue" },
    );
    expect(result).toMatchObject({ status: "success", output: "One, two, three." });
    expect(lastText(asked[1]!.messages)).toContain("Go on exactly where it ended");
  });

  it("that its provider paused is sent back as it is", async () => {
    const { result, asked } = await ask([
      says("Searching. ", "stop", { rawFinishReason: "pause_turn" }),
      says("Found."),
    ]);
    expect(result).toMatchObject({ status: "success", output: "Searching. Found." });
    expect(asked[1]!.messages.at(-1)!.role).toBe("assistant");
  });

  it("that is empty at first is tried once more, then fails; both are paid for", async () => {
    const { result, asked, events } = await ask([says("")]);
    expect(result).toMatchObject({ status: "error", stop_reason: "model_error", cost_usd: 0.002 });
    expect(asked).toHaveLength(2);
    expect(eventsOf(events, "model.failed")).toMatchObject([{ cost_usd: 0.001, usage }, { cost_usd: 0.001 }]);
    expect((await ask([says(""), says("Here.")])).result).toMatchObject({ status: "success", output: "Here." });
  });

  it("that is empty after tools have run: the text before is the answer, else it is asked for once", async () => {
    const before = calls("look") as ModelResult & { ok: true };
    const content = [{ type: "text" as const, text: "I look." }, ...(before.messages[0]!.content as never[])];
    const withText = { ...before, text: "I look.", messages: [{ role: "assistant" as const, content }] };
    expect((await ask([withText, says("")])).result).toMatchObject({ status: "success", output: "I look." });
    const asked = await ask([calls("look"), says(""), says("Seen.")]);
    expect(asked.result).toMatchObject({ status: "success", output: "Seen." });
    expect(lastText(asked.asked[2]!.messages)).toContain("Give your answer now");
    const never = await ask([calls("look"), says("")]);
    expect(never.result).toMatchObject({ status: "partial", stop_reason: "model_error", output: null });
    expect(never.asked).toHaveLength(3);
  });
});

describe("a failure", () => {
  it("that is the provider's answer, and the same again, is tried twice; one that passes as often as before", async () => {
    expect((await ask([fails({ isAnswer: true })])).asked).toHaveLength(2);
    expect((await ask([fails()])).asked).toHaveLength(9);
  });

  it("of a call that may be billed costs what was counted", async () => {
    const { result, events } = await ask([fails({ spent: { usage, costNanos: 500_000 } }), says("Done.")]);
    expect(result).toMatchObject({ status: "success", cost_usd: 0.0015, tokens_used: { input: 2000, output: 200 } });
    expect(eventsOf(events, "model.failed")).toMatchObject([{ cost_usd: 0.0005, usage }]);
  });

  it("of unknown cost keeps what was set aside for it: a cap is never passed", async () => {
    const unknown = fails({ spent: { usage: { input: 0, output: 0, cached: 0 }, costNanos: null } });
    const { result, asked } = await ask([unknown], { maxCostUsd: 0.05, maxTokens: 5000 });
    expect(result).toMatchObject({ status: "error", stop_reason: "budget", cost_usd: null });
    // Each may have cost a bit more than 0.01.
    expect(asked.length).toBeLessThanOrEqual(5);
    const { result: uncapped } = await ask([unknown, says("Done.")]);
    expect(uncapped).toMatchObject({ status: "success", cost_usd: null });
  });

  it("by a limit is booked as well", async () => {
    const slow: Answer = () => new Promise(() => {});
    const { result, events } = await ask([slow], { limits: { softSeconds: 0.05, hardSeconds: 0.2 } } as RunOptions);
    expect(result.status).toBe("error");
    expect(eventsOf(events, "model.call")).toEqual([]);
  });
});

it("calls of one turn are under way some at a time", async () => {
  let running = 0;
  let most = 0;
  const busy = tool("busy", async () => {
    most = Math.max(most, ++running);
    await new Promise((resolve) => setTimeout(resolve, 1));
    running--;
    return "done";
  });
  const many = calls(...Array.from({ length: 100 }, () => "busy"));
  const { result } = await ask([many, says("All done.")], {}, { tools: [busy] });
  expect(result).toMatchObject({ status: "success", tools_called: ["busy"] });
  expect(result.tool_calls).toHaveLength(100);
  expect(most).toBe(16);
});

it("a pair of surrogates that came in two pieces goes out as one", async () => {
  const pieces = ["a\ud83d", "\ude00b", "\ud83d", "\ude01"];
  const heard: string[] = [];
  const model: Model = {
    id: "own/model",
    async call(_request, { onText }) {
      for (const piece of pieces) onText?.(piece);
      return says(pieces.join(""));
    },
  };
  const harness = new AgentHarness({ models: { custom: { "own/model": model } }, model: "own/model", env: {} });
  const result = await harness.run("Do it.", { onText: (text: string) => heard.push(text) } as RunOptions);
  expect(result.output).toBe("a\u{1f600}b\u{1f601}");
  for (const text of heard) expect(text.isWellFormed()).toBe(true);
  expect(heard.join("")).toBe("a\u{1f600}b\u{1f601}");
});
