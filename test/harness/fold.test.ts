/** The fold of a log, for logs of every shape a crash can leave. */
import type { EventData, NewEvent, RunInput } from "@drover/harness";
import { applyEvent, conversation, fold, latestText, openCalls, toNanos, toUsd } from "@drover/harness/worker";
import fc from "fast-check";
import { describe, expect, it } from "vitest";

const input: RunInput = {
  query: "Do it.",
  agent: "default",
  max_iterations: 10,
  limits: { soft_seconds: 1, hard_seconds: 2 },
  retry: { max_attempts: 3, backoff_ms: 1, max_backoff_ms: 1 },
};

const count = fc.nat({ max: 1_000_000 });
const text = fc.constantFrom("", " ", "Some text.", "\u65e5\u672c");
const result = fc.record({
  status: fc.constantFrom("ok", "error", "skipped"),
  output: fc.oneof(fc.constant("text"), fc.jsonValue({ maxDepth: 2 })),
}) as fc.Arbitrary<Pick<EventData["tool.result"], "status" | "output">>;

const turn = fc.record({
  text,
  // The same id twice happens, as some servers give them.
  calls: fc.array(
    fc.record({
      id: fc.constantFrom("a", "b", "c"),
      input: fc.dictionary(fc.constantFrom("x", "y"), count),
      intent: fc.boolean(),
      result,
      place: fc.nat(),
    }),
    { maxLength: 4 },
  ),
  reasoned: fc.boolean(),
  usage: fc.record({ input: count, output: count, cached: count }),
  nanos: fc.option(fc.nat({ max: 10_000_000_000 }), { freq: 5 }),
  noise: fc.array(fc.constantFrom("partial", "failed", "retrying", "started", "rescued"), { maxLength: 2 }),
});

type Turn = typeof turn extends fc.Arbitrary<infer T> ? T : never;

function noiseEvent(kind: string, iteration: number): NewEvent {
  switch (kind) {
    case "partial":
      return { type: "model.partial", data: { iteration, text: `half of ${iteration}` } };
    case "failed":
      return {
        type: "model.failed",
        data: { iteration, model: "m/m", code: "model_error", message: "x", retry_in_ms: 1 },
      };
    case "retrying":
      return { type: "run.retrying", data: { attempt: 2, delay_ms: 1, error: { code: "model_error", message: "x" } } };
    case "started":
      return { type: "run.started", data: { epoch: 2, attempt: 1, worker: "w" } };
    default:
      return { type: "run.rescued", data: { worker: null } };
  }
}

/** A log as a run writes it: the results of a turn in any order, each after its intent. */
function logOf(turns: Turn[], wrapUp: boolean): NewEvent[] {
  const events: NewEvent[] = [{ type: "run.queued", data: input }];
  turns.forEach(({ text, calls, reasoned, usage, nanos, noise }, at) => {
    const iteration = at + 1;
    const last = wrapUp && iteration === turns.length;
    events.push(...noise.map((kind) => noiseEvent(kind, iteration)));
    const tool_calls = last ? [] : calls.map(({ id, input }) => ({ id, name: "it", input }));
    const content = [
      { type: "reasoning" as const, text: "hm" },
      ...tool_calls.map(({ id, name, input }) => ({
        type: "tool-call" as const,
        toolCallId: id,
        toolName: name,
        input,
      })),
    ];
    events.push({
      type: "model.call",
      data: {
        iteration,
        model: "m/m",
        text,
        tool_calls,
        ...(reasoned && { messages: [{ role: "assistant" as const, content }] }),
        finish_reason: "stop",
        usage,
        cost_usd: nanos === null ? null : toUsd(nanos),
        duration_ms: 1,
        ...(last && { wrap_up: true as const }),
      },
    });
    if (last) return;
    const placed = calls.map((call, index) => ({ ...call, index })).toSorted((a, b) => a.place - b.place);
    for (const { id, index, intent } of placed)
      if (intent)
        events.push({
          type: "tool.intent",
          data: { iteration, index, call_id: id, tool_name: "it", idempotency_key: `${iteration}:${index}` },
        });
    for (const { id, index, result } of placed)
      events.push({
        type: "tool.result",
        data: { iteration, index, call_id: id, tool_name: "it", duration_ms: 1, ...result },
      });
  });
  return events;
}

const log = fc.tuple(fc.array(turn, { maxLength: 5 }), fc.boolean()).map(([turns, wrapUp]) => logOf(turns, wrapUp));
const cutLog = fc.tuple(log, fc.nat()).map(([events, at]) => ({ events, at: 1 + (at % events.length) }));

describe("fold", () => {
  it("of a log is that of any prefix and then the rest", () => {
    fc.assert(
      fc.property(cutLog, ({ events, at }) => {
        const state = fold(events.slice(0, at));
        for (const event of events.slice(at)) applyEvent(state, event);
        expect(state).toEqual(fold(events));
      }),
    );
  });

  it("is the same for a log that was stored and read back", () => {
    fc.assert(
      fc.property(cutLog, ({ events, at }) => {
        const prefix = events.slice(0, at);
        const back: NewEvent[] = JSON.parse(JSON.stringify(prefix));
        expect(JSON.stringify(fold(back))).toBe(JSON.stringify(fold(prefix)));
        expect(JSON.stringify(conversation(fold(back)))).toBe(JSON.stringify(conversation(fold(prefix))));
      }),
    );
  });

  it("has the sums of its events", () => {
    fc.assert(
      fc.property(cutLog, ({ events, at }) => {
        const prefix = events.slice(0, at);
        const state = fold(prefix);
        const calls = prefix.flatMap((event) => (event.type === "model.call" ? [event.data] : []));
        const results = prefix.filter((event) => event.type === "tool.result");
        const sum = (of: (call: EventData["model.call"]) => number) =>
          calls.reduce((total, call) => total + of(call), 0);
        expect(state.usage).toEqual({
          input: sum((call) => call.usage.input),
          output: sum((call) => call.usage.output),
          cached: sum((call) => call.usage.cached),
        });
        expect(state.costNanos).toBe(sum((call) => Math.round((call.cost_usd ?? 0) * 1e9)));
        expect(state.costUnknown).toBe(calls.some((call) => call.cost_usd === null));
        expect(state.iterations).toBe(calls.filter((call) => !call.wrap_up).length);
        expect(state.steps).toBe(calls.length + results.length);
      }),
    );
  });

  it("knows what is open: the calls of the last turn without a result, with the key of their intent", () => {
    fc.assert(
      fc.property(cutLog, ({ events, at }) => {
        const prefix = events.slice(0, at);
        const last = prefix.findLast((event) => event.type === "model.call")?.data as
          | EventData["model.call"]
          | undefined;
        const of = (type: "tool.intent" | "tool.result") =>
          prefix.flatMap((event) =>
            event.type === type && event.data.iteration === last?.iteration ? [event.data.index] : [],
          );
        const open = openCalls(fold(prefix));
        expect(open.map(({ index }) => index)).toEqual(
          last?.tool_calls.flatMap((_, index) => (of("tool.result").includes(index) ? [] : [index])) ?? [],
        );
        for (const record of open) {
          expect(record.call).toEqual(last!.tool_calls[record.index]);
          expect(record.intended).toBe(of("tool.intent").includes(record.index));
          expect(record.idempotencyKey).toBe(record.intended ? `${last!.iteration}:${record.index}` : undefined);
        }
      }),
    );
  });

  it("counts a result that stands in the log twice once", () => {
    fc.assert(
      fc.property(log, (events) => {
        const twice = events.flatMap((event): NewEvent[] => (event.type === "tool.result" ? [event, event] : [event]));
        expect(fold(twice)).toEqual(fold(events));
      }),
    );
  });

  it("shows the text under way until its call has ended, else the last text that was finished", () => {
    const turnOf = (text: string, wrap_up?: true): NewEvent => ({
      type: "model.call",
      data: {
        iteration: 1,
        model: "m/m",
        text,
        tool_calls: [],
        finish_reason: "stop",
        usage: { input: 0, output: 0, cached: 0 },
        cost_usd: 0,
        duration_ms: 0,
        ...(wrap_up && { wrap_up }),
      },
    });
    const partial = (text: string): NewEvent => ({ type: "model.partial", data: { iteration: 2, text } });
    const shown = (...events: NewEvent[]) => latestText(fold([{ type: "run.queued", data: input }, ...events]));
    expect(shown()).toBeNull();
    expect(shown(partial("Ha"), partial("Half"))).toBe("Half");
    expect(shown(turnOf("Whole."), turnOf(" "))).toBe("Whole.");
    expect(shown(partial("Half"), turnOf("Whole."))).toBe("Whole.");
    expect(shown(turnOf("Whole."), partial("Next"))).toBe("Next");
    expect(shown(turnOf("Whole."), partial("Next"), turnOf("", true))).toBe("Next");
    expect(shown(turnOf("Whole."), partial("Next"), turnOf("In short.", true))).toBe("In short.");
  });

  it("refuses a log without its beginning", () => {
    expect(() => fold([])).toThrow("empty");
    expect(() => fold([{ type: "run.rescued", data: { worker: null } }])).toThrow("begins with run.queued");
  });
});

describe("conversation", () => {
  it("is valid for every prefix: each call has exactly one result, right after its turn, in the order of the calls", () => {
    fc.assert(
      fc.property(cutLog, ({ events, at }) => {
        const messages = conversation(fold(events.slice(0, at)));
        expect(messages[0]).toEqual({ role: "user", content: "Do it." });
        messages.forEach((message, index) => {
          const called =
            message.role === "assistant" && typeof message.content !== "string"
              ? message.content.flatMap((part) => (part.type === "tool-call" ? [part.toolCallId] : []))
              : [];
          const next = messages[index + 1];
          const answered =
            next?.role === "tool"
              ? next.content.map((part) => (part.type === "tool-result" ? part.toolCallId : ""))
              : [];
          if (message.role !== "tool") expect(answered).toEqual(called);
          else expect(next?.role).not.toBe("tool");
        });
      }),
    );
  });

  it("tells the context after the query", () => {
    const state = fold([{ type: "run.queued", data: { ...input, context: { b: 1, a: 2 } } }]);
    expect(conversation(state)).toEqual([{ role: "user", content: 'Do it.\n\nContext:\n{\n  "b": 1,\n  "a": 2\n}' }]);
  });

  it("does not change the state", () => {
    fc.assert(
      fc.property(log, (events) => {
        const state = fold(events);
        const before = structuredClone(state);
        conversation(state);
        expect(state).toEqual(before);
      }),
      { numRuns: 30 },
    );
  });
});

it("money comes back to the nano-USD from the wire", () => {
  const million = 1e15;
  fc.assert(fc.property(fc.integer({ min: 0, max: million }), (nanos) => toNanos(toUsd(nanos)) === nanos));
});
