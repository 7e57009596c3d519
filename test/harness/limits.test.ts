/**
 * Time, money and turns. Times are real and short here, and the tests look at the order of events only: what must happen before
 * a limit is far from it.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { HarnessConfig, RunOptions } from "@drover/harness";
import { RunControl } from "@drover/harness/worker";
import { describe, expect, it } from "vitest";
import { type ScriptEntry, startModelServer } from "../support/model-server.ts";
import { anthropic, eventsOf, harnessOn, openLog, tool, types } from "./scripted.ts";

const note = tool("note", () => "noted");
const again = { toolCalls: [{ name: "note" }] };
/** Everything in flight is cut at 2.5 s, the run ends at 3 s. */
const cutting = { softSeconds: 2, hardSeconds: 3 };
const stalled = { text: ["As far ", "as I ", "came"], stallAfter: 2 };

/** Each run has a server of its own, so that the tests can wait side by side. */
async function run(script: ScriptEntry[], options: RunOptions = {}, config: HarnessConfig = {}) {
  const server = await startModelServer();
  try {
    server.script(script);
    const log = openLog();
    const result = await harnessOn(server, { tools: [note], ...config }).run("Do it.", { log, ...options });
    return { result, events: log.events, count: server.count, calls: server.calls };
  } finally {
    await server.close();
  }
}

describe.concurrent("the soft limit", () => {
  /** Answers when the soft limit is over, long before the hard one. */
  const late = (reply: ScriptEntry) => async () => {
    await delay(400);
    return reply as string;
  };
  const limits = { softSeconds: 0.1, hardSeconds: 600 };

  it("starts no new tool call; the model gets one turn without tools, and the run ends partial", async () => {
    let ran = false;
    const never = tool("note", () => {
      ran = true;
    });
    const { result, events, count, calls } = await run(
      [late({ ...again, text: "Let me note." }), "In short: nothing."],
      { limits, maxTokens: 5000 },
      { tools: [never] },
    );
    expect(ran).toBe(false);
    expect(count).toBe(2);
    expect(result).toMatchObject({
      status: "partial",
      output: "In short: nothing.",
      stop_reason: "time_limit",
      iterations: 1,
      tools_called: ["note"],
      tool_calls: [{ status: "skipped", output: "Not started: the run reached its time limit." }],
      error: { code: "time_limit" },
    });
    const wrapUp = calls[1]!;
    expect(wrapUp.query).toMatch(/time for this task is over/);
    expect(wrapUp.body.max_tokens).toBe(1024);
    const choice = wrapUp.body.tool_choice as { type: string } | undefined;
    expect(wrapUp.tools.length === 0 || choice?.type === "none").toBe(true);
    expect(types(events).slice(-4)).toEqual(["model.call", "tool.result", "model.call", "run.partial"]);
    expect(eventsOf(events, "model.call").map((call) => call.wrap_up)).toEqual([undefined, true]);
  });

  it("lets a tool in flight end, and its result is in the last turn", async () => {
    const slow = tool("note", async () => {
      await delay(1800);
      return "noted late";
    });
    const { result, calls } = await run(
      [again, "It is noted."],
      { limits: { softSeconds: 1.5, hardSeconds: 600 } },
      { tools: [slow] },
    );
    expect(result).toMatchObject({
      status: "partial",
      output: "It is noted.",
      tool_calls: [{ status: "ok", output: "noted late" }],
    });
    expect(calls[1]!.messages.flatMap((message) => message.toolResults)[0]!.content).toBe("noted late");
  });

  it("does not take an answer away that is there in time", async () => {
    const { result } = await run([late("The answer.")], { limits });
    expect(result).toMatchObject({ status: "success", output: "The answer.", stop_reason: null });
  });

  it("keeps the words of a last turn that calls tools all the same, and carries none of the calls out", async () => {
    const disobedient = { text: "Enough.", toolCalls: [{ name: "note" }] };
    const { result, events } = await run([late(again), disobedient, disobedient, disobedient], { limits });
    expect(result).toMatchObject({ status: "partial", output: "Enough.", stop_reason: "time_limit" });
    expect(eventsOf(events, "tool.result").map(({ status }) => status)).toEqual(["skipped"]);
  });

  it("tries the last turn again when it fails in passing, and keeps what there is when it fails for good", async () => {
    const passing = await run(
      [late({ ...again, text: "So far." }), { status: 529, headers: { "retry-after-ms": "1" } }, "In short."],
      { limits },
    );
    expect(passing.result).toMatchObject({ status: "partial", output: "In short.", stop_reason: "time_limit" });
    const final = await run([late({ ...again, text: "So far." }), { status: 400 }], { limits });
    expect(final.result).toMatchObject({ status: "partial", output: "So far.", stop_reason: "time_limit" });
    expect(eventsOf(final.events, "model.failed")).toMatchObject([{ code: "invalid_input", retry_in_ms: null }]);
  });

  it("comes before a retry: the next call is the last turn", async () => {
    const { result, count, calls } = await run(
      [late({ status: 429, headers: { "retry-after-ms": "1" } }), "In short."],
      {
        limits,
      },
    );
    expect(result).toMatchObject({ status: "partial", output: "In short.", stop_reason: "time_limit" });
    expect(count).toBe(2);
    expect(calls[1]!.query).toMatch(/time for this task is over/);
  });
});

describe.concurrent("the hard limit", () => {
  it("a stream is cut while there is time for the last turn, which sees the text", async () => {
    const { result, events, calls } = await run([stalled, "That was all."], { limits: cutting });
    expect(result).toMatchObject({
      status: "partial",
      output: "That was all.",
      stop_reason: "time_limit",
      iterations: 0,
    });
    expect(eventsOf(events, "model.partial")).toEqual([{ iteration: 1, text: "As far as I ", cut: true }]);
    expect(calls[1]!.messages.map(({ role, text }) => [role, text])).toEqual([
      ["user", "Do it."],
      ["assistant", "As far as I "],
      ["user", expect.stringMatching(/time for this task is over/)],
    ]);
  });

  it("a run whose only model call is cut, and whose last turn says nothing, keeps the text", async () => {
    const { result, events } = await run([stalled, { connection: "hang" }], { limits: cutting });
    expect(result).toMatchObject({ status: "partial", output: "As far as I ", stop_reason: "time_limit" });
    expect(result.error).toMatchObject({
      message: "The run reached its time limit.",
      partial: { output: "As far as I " },
    });
    expect(types(events)).toEqual(["run.queued", "run.started", "model.partial", "run.partial"]);
  });

  it("a last turn that comes less far than the text that was cut does not replace it", async () => {
    const { result } = await run([stalled, { text: ["As", " ..."], stallAfter: 1 }], { limits: cutting });
    expect(result).toMatchObject({ status: "partial", output: "As far as I " });
  });

  it("a run that has nothing at all fails with the same code", async () => {
    const { result } = await run([{ connection: "hang" }, { connection: "hang" }], { limits: cutting });
    expect(result).toMatchObject({
      status: "error",
      output: null,
      stop_reason: "time_limit",
      error: { code: "time_limit" },
    });
  });

  it("a tool that hangs and ignores its signal is given up in time for the last turn", async () => {
    let signal: AbortSignal | undefined;
    const hang = tool("note", (_input, context) => {
      signal = context.signal;
      return new Promise(() => {});
    });
    const { result } = await run([again, "It did not come back."], { limits: cutting }, { tools: [hang] });
    expect(signal!.aborted).toBe(true);
    expect(result).toMatchObject({
      status: "partial",
      output: "It did not come back.",
      stop_reason: "time_limit",
      tool_calls: [{ status: "error", output: "The tool was stopped, the run is at its time limit." }],
    });
  });

  it("a model of one's own that ignores its signal does not hold the run", async () => {
    const deaf = { id: "my/deaf", call: () => new Promise<never>(() => {}) };
    const { result } = await run(
      [],
      { limits: cutting, model: "my/deaf" },
      { models: { custom: { "my/deaf": deaf } } },
    );
    expect(result).toMatchObject({ status: "error", stop_reason: "time_limit" });
  });

  it("a pause before a retry ends with it", async () => {
    const wait = { status: 429, headers: { "retry-after": "3000" } };
    const { result } = await run([{ ...again, text: "So far." }, wait, "In short."], { limits: cutting });
    expect(result).toMatchObject({ status: "partial", output: "In short.", stop_reason: "time_limit" });
  });
});

describe.concurrent("the deadline", () => {
  it("ends the run as the hard limit does, under its own name", async () => {
    const { result } = await run([stalled, { connection: "hang" }], {
      limits: { ...cutting, hardSeconds: 600, deadline: new Date(Date.now() + 3000) },
    });
    expect(result).toMatchObject({ status: "partial", output: "As far as I ", stop_reason: "deadline" });
    expect(result.error!.message).toBe("The run reached its deadline.");
  });

  it("that is past already costs no model call", async () => {
    const { result, count } = await run(["never"], { limits: { deadline: new Date(Date.now() - 1000) } });
    expect(result).toMatchObject({ status: "error", stop_reason: "deadline" });
    expect(count).toBe(0);
  });

  it("that is later than the hard limit changes nothing", async () => {
    const { result } = await run([stalled, { connection: "hang" }], {
      limits: { ...cutting, deadline: new Date(Date.now() + 3_600_000) },
    });
    expect(result.stop_reason).toBe("time_limit");
  });
});

describe.concurrent("the clock", () => {
  it("keeps the proportion of soft to hard when a deadline comes first", async () => {
    const control = new RunControl({ softMs: 500_000, hardMs: 1_000_000, deadlineMs: 800 });
    let softAtCut: boolean | undefined;
    control.cut.addEventListener("abort", () => {
      softAtCut = control.softReached;
    });
    while (!control.softReached) await delay(5);
    expect(control.signal.aborted).toBe(false);
    await new Promise((resolve) => control.signal.addEventListener("abort", resolve));
    expect(softAtCut).toBe(true);
    expect(control.cause).toBe("deadline");
  });

  it("takes what is past into account at once, and limits that no timer can hold as very long ones", () => {
    const past = new RunControl({ softMs: -5, hardMs: 60_000 });
    expect([past.softReached, past.cut.aborted, past.signal.aborted]).toEqual([true, false, false]);
    past.close();
    const over = new RunControl({ softMs: -50, hardMs: -5 });
    expect([over.softReached, over.cut.aborted, over.cause]).toEqual([true, true, "time_limit"]);
    for (const hardMs of [Number.POSITIVE_INFINITY, 2 ** 40]) {
      const long = new RunControl({ softMs: hardMs, hardMs });
      expect([long.softReached, long.cut.aborted, long.cause]).toEqual([false, false, undefined]);
      long.close();
    }
  });

  it("stops for the first cause, and never changes it", () => {
    const control = new RunControl();
    control.stop("cancelled");
    control.stop("lost");
    expect(control.cause).toBe("cancelled");
    expect(control.cut.aborted).toBe(true);
  });

  it("an endless run is one without limits", async () => {
    const { result } = await run([again, "Done."], { limits: { hardSeconds: Number.POSITIVE_INFINITY } });
    expect(result).toMatchObject({ status: "success", output: "Done." });
  });
});

describe("max_cost_usd", () => {
  const usage = { input: 1000, output: 100 };
  const priced = { models: { prices: { [anthropic]: { input: 1, output: 10 } } } };

  it("ends the run before a call that may cost more than is left; what was paid for is done", async () => {
    const step = { ...again, text: "A step.", usage };
    const { result, count } = await run([step, step, "In short.", "never"], { maxCostUsd: 0.0095 }, priced);
    expect(count).toBe(3);
    expect(result).toMatchObject({ status: "partial", output: "In short.", stop_reason: "budget", iterations: 2 });
    expect(result.tool_calls.map(({ status }) => status)).toEqual(["ok", "ok"]);
    expect(result.error!.message).toMatch(/cost 0\.00\d+ USD of its 0\.0095 USD/);
    expect(result.cost_usd!).toBeLessThanOrEqual(0.0095);
  });

  it("lowers the longest reply to what is left, and makes no call that pays for less than 256 tokens", async () => {
    const { result, calls } = await run([{ text: "Short.", usage }], { maxCostUsd: 0.01, maxTokens: 100_000 }, priced);
    expect(result.status).toBe("success");
    const { max_tokens: longest } = calls[0]!.body as { max_tokens: number };
    // 10 USD per million tokens of output: a cent pays for a thousand.
    expect(longest).toBeGreaterThanOrEqual(256);
    expect(longest).toBeLessThan(1000);
    const none = await run(["never"], { maxCostUsd: 0.0001 }, priced);
    expect(none.count).toBe(0);
    expect(none.result).toMatchObject({ status: "error", stop_reason: "budget", cost_usd: 0 });
  });

  it("is not felt by a run that stays below it", async () => {
    const { result } = await run(
      [
        { ...again, usage },
        { text: "Cheap.", usage },
      ],
      { maxCostUsd: 1 },
      priced,
    );
    expect(result).toMatchObject({ status: "success", output: "Cheap.", cost_usd: 0.004 });
  });

  it("cannot be kept without a price: no call is made, and the error says what is missing", async () => {
    const { result, count } = await run(["never"], { maxCostUsd: 5, model: "anthropic/nobody-knows-this-one" });
    expect(count).toBe(0);
    expect(result).toMatchObject({ status: "error", stop_reason: "price_unknown", cost_usd: 0 });
    expect(result.error!.message).toMatch(/no known price.*models\.prices/);
  });
});
