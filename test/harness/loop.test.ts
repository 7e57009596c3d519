/**
 * The loop under an owner that is stopped, drained, dispossessed or let down by its log or its model. Over 500 lines because
 * each of these needs the same scripted owner.
 */
import { getEventListeners } from "node:events";
import { type AnyTool, type EventData, type NewEvent, type RunInput, ToolRegistry } from "@drover/harness";
import {
  applyEvent,
  early,
  fold,
  type LoopOptions,
  noBudget,
  RunControl,
  runLoop,
  type StopCause,
} from "@drover/harness/worker";
import type { Model, ModelCallOptions, ModelReply, ModelRequest, ModelResult } from "@drover/llm";
import { describe, expect, it } from "vitest";
import { spawnNode } from "../support/process.ts";
import { tool } from "./scripted.ts";

const input: RunInput = {
  query: "Do it.",
  agent: "default",
  max_iterations: 5000,
  limits: { soft_seconds: 60, hard_seconds: 120 },
  retry: { max_attempts: 1, backoff_ms: 1, max_backoff_ms: 1 },
};

type Answer = (request: ModelRequest, options: ModelCallOptions, n: number) => ModelResult | Promise<ModelResult>;

function reply(text: string, calls: string[] = []): ModelReply {
  const toolCalls = calls.map((name, n) => ({ id: `c${n}`, name, input: { n } }));
  const content = [
    ...(text ? [{ type: "text" as const, text }] : []),
    ...toolCalls.map(({ id, name, input }) => ({ type: "tool-call" as const, toolCallId: id, toolName: name, input })),
  ];
  const usage = { input: 1, output: 1, cached: 0 };
  return {
    ok: true,
    text,
    toolCalls,
    messages: [{ role: "assistant", content }],
    finishReason: "stop",
    usage,
    costNanos: 0,
  };
}

const passing = (text = ""): ModelResult => ({
  ok: false,
  code: "model_error",
  retryable: true,
  retryAfterMs: 1,
  message: "overloaded",
  text,
});

/** Everything of one ownership, in this process: a scripted model of one's own, a log in an array. */
function owner(
  answers: Answer[] | Answer,
  tools: AnyTool[] = [],
  more: Partial<LoopOptions> & { before?: NewEvent[] } = {},
) {
  const events: NewEvent[] = [{ type: "run.queued", data: input }, ...(more.before ?? [])];
  const state = fold(events);
  const requests: ModelRequest[] = [];
  const model: Model = {
    id: "my/model",
    call: async (request, options) => {
      const n = requests.push(request);
      const answer = typeof answers === "function" ? answers : answers[n - 1];
      if (!answer) throw new Error("the script has no entry for this request");
      return await answer(request, options, n);
    },
  };
  const control = new RunControl();
  const agent = {};
  const options: LoopOptions = {
    runId: "00000000-0000-7000-8000-000000000000",
    tenant: "default",
    workspace: "/nowhere",
    agentName: "default",
    agent,
    policies: [],
    approvals: { expiresAfterMs: 86_400_000, onExpiry: "reject" },
    asking: "park",
    budget: noBudget,
    onBudget: "stop",
    model,
    toolbox: new ToolRegistry(tools).boxFor("default", agent),
    state,
    control,
    append: async (event) => void events.push(event),
    ...more,
  };
  return {
    events,
    state,
    requests,
    control,
    options,
    run: () => runLoop(options),
    kinds: () => events.slice(1).map(({ type }) => type),
  };
}

/** An answer of the model, and what happens while it is given. */
const doing =
  (what: () => void, answer: ModelResult | Promise<ModelResult>): Answer =>
  () => {
    what();
    return answer;
  };

/** Resolves when the signal aborts, with the failure a model gives then. */
const untilAborted = ({ signal }: ModelCallOptions, text = ""): Promise<ModelResult> =>
  new Promise((resolve) =>
    signal.addEventListener("abort", () =>
      resolve({ ok: false, code: "aborted", retryable: false, message: "aborted", text }),
    ),
  );

const one = tool("one", () => 1);

describe("a deploy", () => {
  it("hands over between the model's reply and its calls; nothing of them was started", async () => {
    let ran = false;
    const it = tool("it", () => {
      ran = true;
    });
    const run = owner([doing(() => run.control.drain(), reply("", ["it"]))], [it]);
    expect(await run.run()).toEqual({ kind: "handover" });
    expect(run.kinds()).toEqual(["model.call"]);
    expect(ran).toBe(false);
  });

  it("lets the calls of a turn end, and hands over before the next model call", async () => {
    const it = tool("it", () => run.control.drain());
    const run: ReturnType<typeof owner> = owner([() => reply("", ["it", "one"])], [it, one]);
    expect(await run.run()).toEqual({ kind: "handover" });
    expect(run.kinds()).toEqual(["model.call", "tool.result", "tool.result"]);
    expect(run.requests).toHaveLength(1);
  });

  it("lets a run complete whose last reply has come", async () => {
    const run: ReturnType<typeof owner> = owner([doing(() => run.control.drain(), reply("Done."))]);
    expect(await run.run()).toMatchObject({ kind: "final", status: "completed" });
  });

  it("costs no attempt, when a model call has just failed in passing", async () => {
    const run: ReturnType<typeof owner> = owner([doing(() => run.control.drain(), passing())]);
    expect(await run.run()).toEqual({ kind: "handover" });
    expect(run.kinds()).toEqual(["model.failed"]);
  });

  it("hides no failure that needs a pause: that is a retry as always", async () => {
    const run: ReturnType<typeof owner> = owner([
      doing(() => run.control.drain(), { ...passing(), retryAfterMs: 60_000 } as ModelResult),
    ]);
    expect(await run.run()).toMatchObject({ kind: "retry", failure: { retryAfterMs: 60_000 } });
  });
});

describe("being stopped", () => {
  it.each<[StopCause, string, string[]]>([
    ["shutdown", "handover", ["model.partial"]],
    ["lost", "handover", []],
    ["cancelled", "cancelled", ["model.partial"]],
    ["time_limit", "partial", ["model.partial"]],
  ])("for %s in a stream: %s", async (cause, ending, kinds) => {
    const run: ReturnType<typeof owner> = owner([
      (_request, options) => {
        options.onText?.("Half");
        run.control.stop(cause);
        return untilAborted(options, "Half");
      },
    ]);
    const outcome = await run.run();
    expect(outcome.kind === "final" ? outcome.status : outcome.kind).toBe(ending);
    expect(run.kinds()).toEqual(kinds);
    if (outcome.kind === "final") expect(outcome.data.output).toBe("Half");
  });

  it.each<[StopCause, string]>([
    ["shutdown", "handover"],
    ["lost", "handover"],
    ["cancelled", "final"],
  ])("for %s in an unsafe tool: its intent stays without an outcome", async (cause, kind) => {
    const it = tool(
      "it",
      () => {
        run.control.stop(cause);
        return new Promise(() => {});
      },
      { effect: "unsafe" },
    );
    const run: ReturnType<typeof owner> = owner([() => reply("", ["it"])], [it]);
    expect(await run.run()).toMatchObject({ kind });
    expect(run.kinds()).toEqual(["model.call", "tool.intent"]);
  });

  it("a result that is there when the stop comes is recorded", async () => {
    const it = tool("it", () => {
      queueMicrotask(() => queueMicrotask(() => run.control.stop("shutdown")));
      return "there";
    });
    const run: ReturnType<typeof owner> = owner([() => reply("", ["it"])], [it]);
    expect(await run.run()).toEqual({ kind: "handover" });
    expect(run.kinds()).toEqual(["model.call", "tool.result"]);
  });

  it("a model that ignores its signal does not hold the run, and its late answer is nobody's", async () => {
    const late = Promise.withResolvers<ModelResult>();
    let deltas = "";
    let lateOptions: ModelCallOptions | undefined;
    const run: ReturnType<typeof owner> = owner(
      [
        (_request, options) => {
          lateOptions = options;
          options.onText?.("Half");
          setImmediate(() => run.control.stop("cancelled"));
          return late.promise;
        },
      ],
      [],
      { onText: (delta) => (deltas += delta) },
    );
    expect(await run.run()).toMatchObject({ kind: "final", status: "cancelled", data: { output: "Half" } });
    const before = structuredClone(run.events);
    lateOptions!.onText?.(" and half");
    late.resolve(reply("Half and half"));
    await new Promise(setImmediate);
    expect(run.events).toEqual(before);
    expect(deltas).toBe("Half");
  });

  it("a model that rejects after it was given up harms nobody", async () => {
    const late = Promise.withResolvers<ModelResult>();
    const run: ReturnType<typeof owner> = owner([
      doing(() => setImmediate(() => run.control.stop("shutdown")), late.promise),
    ]);
    expect(await run.run()).toEqual({ kind: "handover" });
    late.reject(new Error("too late"));
    // Were nobody to catch it, the test run would fail.
    await new Promise(setImmediate);
  });
});

describe("a model of one's own", () => {
  it.each<[string, Model["call"]]>([
    ["rejects", () => Promise.reject(new Error("not today"))],
    [
      "throws",
      () => {
        throw new Error("not today");
      },
    ],
  ])("that %s is a failure like any other", async (_what, call) => {
    const run = owner([]);
    run.options.model = { id: "my/model", call };
    expect(await run.run()).toMatchObject({
      kind: "final",
      status: "failed",
      data: { stop_reason: "model_error", error: { message: "my/model failed: not today" } },
    });
    expect(run.kinds()).toEqual(["model.failed"]);
  });

  it("that says it was aborted although nobody did is not tried for ever", async () => {
    const run = owner(() => ({ ok: false, code: "aborted", retryable: false, message: "aborted", text: "" }));
    expect(await run.run()).toMatchObject({ kind: "final", status: "failed", data: { stop_reason: "internal_error" } });
    expect(run.requests).toHaveLength(1);
  });
});

describe("a lost log", () => {
  const lost = new Error("no longer the owner");

  it("ends the model call that is under way when a part of its text cannot be recorded", async () => {
    let aborted = false;
    const run = owner(
      [
        async (_request, options) => {
          options.onText?.("Half");
          const result = await untilAborted(options, "Half");
          aborted = true;
          return result;
        },
      ],
      [],
      { partialEveryMs: 1, append: () => Promise.reject(lost) },
    );
    await expect(run.run()).rejects.toBe(lost);
    await new Promise(setImmediate);
    expect(aborted).toBe(true);
    expect(run.control.cause).toBe("broken");
  });

  it("ends the other calls of the turn when the outcome of one cannot be recorded", async () => {
    let heard: AbortSignal | undefined;
    const hang = tool("hang", (_input, { signal }) => {
      heard = signal;
      return new Promise(() => {});
    });
    const kept: string[] = [];
    const run = owner([() => reply("", ["hang", "one"])], [hang, one], {
      append: async (event) => {
        if (event.type === "tool.result") throw lost;
        kept.push(event.type);
      },
    });
    await expect(run.run()).rejects.toBe(lost);
    expect(heard!.aborted).toBe(true);
    expect(kept).toEqual(["model.call"]);
  });

  it("an ownership in doubt keeps every step from starting", async () => {
    const ran: string[] = [];
    const tools = (["pure", "idempotent", "unsafe"] as const).map((effect) =>
      tool(effect, () => ran.push(effect), { effect }),
    );
    for (const effect of ["pure", "idempotent", "unsafe"]) {
      let steps = 0;
      const doubt = () => {
        if (++steps > 1) throw lost;
      };
      const run = owner([() => reply("", [effect])], tools, { assertOwned: doubt });
      await expect(run.run()).rejects.toBe(lost);
      expect(run.kinds()).toEqual(effect === "pure" ? ["model.call"] : ["model.call", "tool.intent"]);
    }
    const doubtful = owner([() => reply("never asked")], tools, {
      assertOwned: () => {
        throw lost;
      },
    });
    await expect(doubtful.run()).rejects.toBe(lost);
    expect(doubtful.kinds()).toEqual([]);
    expect(ran).toEqual([]);
  });

  it("an ownership that must first be made sure of is waited for, and time that runs out meanwhile counts", async () => {
    const ran: string[] = [];
    const it = tool("it", () => ran.push("it"), { effect: "unsafe" });
    const sure = Promise.withResolvers<void>();
    const run: ReturnType<typeof owner> = owner([() => reply("", ["it"]), () => reply("Done.")], [it], {
      assertOwned: () => {
        ran.push("asked");
        setImmediate(sure.resolve);
        return sure.promise.then(() => void ran.push("sure"));
      },
    });
    expect(await run.run()).toMatchObject({ status: "completed" });
    expect(ran).toEqual(["asked", "sure", "asked", "sure", "it", "asked", "sure"]);

    let steps = 0;
    const late = owner([() => reply("", ["it"])], [it], {
      assertOwned: async () => {
        if (++steps === 2) late.control.stop("cancelled");
      },
    });
    expect(await late.run()).toMatchObject({ status: "cancelled" });
    expect(ran.filter((entry) => entry === "it")).toHaveLength(1);
    expect(late.kinds()).toEqual(["model.call", "tool.intent"]);
  });
});

describe("time that runs out at an awkward moment", () => {
  const soft = () => new RunControl({ softMs: 0, hardMs: 60_000 });

  it("while the intent is being recorded: the tool is not started, and the log says so", async () => {
    let ran = false;
    const it = tool(
      "it",
      () => {
        ran = true;
      },
      { effect: "unsafe" },
    );
    const run = owner([() => reply("", ["it"]), () => reply("In short.")], [it]);
    const { append } = run.options;
    run.options.append = async (event) => {
      await append(event);
      if (event.type === "tool.intent") Object.defineProperty(run.control, "softReached", { value: true });
    };
    expect(await run.run()).toMatchObject({
      status: "partial",
      data: { output: "In short.", stop_reason: "time_limit" },
    });
    expect(ran).toBe(false);
    expect(run.events.at(-2)).toMatchObject({
      type: "tool.result",
      data: { status: "skipped", output: expect.stringMatching(/^Not started/) },
    });
  });

  it("after a crash within an idempotent tool: it is not tried again, and the log does not claim that it was never started", async () => {
    const before: NewEvent[] = [
      {
        type: "model.call",
        data: {
          iteration: 1,
          model: "m/m",
          text: "",
          tool_calls: [{ id: "c0", name: "it", input: {} }],
          finish_reason: "x",
          usage: { input: 0, output: 0, cached: 0 },
          cost_usd: 0,
          duration_ms: 0,
        },
      },
      { type: "tool.intent", data: { iteration: 1, index: 0, call_id: "c0", tool_name: "it", idempotency_key: "k" } },
    ];
    const run = owner([() => reply("In short.")], [tool("it", () => 1, { effect: "idempotent" })], {
      before,
      control: soft(),
    });
    expect(await run.run()).toMatchObject({ status: "partial" });
    const [result] = run.events.flatMap((event) => (event.type === "tool.result" ? [event.data] : []));
    expect(result).toMatchObject({
      status: "skipped",
      output: expect.stringMatching(/after a crash.*may have taken effect/),
    });
  });

  it("a last turn whose first words are recorded does not replace the longer text of the call that was cut", async () => {
    const before: NewEvent[] = [
      { type: "model.partial", data: { iteration: 1, text: "A long text that was cut", cut: true } },
    ];
    const ticked = Promise.withResolvers<void>();
    const run = owner(
      [
        async (_request, options) => {
          options.onText?.("The");
          await new Promise((resolve) => setTimeout(resolve, 20));
          ticked.resolve();
          return await untilAborted(options, "The");
        },
      ],
      [],
      { before, control: soft(), partialEveryMs: 1 },
    );
    const running = run.run();
    await ticked.promise;
    run.options.control.stop("time_limit");
    expect(await running).toMatchObject({ status: "partial", data: { output: "A long text that was cut" } });
    expect(run.kinds()).toEqual(["model.partial"]);
  });

  it("a last turn that was recorded is not made again after a crash", async () => {
    const first = owner([() => reply("In short.")], [], { control: soft() });
    await first.run();
    expect(first.kinds()).toEqual(["model.call"]);
    const second = owner([], [], { before: first.events.slice(1), control: soft() });
    expect(await second.run()).toMatchObject({
      status: "partial",
      data: { output: "In short.", stop_reason: "time_limit" },
    });
    expect(second.requests).toEqual([]);
  });
});

describe("partial text", () => {
  it("is recorded as it grows, one append at a time, and dropped once the reply is there", async () => {
    let open = 0;
    let most = 0;
    const seen: string[] = [];
    const enough = Promise.withResolvers<void>();
    const run: ReturnType<typeof owner> = owner(
      [
        async (_request, { onText }) => {
          const growing = setInterval(() => onText?.("more "), 1);
          await enough.promise;
          clearInterval(growing);
          return reply("All of it.");
        },
      ],
      [],
      { partialEveryMs: 1 },
    );
    const { append } = run.options;
    run.options.append = async (event) => {
      most = Math.max(most, ++open);
      await new Promise((resolve) => setTimeout(resolve, 5));
      open--;
      await append(event);
      if (event.type === "model.partial" && seen.push(event.data.text) === 3) enough.resolve();
    };
    expect(await run.run()).toMatchObject({ status: "completed", data: { output: "All of it." } });
    expect(most).toBe(1);
    expect(seen.map(({ length }) => length)).toEqual(seen.map(({ length }) => length).toSorted((a, b) => a - b));
    expect(new Set(seen).size).toBe(seen.length);
    expect(run.kinds().at(-1)).toBe("model.call");
    expect(run.state.partialText).toBe("");
  });
});

describe("over a long run", () => {
  it("a thousand tool calls leave no listener and no timer behind", async () => {
    const listeners: number[] = [];
    const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
    const timersBefore = timers();
    const run: ReturnType<typeof owner> = owner(
      (_request, _options, n) => {
        listeners.push(
          getEventListeners(run.control.signal, "abort").length + getEventListeners(run.control.cut, "abort").length,
        );
        return n <= 500 ? reply("", ["one", "one"]) : reply("Done.");
      },
      [one],
    );
    expect(await run.run()).toMatchObject({ status: "completed" });
    expect(run.kinds().filter((kind) => kind === "tool.result")).toHaveLength(1000);
    // The model call under way listens itself, and nothing else.
    expect(new Set(listeners)).toEqual(new Set([1]));
    expect(getEventListeners(run.control.cut, "abort")).toEqual([]);
    expect(getEventListeners(run.control.signal, "abort")).toEqual([]);
    expect(timers()).toBeLessThan(timersBefore + 10);
  });

  it.each([
    ["completed", "success"],
    ["cancelled", "cancelled"],
  ])("a process whose run was %s ends by itself", async (how, said) => {
    const child = spawnNode(new URL("./exit-child.ts", import.meta.url), { args: [how] });
    expect(await child.exited, child.output()).toEqual({ code: 0, signal: null });
    expect(child.lines).toEqual([said]);
  });
});

describe("early", () => {
  const call = (text: string, statuses: EventData["tool.result"]["status"][]) => {
    const state = fold([{ type: "run.queued", data: input }]);
    const tool_calls = statuses.map((_, n) => ({ id: `c${n}`, name: "it", input: {} }));
    const usage = { input: 0, output: 0, cached: 0 };
    applyEvent(state, {
      type: "model.call",
      data: { iteration: 1, model: "m/m", text, tool_calls, finish_reason: "x", usage, cost_usd: 0, duration_ms: 0 },
    });
    statuses.forEach((status, index) => {
      applyEvent(state, {
        type: "tool.result",
        data: { iteration: 1, index, call_id: `c${index}`, tool_name: "it", status, output: "", duration_ms: 0 },
      });
    });
    return early(state, "budget", "Too dear.");
  };

  it("is partial with text or with a tool's finished work, and failed with nothing to show", () => {
    expect(call("Text.", [])).toMatchObject({ status: "partial", data: { output: "Text." } });
    expect(call("", ["error", "ok"])).toMatchObject({ status: "partial", data: { output: null } });
    expect(call(" ", ["error", "skipped"])).toMatchObject({ status: "failed", data: { output: null } });
    expect(call("", [])).toMatchObject({
      data: { stop_reason: "budget", error: { code: "budget", message: "Too dear." } },
    });
  });
});
