/**
 * A retry begins where its run stopped: what was finished is in its log, and neither done, asked nor paid for again. Over 500
 * lines because every case is told by the same two runs.
 */
import { type AnyTool, defineTool, type LogEvent, type NewEvent } from "@drover/harness";
import { toWireId } from "@drover/protocol";
import {
  cancelRun,
  decideApproval,
  listApprovals,
  type Retry,
  raiseRunBudget,
  retryRun,
  rollBack,
  type Submission,
} from "@drover/runs";
import { beforeEach, describe, expect, test } from "vitest";
import { z } from "zod";
import { stepsToCopy } from "../../packages/runs/src/submit/retry.ts";
import { input } from "./bench.ts";
import { dataOf, live } from "./live.ts";

const world = live();
/** `[tool, note, idempotency key]` of every call that was made. */
const made: [string, string, string][] = [];
let inCall = Promise.withResolvers<void>();
let hold = false;
let verified = 0;
beforeEach(() => {
  made.length = 0;
  hold = false;
  verified = 0;
  inCall = Promise.withResolvers();
});

const tool = (name: string, more: Partial<AnyTool>): AnyTool => ({
  ...(defineTool({
    name,
    description: `Does ${name}.`,
    input: z.object({ note: z.string() }),
    permission: "write",
    effect: "idempotent",
    timeoutMs: 300,
    async execute({ note }, { idempotencyKey }) {
      made.push([name, note, idempotencyKey]);
      inCall.resolve();
      if (hold) await new Promise(() => {});
      return `${name} ${note}`;
    },
  }) as AnyTool),
  ...more,
});
const tools = [
  tool("look", { permission: "read", effect: "pure" }),
  tool("put", { budgetCost: 2 }),
  tool("push", { effect: "unsafe" }),
  tool("send", { effect: "unsafe", permission: "irreversible" }),
  tool("fire", {
    effect: "unsafe",
    verify: () => {
      verified++;
      return "not_done" as const;
    },
  }),
];
const use = (name: string, note = name) => ({ toolCalls: [{ name, input: { note } }] });
const refused = { status: 400, message: "no such thing" };

const retryOf = (id: string, more: Partial<Retry> = {}) =>
  retryRun(world.bench.pool, world.bench.blobs, {
    tenant: "default",
    id,
    changes: {},
    callbackDecides: false,
    actor: "key_person",
    leaseMs: 0,
    ...more,
  });

/** Retries and wakes; the new run's id. */
async function retry(id: string, more: Partial<Retry> = {}): Promise<string> {
  const retried = (await retryOf(id, more))!;
  if (retried.made) await world.wake([retried.made]);
  return retried.id;
}

/** A run whose model is refused after these turns. */
async function failed(turns: ReturnType<typeof use>[], more: Partial<Submission> = {}) {
  world.models.script((call) => turns[call.turn] ?? refused);
  const id = await world.submit(more);
  return { id, ...(await world.rest(id)) };
}

const types = (log: LogEvent[]) => log.map(({ type }) => type);

test("goes on from the last good step, with the prompt that failed; what is copied is charged to nobody", async () => {
  await world.start({ tools });
  const big = "x".repeat(50_000);
  const old = await failed([use("look", big), use("put")], { metadata: { order: "42" }, userId: "ann", priority: 3 });
  expect(old.run).toMatchObject({ status: "partial", stopReason: "invalid_input", steps: 4 });
  expect(world.models.count).toBe(3);

  world.models.script(() => "All done.");
  const id = await retry(old.id);
  const { run, log, outcome } = await world.rest(id);
  expect(types(log)).toEqual([
    "run.queued",
    "model.call",
    "tool.result",
    "model.call",
    "tool.intent",
    "tool.result",
    "steps.copied",
    "run.started",
    "model.call",
    "run.completed",
  ]);
  expect(log.map(({ seq }) => seq)).toEqual(log.map((_, at) => at + 1));
  expect(log[0]!.data).toEqual({ ...old.log[0]!.data, retry_of: toWireId("run", old.id) });
  for (const type of ["model.call", "tool.result"] as const)
    expect(dataOf(log, type).slice(0, 2)).toEqual(dataOf(old.log, type).slice(0, 2));
  expect(made.map(([name]) => name)).toEqual(["look", "put"]);
  expect(world.models.count).toBe(4);
  expect(world.models.calls[3]!.rawBody).toBe(world.models.calls[2]!.rawBody);

  expect(run).toMatchObject({ status: "completed", retryOf: old.id, steps: 1, iterations: 1, attempt: 1 });
  expect(run).toMatchObject({ metadata: { order: "42" }, userId: "ann", priority: 3, submittedBy: "key_person" });
  const [cost] = dataOf(log, "model.call").slice(2);
  expect(run.costUsd).toBeGreaterThan(0);
  expect(run.costUsd).toBe(cost!.cost_usd);
  expect(outcome!.result).toMatchObject({ output: "All done.", iterations: 1, cost_usd: run.costUsd });
  expect(outcome!.result.tokens_used).toEqual(run.tokens);
  expect(outcome!.result.tools_called).toEqual(["look", "put"]);

  // Content over 32 kB is pointed at, not stored again.
  const pointers = `SELECT data->>'$blob' AS hash FROM run_events WHERE run_id = $1 AND type = 'tool.result' ORDER BY seq LIMIT 1`;
  const hashes = await Promise.all([old.id, id].map((of) => world.bench.pool.query(pointers, [of])));
  expect(hashes[0]!.rows[0].hash).toEqual(expect.any(String));
  expect(hashes[1]!.rows).toEqual(hashes[0]!.rows);
  expect(await world.log(old.id)).toEqual(old.log);
  expect(
    (await world.bench.pool.query("SELECT actor, action, data FROM audit_entries WHERE run_id = $1", [id])).rows[0],
  ).toEqual({
    actor: "key_person",
    action: "query.retried",
    data: { retry_of: toWireId("run", old.id), copied: 5 },
  });
});

test("a run out of iterations gets as many anew, and no two calls ever have one key", async () => {
  await world.start({ tools });
  world.models.script((call) => use("put", String(call.turn)));
  const first = await world.submit({ input: input({ max_iterations: 2 }) });
  expect((await world.rest(first)).run.stopReason).toBe("iteration_limit");
  const second = await retry(first);
  expect((await world.rest(second)).run).toMatchObject({ stopReason: "iteration_limit", iterations: 2 });
  const third = await retry(second, { changes: { max_iterations: 1 } });
  const { run, log, outcome } = await world.rest(third);
  expect(run).toMatchObject({ stopReason: "iteration_limit", iterations: 1, steps: 3 });
  expect(outcome!.error!.message).toContain("its 1 iterations");
  const turns = dataOf(log, "model.call").filter(({ wrap_up }) => !wrap_up);
  expect(turns.map(({ iteration }) => iteration)).toEqual([1, 2, 3, 4, 5]);
  expect(made.map(([, note]) => note)).toEqual(["0", "1", "2", "3", "4"]);
  expect(made.map(([, , key]) => key)).toEqual([
    `${first}:1:0`,
    `${first}:2:0`,
    `${second}:3:0`,
    `${second}:4:0`,
    `${third}:5:0`,
  ]);
});

test("twice retried, and a retry retried: each goes on by itself", async () => {
  await world.start({ tools });
  const { id } = await failed([use("put")]);
  world.models.script(() => "fine");
  const [a, b] = await Promise.all([retry(id), retry(id)]);
  expect(a).not.toBe(b);
  for (const one of [a, b]) expect((await world.rest(one)).run).toMatchObject({ status: "completed", retryOf: id });
  expect(made).toHaveLength(1);
});

describe("a call that was begun and not seen to end", () => {
  /** A run that was cancelled inside a call of this tool. */
  async function cutOff(name: string): Promise<string> {
    hold = true;
    world.models.script((call) => (call.turn === 0 ? use(name) : `told: ${call.results[0]!.content}`));
    const id = await world.submit();
    await inCall.promise;
    await cancelRun(world.bench.pool, "default", id, "key_person");
    expect((await world.rest(id)).run.status).toBe("cancelled");
    hold = false;
    return id;
  }

  test("an idempotent one is made again under its key, by every retry", async () => {
    await world.start({ tools });
    const id = await cutOff("put");
    for (const again of [await retry(id), await retry(id)])
      expect((await world.rest(again)).outcome!.result.output).toBe("told: put put");
    expect(made.map(([, , key]) => key)).toEqual(Array(3).fill(`${id}:1:0`));
    expect(world.models.count).toBe(3);
  });

  test("an unsafe one is verified first, and not before its last owner can have left it", async () => {
    await world.start({ tools });
    const id = await cutOff("fire");
    const { log } = await world.rest(await retry(id, { leaseMs: 500 }));
    expect(types(log).at(-1)).toBe("run.completed");
    const { finished_at } = await world.bench.row(id);
    const { at } = log.find(({ type }) => type === "tool.verified")!;
    expect(Date.parse(at) - finished_at.getTime()).toBeGreaterThanOrEqual(800);
    expect(verified).toBe(1);
    expect(made.map(([, , key]) => key)).toEqual(Array(2).fill(`${id}:1:0`));
  });

  test("an unsafe one without `verify` is asked about; by each retry for itself, and what one was told is not the other's", async () => {
    await world.start({ tools });
    const id = await cutOff("push");
    const again = await retry(id);
    const { run, log } = await world.rest(again);
    expect(run).toMatchObject({ status: "waiting", waitingFor: "approval" });
    expect(dataOf(log, "approval.requested")).toMatchObject([{ subject: "uncertain", tool_name: "push" }]);
    expect(made).toHaveLength(1);

    const [asked] = await listApprovals(world.bench.pool, "default", { runId: again, limit: 1 });
    const { resumed } = await decideApproval(world.bench.pool, world.bench.blobs, asked!, {
      decision: "fail",
      by: "key_person",
    });
    await world.wake([resumed!]);
    expect((await world.rest(again)).run).toMatchObject({ status: "failed", stopReason: "uncertain" });
    // Asked anew: the no that ended that run does not end this one.
    expect((await world.rest(await retry(again))).run.status).toBe("waiting");
    expect(made).toHaveLength(1);
  });
});

test("what a person allowed and nobody made use of is asked for anew; what was made is not", async () => {
  await world.start({ tools });
  world.models.script((call) => (call.turn === 0 ? use("send") : refused));
  const id = await world.submit();
  const open = (runId: string) => listApprovals(world.bench.pool, "default", { runId, status: "pending", limit: 5 });
  await world.rest(id);
  const [first] = await open(id);
  await cancelRun(world.bench.pool, "default", id, "key_person");
  const second = await retry(id);
  expect((await world.rest(second)).run.status).toBe("waiting");
  const [asked] = await open(second);
  expect(asked!.id).not.toBe(first!.id);
  expect(made).toEqual([]);

  const yes = { decision: "approve", by: "key_person" } as const;
  await world.wake([(await decideApproval(world.bench.pool, world.bench.blobs, asked!, yes)).resumed!]);
  expect((await world.rest(second)).run).toMatchObject({ status: "partial", stopReason: "invalid_input" });
  expect(made).toHaveLength(1);
  world.models.script(() => "sent");
  const third = await world.rest(await retry(second));
  expect(third.run.status).toBe("completed");
  expect(dataOf(third.log, "approval.decided")).toMatchObject([{ decision: "approve" }]);
  expect(made).toHaveLength(1);
});

test("caps hold for what the retry spends, as high as they were raised last", async () => {
  await world.start({ tools, agents: { default: { onBudget: "pause" } } });
  world.models.script((call) => (call.turn < 4 ? use("put", String(call.turn)) : "done"));
  const id = await world.submit({ input: input({ action_budget: 2, max_cost_usd: 5 }) });
  expect((await world.rest(id)).run).toMatchObject({ status: "waiting", waitingLevel: "actions" });
  const raised = await raiseRunBudget(
    world.bench.pool,
    world.bench.blobs,
    { tenant: "default", id },
    { actionBudget: 4 },
    "key_person",
  );
  await world.wake([raised!.resumed!]);
  expect((await world.rest(id)).run).toMatchObject({ status: "waiting", waitingLevel: "actions" });
  await cancelRun(world.bench.pool, "default", id, "key_person");
  expect(made).toHaveLength(2);

  const { run, log } = await world.rest(await retry(id, { changes: { max_cost_usd: 7 } }));
  expect(run.status).toBe("completed");
  expect(dataOf(log, "run.queued")).toMatchObject([{ action_budget: 4, max_cost_usd: 7 }]);
  expect(made.map(([, note]) => note)).toEqual(["0", "1", "2", "3"]);
});

test("time limits are new, and a deadline that has passed is dropped", async () => {
  await world.start({ tools });
  const soon = new Date(Date.now() + 300).toISOString();
  const limits = { soft_seconds: 25, hard_seconds: 30, deadline: soon };
  const id = await world.submit({ input: input({ limits }), delayMs: 3_600_000 });
  expect((await world.rest(id)).run).toMatchObject({ status: "failed", stopReason: "deadline" });
  world.models.script(() => "in time");
  const { run, log } = await world.rest(await retry(id));
  expect(run).toMatchObject({ status: "completed" });
  expect(dataOf(log, "run.queued")[0]!.limits).toEqual({ soft_seconds: 25, hard_seconds: 30 });
  // Nothing was finished, so nothing is copied.
  expect(types(log)).toEqual(["run.queued", "run.started", "model.call", "run.completed"]);

  const late = { ...limits, deadline: new Date(Date.now() + 3_600_000).toISOString() };
  const kept = await world.submit({ input: input({ limits: late }), delayMs: 3_600_000 });
  await cancelRun(world.bench.pool, "default", kept, "key_person");
  const again = await retry(kept);
  expect((await world.bench.row(again)).deadline.toISOString()).toBe(late.deadline);
  await world.rest(again);
});

test("permissions never grow: the run's own and those of whoever retries it hold", async () => {
  await world.start({ tools });
  const { id } = await failed([], { input: input({ permissions: ["read", "write"] }) });
  const granted = async (permissions?: Retry["permissions"]) =>
    dataOf(await world.log((await retryOf(id, { permissions }))!.id), "run.queued")[0]!.permissions;
  expect(await granted()).toEqual(["read", "write"]);
  expect(await granted(["read", "irreversible"])).toEqual(["read"]);
});

describe("refused", () => {
  const conflict = (message: string) => ({ code: "conflict", message: expect.stringContaining(message) });

  test("while it is open, after it completed, for a rollback, and where its steps are no longer true", async () => {
    await world.start({ tools: [...tools.slice(0, 1), { ...tools[1]!, compensate: async () => "undone" }] });
    const open = await world.submit({ delayMs: 60_000 });
    await expect(retryOf(open)).rejects.toMatchObject(conflict("queued"));
    world.models.script(() => "fine");
    const completed = await world.submit();
    await world.rest(completed);
    await expect(retryOf(completed)).rejects.toMatchObject(conflict("completed"));

    const { id } = await failed([use("put")]);
    const again = await world.rest(await retry(id));
    expect(again.run.status).toBe("partial");
    const undo = (await rollBack(world.bench.pool, "default", id, "key_person"))!;
    await world.wake([undo.made!]);
    expect((await world.rest(undo.id)).outcome!.result.output).toContain("1 of 1 effects undone");
    await expect(retryOf(id)).rejects.toMatchObject(conflict(toWireId("run", id)));
    await expect(retryOf(again.run.id)).rejects.toMatchObject(conflict(toWireId("run", id)));
    await expect(retryOf(undo.id)).rejects.toMatchObject(conflict("rollback"));

    // An effect belongs to the run that had it.
    const undoAgain = (await rollBack(world.bench.pool, "default", again.run.id, "key_person"))!;
    await world.wake([undoAgain.made!]);
    expect((await world.rest(undoAgain.id)).outcome!.result.output).toContain("nothing to undo");
  });

  test("a rollback, while a retry goes on with what the run did", async () => {
    await world.start({ tools });
    const { id } = await failed([use("put")]);
    const middle = await world.rest(await retry(id));
    const { id: going } = (await retryOf(middle.run.id))!;
    await expect(rollBack(world.bench.pool, "default", id, "key_person")).rejects.toMatchObject(
      conflict(toWireId("run", going)),
    );
    await cancelRun(world.bench.pool, "default", going, "key_person");
    expect((await rollBack(world.bench.pool, "default", id, "key_person"))!.made).not.toBeNull();
  });

  test("another tenant's run is none", async () => {
    const id = await world.submit();
    expect(await retryOf(id, { tenant: "other" })).toBeNull();
  });
});

test("one idempotency key makes one retry, however many ask at once; with other changes it is a mismatch", async () => {
  await world.start({ tools });
  const { id } = await failed([use("put")]);
  const key = (body: string) => ({ key: "again", bodyHash: Buffer.from(body.padEnd(32)) });
  const answers = await Promise.all(Array.from({ length: 10 }, () => retryOf(id, { idempotency: key("same") })));
  expect(new Set(answers.map((answer) => answer!.id)).size).toBe(1);
  expect(answers.filter((answer) => answer!.made)).toHaveLength(1);
  await expect(retryOf(id, { idempotency: key("other") })).rejects.toMatchObject({ code: "idempotency_mismatch" });
  const { rows } = await world.bench.pool.query("SELECT count(*) AS n FROM runs WHERE retry_of = $1", [id]);
  expect(rows[0].n).toBe(1);
});

describe("what is copied", () => {
  const usage = { input: 1, output: 1, cached: 0 };
  const call = (id: string, name: string) => ({ id, name, input: {} });
  const reply = (iteration: number, names: string[], more: object = {}): NewEvent => ({
    type: "model.call",
    data: {
      iteration,
      model: "m/m",
      text: "",
      tool_calls: names.map((name, at) => call(`${iteration}.${at}`, name)),
      finish_reason: "stop",
      usage,
      cost_usd: 0,
      duration_ms: 1,
      ...more,
    },
  });
  const about = (iteration: number, index = 0) => ({ iteration, index, call_id: "c", tool_name: "t" });
  const intent = (iteration: number): NewEvent => ({
    type: "tool.intent",
    data: { ...about(iteration), idempotency_key: "k" },
  });
  const result = (iteration: number, more: object = {}): NewEvent => ({
    type: "tool.result",
    data: { ...about(iteration), status: "ok", output: 1, duration_ms: 1, ...more },
  });
  const ask = (subject: "call" | "uncertain" | "input" | "result" | "output", more: object = {}): NewEvent => ({
    type: "approval.requested",
    data: {
      approval_id: subject,
      subject,
      iteration: 1,
      index: 0,
      input: {},
      reason: "r",
      hash: "h",
      expires_at: "2026-01-01T00:00:00.000Z",
      on_expiry: "reject",
      ...more,
    },
  });
  const say = (approval_id: string, decision: string): NewEvent =>
    ({ type: "approval.decided", data: { approval_id, decision, by: "p" } }) as NewEvent;
  const finding = (stage: "input" | "arguments" | "output", more: object = {}): NewEvent =>
    ({ type: "policy.applied", data: { stage, policy: "p", action: "flag", reason: "r", ...more } }) as NewEvent;
  const partial: NewEvent = { type: "model.partial", data: { iteration: 2, text: "half", cut: true } };
  const rescued: NewEvent = { type: "run.rescued", data: { worker: null } };

  const cases: [string, [NewEvent, boolean][]][] = [
    [
      "turns and results, and nothing of how they came about",
      [
        [{ type: "run.started", data: { epoch: 1, attempt: 1, worker: "w" } }, false],
        [finding("input"), true],
        [reply(1, ["t"]), true],
        [result(1), true],
        [rescued, false],
        [partial, false],
      ],
    ],
    [
      "a call cut short by the run's limit is open again, and so is one whose time it was not",
      [
        [reply(1, ["t", "t"]), true],
        [intent(1), true],
        [result(1, { status: "skipped", problem: "time" }), false],
        [result(1, { ...about(1, 1), status: "skipped", problem: "budget" }), false],
        [reply(2, [], { wrap_up: true }), false],
      ],
    ],
    [
      "an intent without an outcome stays one",
      [
        [reply(1, ["t"]), true],
        [intent(1), true],
      ],
    ],
    [
      "an answer that a policy withheld",
      [
        [reply(1, ["t"]), true],
        [result(1), true],
        [finding("output", { iteration: 2 }), false],
        [reply(2, [], { withheld: true }), false],
      ],
    ],
    [
      "an answer that a person refused",
      [
        [reply(1, [], { held: true }), false],
        [ask("output", { iteration: undefined, index: undefined }), false],
        [say("output", "reject"), false],
      ],
    ],
    [
      "an answer that nobody has looked at yet",
      [
        [reply(1, [], { held: true }), true],
        [ask("output", { iteration: undefined, index: undefined }), false],
      ],
    ],
    [
      "an answer that a person let pass",
      [
        [reply(1, [], { held: true }), true],
        [ask("output", { iteration: undefined, index: undefined }), true],
        [say("output", "approve"), true],
      ],
    ],
    [
      "an input that a person let pass",
      [
        [ask("input", { iteration: undefined, index: undefined }), true],
        [say("input", "approve"), true],
      ],
    ],
    [
      "an input that a person refused is asked about anew",
      [
        [ask("input", { iteration: undefined, index: undefined }), false],
        [say("input", "reject"), false],
      ],
    ],
    [
      "a call that was allowed and begun",
      [
        [reply(1, ["t"]), true],
        [finding("arguments", about(1)), true],
        [ask("call"), true],
        [say("call", "approve"), true],
        [intent(1), true],
      ],
    ],
    [
      "a call that was allowed and never begun",
      [
        [reply(1, ["t"]), true],
        [finding("arguments", about(1)), false],
        [ask("call"), false],
        [say("call", "approve"), false],
      ],
    ],
    [
      "a person's no",
      [
        [reply(1, ["t"]), true],
        [ask("call"), true],
        [say("call", "reject"), true],
      ],
    ],
    [
      "a person's silence",
      [
        [reply(1, ["t"]), true],
        [ask("call"), false],
        [say("call", "expire"), false],
      ],
    ],
    [
      "what a person knows about a call",
      [
        [reply(1, ["t"]), true],
        [intent(1), true],
        [ask("uncertain"), true],
        [say("uncertain", "done"), true],
      ],
    ],
    [
      "leave to try a call again is for once",
      [
        [reply(1, ["t"]), true],
        [intent(1), true],
        [ask("uncertain"), false],
        [say("uncertain", "retry"), false],
      ],
    ],
  ];

  test.each(cases)("%s", (_, events) => {
    const all = [[{ type: "run.queued", data: input() } as NewEvent, false] as const, ...events];
    const log = all.map(([event], at) => ({ ...event, seq: at + 1, at: "2026-01-01T00:00:00.000Z" }) as LogEvent);
    expect(stepsToCopy(log)).toEqual(all.flatMap(([, copied], at) => (copied ? [at + 1] : [])));
  });
});
