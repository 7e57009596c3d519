/** What a person sees of a run: text that comes in pieces, late, twice or not at all is shown whole and once; the timeline. */
import type { EventData, EventType, LogEvent } from "@drover/harness";
import { readableLine as readable } from "@drover/telemetry";
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { type Piece, ReplyText } from "../../apps/cli/src/client/reply-text.ts";
import { drawTimeline, timelineOf } from "../../apps/cli/src/client/timeline.ts";
import { RunView } from "../../apps/cli/src/client/view.ts";

let seq = 0;
function event<T extends EventType>(type: T, ms: number, data: Partial<EventData[T]>): LogEvent {
  return { seq: ++seq, type, at: new Date(1_800_000_000_000 + ms).toISOString(), data } as unknown as LogEvent;
}
const reply = (iteration: number, ms: number, text: string, tools: string[] = []) =>
  event("model.call", ms, {
    iteration,
    text,
    tool_calls: tools.map((name, n) => ({ id: `c${n}`, name, input: {} })),
    usage: { input: 10, output: 5, cached: 0 },
    cost_usd: 0.001,
    duration_ms: 100,
  });

/** Cuts a text into pieces at the given points. */
function cut(iteration: number, text: string, points: number[]): Piece[] {
  const at = [...new Set([0, ...points.map((point) => point % (text.length + 1)), text.length])].sort((a, b) => a - b);
  return at.slice(1).map((end, n) => ({ iteration, offset: at[n]!, text: text.slice(at[n], end) }));
}

describe("ReplyText", () => {
  const word = fc.string({ unit: fc.constantFrom("a", "b", " ", "\n"), minLength: 1, maxLength: 12 });

  it("prints every reply whole, however its pieces come around its end", () => {
    const replies = fc.array(
      fc.record({
        text: word,
        points: fc.array(fc.nat(20), { maxLength: 4 }),
        // What an earlier try had said before it was cut.
        before: fc.option(word),
        // Which pieces are lost, how many come after the event that ends the reply, and how many before the one that ends the last.
        lost: fc.nat(10),
        late: fc.nat(4),
        early: fc.nat(4),
        printed: fc.boolean(),
      }),
      { maxLength: 5 },
    );
    fc.assert(
      fc.property(replies, (all) => {
        const text = new ReplyText();
        const replies = all.map(({ text: said, points, before }, n) => [
          ...(before === null ? [] : cut(n + 1, before, points)),
          ...cut(n + 1, said, points),
        ]);
        let late: Piece[] = [];
        for (const [n, one] of all.entries()) {
          let shown = "";
          const own = replies[n]!.filter((_, at) => at !== one.lost);
          const next = replies[n + 1]?.splice(0, one.early) ?? [];
          const after = own.splice(Math.max(0, own.length - one.late));
          for (const piece of [...late, ...own, ...next]) {
            text.add(piece);
            if (one.printed) shown += text.take();
          }
          late = after;
          const { rest, again } = text.end(n + 1, one.text);
          expect((again ? "" : shown) + rest).toBe(one.text.trimStart());
        }
      }),
      { numRuns: 2000 },
    );
  });

  it("prints nothing of a reply whose beginning was missed before it is whole, and knows the next one's pieces from its own", () => {
    const text = new ReplyText();
    text.add({ iteration: 1, offset: 4, text: "missed this." });
    expect(text.take()).toBe("");
    text.add({ iteration: 2, offset: 0, text: "And" });
    const whole = "You missed this. And more";
    expect(text.end(1, whole)).toEqual({ rest: whole, again: false });
    text.add({ iteration: 1, offset: 16, text: " And more" });
    expect(text.take()).toBe("And");
  });

  it("a try in the same turn begins anew: what it repeats is printed once, what differs once more and whole", () => {
    const text = new ReplyText();
    const add = (offset: number, piece: string) => text.add({ iteration: 1, offset, text: piece });
    add(0, "It is");
    expect(text.take()).toBe("It is");
    add(0, "It");
    expect(text.take()).toBe("");
    add(2, " is 4");
    expect(text.take()).toBe("");
    expect(text.end(1, "It is 4")).toEqual({ rest: " 4", again: false });
    text.add({ iteration: 2, offset: 0, text: "Yes" });
    expect(text.take()).toBe("Yes");
    text.add({ iteration: 2, offset: 0, text: "No" });
    expect(text.end(2, "No")).toEqual({ rest: "No", again: true });
    // What was not printed yet is nobody's loss.
    text.add({ iteration: 3, offset: 0, text: "Yes" });
    text.add({ iteration: 3, offset: 0, text: "No" });
    expect(text.take()).toBe("No");
  });
});

describe("RunView", () => {
  const started = (ms = 10, epoch = 1) => event("run.started", ms, { epoch, attempt: 1, worker: "w" });
  const result = (ms: number, name: string) =>
    event("tool.result", ms, { tool_name: name, status: "ok", output: 4, duration_ms: 1 });

  function view() {
    let text = "";
    const shown = new RunView((piece) => {
      text += piece;
    });
    return { shown, text: () => text, lines: () => text.trimEnd().split("\n") };
  }

  it("shows a reply's text after the tools it follows, though its pieces came before their results", () => {
    vi.useFakeTimers();
    const { shown, lines } = view();
    shown.show({ event: event("run.queued", 0, { agent: "default" }) });
    shown.show({ delta: { epoch: 1, iteration: 1, offset: 0, text: "I will" } });
    shown.show({ event: started() });
    shown.show({ event: reply(1, 100, "I will look.", ["look"]) });
    shown.show({ delta: { epoch: 1, iteration: 2, offset: 0, text: "It" } });
    vi.advanceTimersByTime(5000);
    shown.show({ event: result(200, "look") });
    shown.show({ delta: { epoch: 1, iteration: 2, offset: 2, text: " is 4." } });
    shown.show({ event: reply(2, 300, "It is 4.") });
    shown.show({ event: event("run.completed", 310, { output: "It is 4." }) });
    vi.useRealTimers();
    expect(lines().map((line) => line.slice(11).trim())).toEqual([
      "queued   for agent default",
      "started  by a worker",
      "model    I will look.",
      "tool     → look {}",
      "tool     ← look 4 (1 ms)",
      "model    It is 4.",
      "end      completed  310 ms, $0.0020, 30 tokens",
    ]);
  });

  it("begins anew when another worker takes over, and drops what the old one still says", () => {
    const { shown, text } = view();
    shown.show({ event: started(10, 1) });
    shown.show({ event: event("run.rescued", 500, {}) });
    shown.show({ event: started(510, 2) });
    shown.show({ delta: { epoch: 1, iteration: 1, offset: 0, text: "ghost" } });
    shown.show({ event: reply(1, 600, "Fresh.") });
    expect(text()).not.toContain("ghost");
    expect(text()).toContain("its worker died, another goes on");
  });

  it("says in words what the door did, and what to type where somebody is needed", () => {
    let text = "";
    const shown = new RunView((piece) => {
      text += piece;
    }, "run_1");
    const asked: Partial<EventData["approval.requested"]> = {
      approval_id: "apr_1",
      subject: "call",
      tool_name: "mail",
      input: { to: "a\u202eb" },
      reason: "It cannot be undone.",
      expires_at: "2026-11-22T09:30:00.000Z",
    };
    const decided = { approval_id: "apr_1", by: "key_1" };
    const call = { iteration: 1, index: 0, tool_name: "mail" };
    for (const one of [
      event("action.called", 0, { iteration: 1, call: { id: "c", name: "mail", input: { to: "x" } } }),
      event("approval.requested", 0, asked),
      event("approval.requested", 0, { ...asked, subject: "uncertain" }),
      event("run.waiting", 0, { waiting_for: "approval" }),
      event("approval.decided", 0, { ...decided, decision: "approve", edited_input: { to: "y" } }),
      event("approval.decided", 0, { ...decided, decision: "reject", note: "no" }),
      event("approval.decided", 0, { ...decided, decision: "expire", by: "system" }),
      event("run.resumed", 0, { waited_for: "approval" }),
      event("tool.verified", 0, { ...call, answer: "not_done" }),
      event("tool.held", 0, { ...call, status: "ok", output: "secret" }),
      event("policy.applied", 0, {
        policy: "pii",
        action: "redact",
        reason: "an e-mail address",
        stage: "result",
        tool_name: "mail",
      }),
      event("run.waiting", 0, { waiting_for: "budget", level: "run" }),
      event("run.waiting", 0, { waiting_for: "budget", level: "tenant_day" }),
      event("budget.raised", 0, { max_cost_usd: 2, action_budget: 9, by: "key_1" }),
      event("run.resumed", 0, { waited_for: "budget" }),
    ])
      shown.show({ event: one });
    expect(
      text
        .trimEnd()
        .split("\n")
        .map((line) => line.slice(11).trim()),
    ).toEqual([
      'action   → mail {"to":"x"}',
      'approval ? mail {"to":"a\\u{202e}b"}',
      "It cannot be undone.",
      "drover approve apr_1",
      'drover reject apr_1 --note "why"',
      "see it whole:  drover approvals apr_1   (until 2026-11-22T09:30:00.000Z)",
      'approval ? mail {"to":"a\\u{202e}b"}',
      "It cannot be undone.",
      "drover approve apr_1 --done     it took effect",
      "drover approve apr_1            it runs again",
      "drover reject apr_1             the run ends",
      "see it whole:  drover approvals apr_1   (until 2026-11-22T09:30:00.000Z)",
      "waiting  until somebody decides",
      'approval approved by key_1, with other arguments {"to":"y"}',
      "approval rejected by key_1: no",
      "approval expired by system",
      "resumed  it is decided",
      "tool     mail was cut off by a crash: it says that it did not take effect",
      "tool     held mail: the model does not see its result yet",
      "policy   redacted result of mail (pii): an e-mail address",
      "waiting  for its budget: its money is used up",
      "raise it:  drover budget --run run_1 --max-cost USD",
      "waiting  for its budget: the day's money is used up",
      "raise it:  drover budget --day USD",
      "budget   raised to $2.00 and 9 points by key_1",
      "resumed  there is budget again",
    ]);
  });

  it("never lets a model or a tool move the terminal's cursor", () => {
    const { shown, text } = view();
    shown.show({ event: started() });
    shown.show({ event: reply(1, 20, "a\u001b[2Jb\rc\u009bd") });
    shown.show({ event: result(30, "x\u001b]0;title\u0007") });
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what must not be there.
    expect(text()).not.toMatch(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/);
  });
});

describe("timeline", () => {
  it("draws waiting, model and tool calls where they were, in proportion", () => {
    const events = [
      event("run.queued", 0, {}),
      event("run.started", 100, {}),
      reply(1, 300, "x", ["wait"]),
      event("tool.result", 900, { tool_name: "wait", duration_ms: 600 }),
      event("run.completed", 1000, {}),
    ];
    expect(timelineOf(events).map(({ label, from, to }) => [label, from, to])).toEqual([
      ["queued", 0, 100],
      ["model 1", 200, 300],
      ["wait", 300, 900],
    ]);
    const [queued, model, wait] = drawTimeline(events) as [string, string, string];
    expect(queued).toMatch(/^queued {2}█{4} +100 ms$/);
    expect(model.indexOf("█")).toBeGreaterThan(queued.indexOf("█"));
    expect(wait).toMatch(/^wait +█{2}\S+ +600 ms$/);
    expect(new Set([queued, model, wait].map((line) => line.length)).size).toBe(1);
  });

  it("draws the time that a run waited for somebody apart from its time in the queue", () => {
    const events = [
      event("run.queued", 0, {}),
      event("run.started", 10, {}),
      event("run.waiting", 100, { waiting_for: "approval" }),
      event("run.resumed", 700, { waited_for: "approval" }),
      event("run.started", 720, {}),
      event("run.completed", 1000, {}),
    ];
    expect(timelineOf(events).map(({ label, from, to }) => [label, from, to])).toEqual([
      ["queued", 0, 10],
      ["waiting for approval", 100, 700],
      ["queued", 700, 720],
    ]);
  });

  it("of no events is nothing", () => expect(drawTimeline([])).toEqual([]));
});

describe("readable log lines", () => {
  const time = "2026-11-21T02:25:36.365Z";
  it("are one line with the fields, an error's reason included", () => {
    const line = JSON.stringify({
      level: 40,
      time,
      name: "worker",
      pid: 3,
      run: "r1",
      err: { message: "no way", stack: "S\n at x" },
      msg: "failed",
    });
    expect(readable("worker", line).replace(/^\S+ /, "")).toBe("worker   failed run=r1 error=no way");
  });
  it("keep an error's stack from level error on, and whatever is no record as it is", () => {
    const line = JSON.stringify({
      level: 50,
      time,
      err: { message: "no way", stack: "E: no way\n    at x" },
      msg: "failed",
    });
    expect(readable("api", line)).toMatch(/failed error=no way\n {4}at x$/);
    expect(readable("api", "{ no json")).toMatch(/api {6}\{ no json$/);
    expect(readable("api", '{"time":5,"msg":null}')).toMatch(/api/);
  });
});
