/** Rollback runs: asked for by a person or owed by a failure, made once, carried out like any run, whatever dies on the way. */
import { type AnyTool, defineTool } from "@drover/harness";
import { fromWireId } from "@drover/protocol";
import { cancelRun, decideApproval, readApproval, rollBack } from "@drover/runs";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { makeRollbacks } from "../../packages/runs/src/moves/create.ts";
import { leaveRuns } from "../../packages/runs/src/moves/leave.ts";
import { createGate } from "../support/model-server.ts";
import { input } from "./bench.ts";
import { dataOf, live } from "./live.ts";
import { createOwner } from "./owner.ts";

const world = live();

interface Undone {
  n: number;
  key: string;
}

/** Tools that note what they undo. `hang`: undoing this one never ends. */
function toolsOf(undone: Undone[], hang?: { n: number; hanging(): boolean }): AnyTool[] {
  const base = (name: string, more: Partial<AnyTool>): AnyTool =>
    defineTool({
      name,
      description: name,
      input: z.object({ n: z.number() }),
      permission: "write",
      effect: "idempotent",
      execute: ({ n }) => ({ made: n }),
      timeoutMs: 20_000,
      compensate: async ({ input: { n }, output }, { idempotencyKey, signal }) => {
        expect(output).toEqual({ made: n });
        undone.push({ n, key: idempotencyKey });
        if (hang && hang.n === n && hang.hanging())
          await new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
      },
      ...more,
    }) as AnyTool;
  return [
    base("write", {}),
    base("unsafe", { effect: "unsafe", timeoutMs: 300 }),
    base("bare", { compensate: undefined }),
  ].map((tool) => {
    if (tool.compensate === undefined) delete tool.compensate;
    return tool;
  });
}

/** The model calls these tools, one a turn, with n = 0, 1, …, and then says `Done.`, or fails for good. */
function script(names: string[], end: "ends" | "fails" = "ends") {
  world.models.script(({ turn }) => {
    const name = names[turn];
    if (name) return { toolCalls: [{ name, input: { n: turn } }] };
    return end === "ends" ? "Done." : { status: 401, message: "invalid key" };
  });
}

const ask = async (id: string) => {
  const answer = (await rollBack(world.bench.pool, "default", id, "key_operator"))!;
  if (answer.made) await world.wake([answer.made]);
  return answer;
};
const rollbacksOf = async (id: string) =>
  (
    await world.bench.pool.query("SELECT id, kind, of_run, agent, submitted_by, status FROM runs WHERE of_run = $1", [
      id,
    ])
  ).rows;

describe("asked for", () => {
  test("undoes in the reverse order, says what it could not undo, and leaves the run what it was", async () => {
    const undone: Undone[] = [];
    await world.start({ tools: toolsOf(undone) });
    script(["write", "bare", "write"]);
    const id = await world.submit({ submittedBy: "key_client", metadata: { a: "b" } });
    const before = await world.rest(id);
    expect(before.run.status).toBe("completed");
    const { id: rollback } = await ask(id);
    const { run, outcome, log } = await world.rest(rollback);
    expect(run).toMatchObject({
      status: "completed",
      kind: "rollback",
      ofRun: id,
      submittedBy: "key_client",
      metadata: { a: "b" },
      costUsd: 0,
    });
    expect(undone.map(({ n }) => n)).toEqual([2, 0]);
    expect(outcome!.result.output).toBe(
      [
        "2 of 3 effects undone, the last one first.",
        'undone: write {"n":2}',
        'NOT undone: bare {"n":1} (the tool has no compensate)',
        'undone: write {"n":0}',
      ].join("\n"),
    );
    expect(dataOf(log, "tool.intent").map(({ tool_name }) => tool_name)).toEqual(["undo_3_0_write", "undo_1_0_write"]);
    expect(world.models.count).toBe(4);
    expect(await world.log(id)).toEqual(before.log);
    const { rows } = await world.bench.pool.query(
      "SELECT actor, action FROM audit_entries WHERE run_id = $1 AND action LIKE 'rollback.%'",
      [id],
    );
    expect(rows).toEqual([{ actor: "key_operator", action: "rollback.requested" }]);
  });

  test("twice, also at the same time, gives the same rollback", async () => {
    const undone: Undone[] = [];
    await world.start({ tools: toolsOf(undone) });
    script(["write"]);
    const id = await world.submit();
    await world.rest(id);
    const answers = await Promise.all([1, 2, 3, 4].map(() => ask(id)));
    expect(new Set(answers.map((answer) => answer.id)).size).toBe(1);
    expect(answers.filter(({ made }) => made)).toHaveLength(1);
    await world.rest(answers[0]!.id);
    expect(await ask(id)).toEqual({ id: answers[0]!.id, made: null });
    expect(undone).toHaveLength(1);
  });

  test("of what is not final, of a rollback, and of another tenant's run: refused", async () => {
    const undone: Undone[] = [];
    await world.start({ tools: toolsOf(undone) });
    const gate = createGate();
    world.models.script(() => ({ text: "slow", gate }));
    const id = await world.submit();
    await gate.arrived();
    await expect(ask(id)).rejects.toMatchObject({ code: "conflict", message: expect.stringContaining("running") });
    expect(await rollBack(world.bench.pool, "other", id, "key_operator")).toBeNull();
    gate.open();
    await world.rest(id);
    const { id: rollback } = await ask(id);
    expect((await world.rest(rollback)).outcome!.result.output).toBe(
      "There was nothing to undo: the run changed nothing.",
    );
    await expect(ask(rollback)).rejects.toMatchObject({ code: "conflict", message: "This run is a rollback itself." });
  });

  test("a rollback that was cancelled before it began can be asked for again", async () => {
    script(["write"]);
    const undone: Undone[] = [];
    const worker = await world.start({ tools: toolsOf(undone) });
    const id = await world.submit();
    await world.rest(id);
    await worker.stop(0);
    const first = await ask(id);
    await cancelRun(world.bench.pool, "default", first.id, "key_operator");
    const second = await ask(id);
    expect(second.id).not.toBe(first.id);
    await world.start({ tools: toolsOf(undone) });
    await world.rest(second.id);
    expect(undone).toHaveLength(1);
  });
});

describe("onFailure: rollback", () => {
  const agents = { default: { onFailure: "rollback" as const } };

  test("a run that ends partial or failed is undone; one that completes is not", async () => {
    const undone: Undone[] = [];
    await world.start({ tools: toolsOf(undone), agents });
    script(["write", "write"], "fails");
    const id = await world.submit();
    expect((await world.rest(id)).run).toMatchObject({ status: "partial", stopReason: "auth_failed" });
    await world.until("SELECT count(*) FROM runs WHERE of_run = $1 AND status = 'completed'", [id], { count: 1 });
    expect(undone.map(({ n }) => n)).toEqual([1, 0]);
    script(["write"]);
    const fine = await world.submit();
    expect((await world.rest(fine)).run.status).toBe("completed");
    expect((await world.bench.row(fine)).rollback).toBeNull();
    expect(await rollbacksOf(fine)).toEqual([]);
  });

  test("the worker dies right after the settling commit: exactly one rollback, by whoever comes next", async () => {
    const owner = await createOwner(world.bench);
    const run = await owner.own();
    await world.bench.pool.query("UPDATE runs SET steps = 1 WHERE id = $1", [run.id]);
    // Committed, and the one who should make the rollback is gone.
    const [left] = await leaveRuns(world.bench.pool, [
      await world.bench.leaving(run, { status: "partial", rollback: true }),
    ]);
    expect(left!.rollbackOwed).toBe(true);
    expect(await rollbacksOf(run.id)).toEqual([]);
    const made = await Promise.all([
      makeRollbacks(world.bench.pool, "all"),
      makeRollbacks(world.bench.pool, [run.id]),
      makeRollbacks(world.bench.pool, "all"),
    ]);
    expect(made.flat()).toHaveLength(1);
    expect(await rollbacksOf(run.id)).toHaveLength(1);

    const other = await owner.own();
    await world.bench.pool.query("UPDATE runs SET steps = 1 WHERE id = $1", [other.id]);
    await leaveRuns(world.bench.pool, [await world.bench.leaving(other, { status: "failed", rollback: true })]);
    await world.start();
    await world.until("SELECT count(*) FROM runs WHERE of_run = $1 AND status = 'completed'", [other.id], { count: 1 });
    expect(await rollbacksOf(other.id)).toHaveLength(1);
    expect((await world.bench.row(other.id)).rollback).toBe("made");
  });

  test("a cancelled run, one given back, and one that never did a step owe none", async () => {
    const owner = await createOwner(world.bench);
    const idle = await owner.own();
    const [left] = await leaveRuns(world.bench.pool, [
      await world.bench.leaving(idle, { status: "failed", rollback: true }),
    ]);
    expect(left!.rollbackOwed).toBe(false);
    const [cancelled, back] = [await owner.own(), await owner.own()];
    await world.bench.pool.query("UPDATE runs SET steps = 1 WHERE id = ANY($1)", [[cancelled.id, back.id]]);
    await cancelRun(world.bench.pool, "default", cancelled.id, "key_a");
    await leaveRuns(world.bench.pool, [await world.bench.leaving(cancelled, { status: "partial", rollback: true })]);
    await leaveRuns(world.bench.pool, [
      await world.bench.leaving(back, { status: "queued", eventType: "run.handed_over", rollback: true }),
    ]);
    expect([(await world.bench.row(cancelled.id)).rollback, (await world.bench.row(back.id)).rollback]).toEqual([
      null,
      null,
    ]);
  });
});

test.each([
  ["idempotent", "write", [2, 1, 1, 0], "3 of 3 effects undone"],
  ["unsafe", "unsafe", [2, 1, 0], "2 of 3 effects undone"],
] as const)(
  "cancelled in the middle of an %s undo and asked for again: what the first one undid is left alone",
  async (_, name, order, report) => {
    const undone: Undone[] = [];
    let hanging = true;
    await world.start({ tools: toolsOf(undone, { n: 1, hanging: () => hanging }) });
    script([name, name, name]);
    const id = await world.submit();
    await world.rest(id);
    const first = await ask(id);
    await expect.poll(() => undone.length, { timeout: 20_000, interval: 10 }).toBe(2);
    await cancelRun(world.bench.pool, "default", first.id, "key_operator");
    expect((await world.rest(first.id)).run.status).toBe("cancelled");
    hanging = false;
    const second = await ask(id);
    expect(second.id).not.toBe(first.id);
    const end = await world.rest(second.id);
    expect(end.run.status).toBe("completed");
    expect(undone.map(({ n }) => n)).toEqual(order);
    expect(end.outcome!.result.output).toContain(report);
    if (name === "unsafe")
      expect(end.outcome!.result.output).toContain(
        'NOT undone: unsafe {"n":1} (an earlier rollback may have undone it)',
      );
  },
);

describe("killed in the middle", () => {
  /** A rollback whose owner is declared dead while the undoing of call 1 hangs. */
  async function interrupted(name: "write" | "unsafe") {
    const undone: Undone[] = [];
    let hanging = true;
    const worker = await world.start({ tools: toolsOf(undone, { n: 1, hanging: () => hanging }) });
    script([name, name, name]);
    const id = await world.submit();
    await world.rest(id);
    const { id: rollback } = await ask(id);
    await expect.poll(() => undone.length, { timeout: 20_000, interval: 10 }).toBe(2);
    hanging = false;
    await world.bench.pool.query("DELETE FROM workers WHERE id = $1", [worker.workerId]);
    return { undone, ...(await world.rest(rollback)) };
  }

  test("idempotent: it goes on with the same key, and what was undone is not undone again", async () => {
    const { undone, run, outcome, log } = await interrupted("write");
    expect(run.status).toBe("completed");
    expect(log.map(({ type }) => type)).toContain("run.rescued");
    expect(undone.map(({ n }) => n)).toEqual([2, 1, 1, 0]);
    expect(undone[2]!.key).toBe(undone[1]!.key);
    expect(new Set(undone.map(({ key }) => key)).size).toBe(3);
    expect(outcome!.result.output).toContain("3 of 3 effects undone");
  });

  test("unsafe: a person is asked, and what they say stands in the report", async () => {
    const { undone, run, log } = await interrupted("unsafe");
    expect(run.status).toBe("waiting");
    expect(undone.map(({ n }) => n)).toEqual([2, 1]);
    const question = dataOf(log, "approval.requested")[0]!;
    expect(question).toMatchObject({ subject: "uncertain", tool_name: "undo_2_0_unsafe" });
    const asked = (await readApproval(world.bench.pool, "default", fromWireId("approval", question.approval_id)!))!;
    const { resumed } = await decideApproval(world.bench.pool, world.bench.blobs, asked, {
      decision: "done",
      by: "key_operator",
    });
    await world.wake([resumed!]);
    const end = await world.rest(run.id);
    expect(end.run.status).toBe("completed");
    expect(undone.map(({ n }) => n)).toEqual([2, 1, 0]);
    expect(end.outcome!.result.output).toContain("3 of 3 effects undone");
  });

  test("unsafe, and a person gives up on that one: the rollback ends, and says what it undid", async () => {
    const { run, log } = await interrupted("unsafe");
    const question = dataOf(log, "approval.requested")[0]!;
    const asked = (await readApproval(world.bench.pool, "default", fromWireId("approval", question.approval_id)!))!;
    const { resumed } = await decideApproval(world.bench.pool, world.bench.blobs, asked, {
      decision: "fail",
      by: "key_operator",
    });
    await world.wake([resumed!]);
    const end = await world.rest(run.id);
    expect(end.run).toMatchObject({ status: "partial", stopReason: "uncertain" });
    expect(end.outcome!.result.tool_calls.map(({ status }) => status)).toEqual(["ok", "uncertain"]);
  });
});

test("the limits of a rollback are its own, however little time its run had", async () => {
  const undone: Undone[] = [];
  await world.start({ tools: toolsOf(undone) });
  script(["write"]);
  const id = await world.submit({
    input: input({ limits: { soft_seconds: 2, hard_seconds: 3 }, action_budget: 0, max_cost_usd: 1 }),
  });
  await world.rest(id);
  const { id: rollback } = await ask(id);
  expect((await world.bench.row(rollback)).hard_ms).toBe(1_800_000);
  expect((await world.rest(rollback)).run.status).toBe("completed");
  expect(undone).toHaveLength(1);
});
