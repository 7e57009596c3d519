import { randomUUID } from "node:crypto";
import type { NewEvent } from "@drover/harness";
import { uuidv7 } from "@drover/protocol";
import { readLog } from "@drover/runs";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createLogWriter, LostOwnershipError } from "../../packages/runs/src/log/append.ts";
import { closeBatches } from "../../packages/runs/src/moves/batch.ts";
import { cancelRuns } from "../../packages/runs/src/moves/cancel.ts";
import { leaveRuns, readLeft } from "../../packages/runs/src/moves/leave.ts";
import { findOverdue, takeOver } from "../../packages/runs/src/moves/rescue.ts";
import { wakeDue } from "../../packages/runs/src/moves/wake.ts";
import { claimMany, claimRuns } from "../support/claim.ts";
import { createBench, submission } from "./bench.ts";

let bench: Awaited<ReturnType<typeof createBench>>;
let append: ReturnType<typeof createLogWriter>;
beforeAll(async () => {
  bench = await createBench();
  append = createLogWriter(bench.pool, bench.blobs, new AbortController().signal);
});
afterAll(() => bench.close());

const types = async (runId: string) =>
  (await readLog(bench.pool, bench.blobs, { tenant: "default", runId })).map((event) => event.type);
const messages = async (runId: string) =>
  (await bench.pool.query("SELECT type FROM messages WHERE run_id = $1", [runId])).rows.map((row) => row.type);
const reply = (iteration: number): Extract<NewEvent, { type: "model.call" }> => ({
  type: "model.call" as const,
  data: {
    iteration,
    model: "x/y",
    text: `t${iteration}`,
    tool_calls: [],
    finish_reason: "stop",
    usage: { input: 10, output: 5, cached: 2 },
    cost_usd: 0.001,
    duration_ms: 1,
  },
});

test("twenty workers race for one run: one claim wins", async () => {
  const id = await bench.submit();
  const workers = await Promise.all(Array.from({ length: 20 }, () => bench.addWorker()));
  const claims = await Promise.all(workers.map((worker) => claimRuns(bench.pool, worker, [id])));
  expect(claims.flat()).toHaveLength(1);
  expect(claims.flat()[0]).toMatchObject({ id, epoch: 1, attempt: 1, lastSeq: 2, softInMs: 25_000, hardInMs: 30_000 });
  expect(await types(id)).toEqual(["run.queued", "run.started"]);
});

test("a worker without a live row claims nothing, not by id and not by order", async () => {
  const id = await bench.submit();
  const silent = await bench.addWorker(1);
  await bench.pool.query("UPDATE workers SET heartbeat_at = now() - interval '1 minute' WHERE id = $1", [silent]);
  for (const worker of [silent, uuidv7()]) {
    expect(await claimRuns(bench.pool, worker, [id])).toEqual([]);
    expect(await claimMany(bench.pool, worker, 10)).toEqual([]);
  }
  expect((await bench.row(id)).status).toBe("queued");
});

test.each([
  ["not due yet", "available_at = now() + interval '1 minute'"],
  ["asked to be cancelled", "cancel_requested_at = now()"],
  ["of a newer log version", "log_version = 2"],
])("a run that is %s is not claimed", async (_, change) => {
  const id = await bench.submit();
  await bench.pool.query(`UPDATE runs SET ${change} WHERE id = $1`, [id]);
  const worker = await bench.addWorker();
  expect(await claimRuns(bench.pool, worker, [id])).toEqual([]);
  await bench.pool.query("DELETE FROM run_events WHERE run_id = $1", [id]);
  await bench.pool.query("DELETE FROM runs WHERE id = $1", [id]);
});

test("appends are gap-free, many at once, and add up in the row; a finished step starts attempts again", async () => {
  const worker = await bench.addWorker();
  const id = await bench.submit();
  await bench.pool.query("UPDATE runs SET attempt = 3, crashes = 2 WHERE id = $1", [id]);
  const run = await bench.claim(worker, id);
  const appended = await Promise.all(
    Array.from({ length: 50 }, (_, index) =>
      append({ runId: id, epoch: run.epoch, tenant: "default", event: reply(index + 1) }),
    ),
  );
  expect(appended.map((one) => one.seq)).toEqual(Array.from({ length: 50 }, (_, index) => index + 3));
  expect(await bench.row(id)).toMatchObject({
    last_seq: 52,
    steps: 50,
    iterations: 50,
    cost_nanos: 50_000_000,
    input_tokens: 500,
    output_tokens: 250,
    cached_tokens: 100,
    attempt: 1,
    crashes: 0,
  });
});

test("only runs inside code of users are blamed for a death; when there is none, all are", async () => {
  const holding = async (inside: number) => {
    const worker = await bench.addWorker();
    const ids = await Promise.all([1, 2, 3].map(() => bench.submit()));
    for (const [index, id] of ids.entries()) {
      const { epoch } = await bench.claim(worker, id);
      const event = reply(1);
      if (index < inside) event.data.tool_calls = [{ id: "c1", name: "spin", input: {} }];
      await append({ runId: id, epoch, tenant: "default", event, userCode: index < inside });
    }
    await bench.endWorker(worker);
    // In slices, as of thousands.
    for (let left = 3; left > 0; ) left -= (await takeOver(bench.pool, 1)).length;
    const crashes = await Promise.all(ids.map(async (id) => (await bench.row(id)).crashes));
    await bench.pool.query("DELETE FROM runs WHERE id = ANY($1::uuid[])", [ids]);
    return crashes;
  };
  expect(await holding(1)).toEqual([1, 0, 0]);
  expect(await holding(2)).toEqual([1, 1, 0]);
  expect(await holding(0)).toEqual([1, 1, 1]);
});

test("a group of suspects that dies is tried again in smaller ones, and ends nobody; alone, the third death is a run's own", async () => {
  const ids = await Promise.all([1, 2, 3, 4].map(() => bench.submit()));
  await bench.pool.query("UPDATE runs SET crashes = 2 WHERE id = ANY($1::uuid[])", [ids]);
  const group = await bench.addWorker();
  expect(await claimRuns(bench.pool, group, ids, { suspects: 3 })).toHaveLength(3);
  await bench.endWorker(group);
  expect(await takeOver(bench.pool, 100)).toHaveLength(3);
  expect(await findOverdue(bench.pool, { graceMs: 15_000, most: 100 })).toEqual([]);
  const alone = await bench.addWorker();
  const [first, ...more] = await claimRuns(bench.pool, alone, ids, { suspects: 1 });
  expect([first!.crashes, more]).toEqual([2, []]);
  await bench.endWorker(alone);
  expect((await takeOver(bench.pool, 1000)).map((run) => run.runId)).not.toContain(first!.id);
  expect(await findOverdue(bench.pool, { graceMs: 15_000, most: 100 })).toMatchObject([
    { id: first!.id, cause: "crash_loop" },
  ]);
  await bench.pool.query("DELETE FROM runs WHERE id = ANY($1::uuid[])", [ids]);
});

test("a fenced owner writes nothing: not an event, not an end", async () => {
  const [first, second] = await Promise.all([bench.addWorker(), bench.addWorker()]);
  const id = await bench.submit();
  const old = await bench.claim(first, id);
  await bench.pool.query("DELETE FROM workers WHERE id = $1", [first]);
  expect((await takeOver(bench.pool, 100)).map((run) => run.runId)).toContain(id);
  const fresh = await bench.claim(second, id);
  expect(fresh.epoch).toBe(2);
  const before = await types(id);
  await expect(append({ runId: id, epoch: old.epoch, tenant: "default", event: reply(1) })).rejects.toBeInstanceOf(
    LostOwnershipError,
  );
  expect(await leaveRuns(bench.pool, [await bench.leaving(old)])).toEqual([]);
  expect(await types(id)).toEqual(before);
  // The same statement carries the old owner's and the new owner's append: only one counts.
  const both = await Promise.allSettled([
    append({ runId: id, epoch: old.epoch, tenant: "default", event: reply(1) }),
    append({ runId: id, epoch: fresh.epoch, tenant: "default", event: reply(1) }),
  ]);
  expect(both.map((result) => result.status)).toEqual(["rejected", "fulfilled"]);
  expect(await types(id)).toEqual([...before, "model.call"]);
});

test("taking over raises crashes and epoch only, and adds the time owned", async () => {
  const worker = await bench.addWorker();
  const id = await bench.submit();
  await bench.claim(worker, id);
  await bench.pool.query("UPDATE runs SET claimed_at = now() - interval '7 seconds' WHERE id = $1", [id]);
  await bench.pool.query("UPDATE workers SET heartbeat_at = now() WHERE id = $1", [worker]);
  expect((await takeOver(bench.pool, 100)).map((run) => run.runId)).not.toContain(id);
  await bench.endWorker(worker);
  expect((await takeOver(bench.pool, 100)).map((run) => run.runId)).toContain(id);
  const row = await bench.row(id);
  expect(row).toMatchObject({ status: "queued", crashes: 1, attempt: 1, epoch: 1, wake: 2, woken: true, worker: null });
  expect(row.active_ms).toBeGreaterThanOrEqual(7000);
  expect((await types(id)).at(-1)).toBe("run.rescued");
});

describe("everything was away for an hour, and longer than the run's hard limit", () => {
  /** A run claimed an hour ago, whose dead owner was heard of for so long. */
  async function deadFor(workedSeconds: number): Promise<{ id: string; worker: string }> {
    const worker = await bench.addWorker();
    const id = await bench.submit();
    await bench.claim(worker, id);
    await bench.pool.query(
      `UPDATE runs SET claimed_at = claimed_at - interval '1 hour', soft_at = soft_at - interval '1 hour', hard_at = hard_at - interval '1 hour'
       WHERE id = $1`,
      [id],
    );
    await bench.pool.query(
      "UPDATE workers SET heartbeat_at = (SELECT claimed_at FROM runs WHERE id = $2) + $3 * interval '1 second' WHERE id = $1",
      [worker, id, workedSeconds],
    );
    await bench.endWorker(worker);
    return { id, worker };
  }
  const overdue = async (id: string) =>
    (await findOverdue(bench.pool, { graceMs: 15_000, most: 100 })).find((run) => run.id === id);

  test("its time ended with its owner's last heartbeat: it is taken over, with the rest of its time", async () => {
    const { id } = await deadFor(3);
    expect(await overdue(id)).toBeUndefined();
    expect((await takeOver(bench.pool, 100)).map((run) => run.runId)).toContain(id);
    expect((await bench.row(id)).active_ms).toBe(3000);
    const next = await bench.claim(await bench.addWorker(), id);
    expect(next).toMatchObject({ softInMs: 22_000, hardInMs: 27_000 });
  });

  test("one that had used up its time ends by it, and the hour is not counted", async () => {
    const { id } = await deadFor(31);
    expect((await takeOver(bench.pool, 100)).map((run) => run.runId)).not.toContain(id);
    const found = (await overdue(id))!;
    expect(found).toMatchObject({ cause: "time_limit" });
    const ending = await bench.leaving(found, { status: "partial", stopReason: "time_limit" });
    await leaveRuns(bench.pool, [ending], "unowned");
    expect(await bench.row(id)).toMatchObject({ status: "partial", active_ms: 31_000 });
  });

  test("without its owner's row, its newest event is the last that is known of it", async () => {
    const { id, worker } = await deadFor(3);
    await bench.pool.query("DELETE FROM workers WHERE id = $1", [worker]);
    await bench.pool.query(
      "UPDATE run_events SET at = (SELECT claimed_at FROM runs WHERE id = $1) + interval '5 seconds' WHERE run_id = $1 AND seq = 2",
      [id],
    );
    expect((await takeOver(bench.pool, 100)).map((run) => run.runId)).toContain(id);
    expect((await bench.row(id)).active_ms).toBe(5000);
  });

  test("one that kept killing its workers still ends as a crash loop, one past its deadline by that", async () => {
    const looping = await deadFor(3);
    await bench.pool.query("UPDATE runs SET crashes = 2 WHERE id = $1", [looping.id]);
    expect(await overdue(looping.id)).toMatchObject({ cause: "crash_loop" });
    const late = await deadFor(3);
    await bench.pool.query("UPDATE runs SET deadline = now() - interval '1 minute' WHERE id = $1", [late.id]);
    expect(await overdue(late.id)).toMatchObject({ cause: "deadline" });
  });

  test("a living worker that holds it so long is not excused", async () => {
    const { id, worker } = await deadFor(3);
    await bench.pool.query("UPDATE workers SET dead_at = NULL, cause = NULL, blames_all = NULL WHERE id = $1", [
      worker,
    ]);
    expect(await overdue(id)).toMatchObject({ cause: "time_limit" });
  });
});

test("whose death counts against whom: a crash against all, a block against its culprit, silence and a good end against nobody", async () => {
  const after = async (how: (worker: string, id: string) => Promise<unknown>) => {
    const worker = await bench.addWorker();
    const id = await bench.submit();
    await bench.claim(worker, id);
    await how(worker, id);
    await takeOver(bench.pool, 100);
    const { crashes, status } = await bench.row(id);
    const log = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: id });
    return { crashes, status, rescued: log.at(-1)!.data };
  };
  const crashed = await after((worker) => bench.endWorker(worker, "crashed"));
  expect(crashed).toMatchObject({ crashes: 1, status: "queued", rescued: { cause: "crashed", crashes: 1 } });
  expect((crashed.rescued as { quiet_at: string }).quiet_at).toMatch(/^\d{4}-.*Z$/);
  expect(await after((worker) => bench.endWorker(worker, "silent"))).toMatchObject({
    crashes: 0,
    rescued: { cause: "silent" },
  });
  expect(await after((worker, id) => bench.endWorker(worker, "blocked", id))).toMatchObject({
    crashes: 1,
    rescued: { cause: "blocked", tool_name: "spin" },
  });
  expect(await after((worker) => bench.endWorker(worker, "blocked", randomUUID()))).toMatchObject({ crashes: 0 });
  expect(await after((worker) => bench.endWorker(worker, "blocked"))).toMatchObject({ crashes: 1 });
  expect(await after((worker) => bench.pool.query("DELETE FROM workers WHERE id = $1", [worker]))).toMatchObject({
    crashes: 0,
    status: "queued",
  });
});

test("a run that lost two owners waits, and is claimed as the only such run of a worker; the third loss is left to be ended", async () => {
  const ids = await Promise.all([1, 2, 3].map(() => bench.submit()));
  const crash = async (run: string) => {
    const worker = await bench.addWorker();
    await bench.claim(worker, run);
    await bench.endWorker(worker);
    await takeOver(bench.pool, 100);
  };
  for (const id of ids) {
    await crash(id);
    expect(await bench.row(id)).toMatchObject({ crashes: 1, woken: true });
    await crash(id);
    expect(await bench.row(id)).toMatchObject({ crashes: 2, woken: false, status: "queued" });
  }
  const worker = await bench.addWorker();
  expect(await claimRuns(bench.pool, worker, ids)).toEqual([]);
  await bench.pool.query("UPDATE runs SET available_at = now(), woken = true WHERE id = ANY($1::uuid[])", [ids]);
  expect(await claimRuns(bench.pool, worker, ids, { suspects: 0 })).toEqual([]);
  const among = (runs: { id: string; crashes: number }[]) => runs.filter((run) => ids.includes(run.id));
  expect(among(await claimMany(bench.pool, worker, 1000, { suspects: 0 }))).toEqual([]);
  const [one, ...more] = await claimRuns(bench.pool, worker, ids);
  expect([one!.crashes, more]).toEqual([2, []]);
  const [next, ...others] = among(await claimMany(bench.pool, worker, 10));
  expect([next!.crashes, others]).toEqual([2, []]);
  await append({ runId: one!.id, epoch: one!.epoch, tenant: "default", event: reply(1) });
  expect(await bench.row(one!.id)).toMatchObject({ crashes: 0 });
  await bench.endWorker(worker);
  const taken = (await takeOver(bench.pool, 100)).map((run) => run.runId);
  expect([taken.includes(one!.id), taken.includes(next!.id)]).toEqual([true, false]);
  const causeNow = async () =>
    (await findOverdue(bench.pool, { graceMs: 15_000, most: 100 })).find((run) => run.id === next!.id)?.cause;
  expect(await causeNow()).toBe("crash_loop");
  await bench.pool.query("UPDATE runs SET cancel_requested_at = now() WHERE id = $1", [next!.id]);
  expect(await causeNow()).toBe("cancelled");
});

test("the end of a run is one commit: status, last event, message owed, once", async () => {
  const worker = await bench.addWorker();
  const id = await bench.submit();
  const run = await bench.claim(worker, id);
  const leaving = await bench.leaving(run);
  const tries = await Promise.all([leaveRuns(bench.pool, [leaving]), leaveRuns(bench.pool, [leaving])]);
  expect(tries.flat()).toHaveLength(1);
  expect(await bench.row(id)).toMatchObject({ status: "completed", worker: null, last_seq: 3 });
  expect(await types(id)).toEqual(["run.queued", "run.started", "run.completed"]);
  expect(await messages(id)).toEqual(["query.completed"]);
  expect(await readLeft(bench.pool, [leaving])).toMatchObject([{ runId: id, status: "completed" }]);
  expect(await readLeft(bench.pool, [await bench.leaving(run)])).toEqual([]);
});

test("a retry gives the slot back until its time; a hand-over costs no attempt", async () => {
  const worker = await bench.addWorker();
  const id = await bench.submit();
  const run = await bench.claim(worker, id);
  await leaveRuns(bench.pool, [
    await bench.leaving(run, { status: "queued", eventType: "run.retrying", delayMs: 60_000, attempt: 2, data: "{}" }),
  ]);
  expect(await bench.row(id)).toMatchObject({ status: "queued", attempt: 2, woken: false, wake: 1 });
  expect(await claimRuns(bench.pool, worker, [id])).toEqual([]);
  await bench.pool.query("UPDATE runs SET available_at = now() WHERE id = $1", [id]);
  expect(await wakeDue(bench.pool, 100)).toMatchObject([{ runId: id, wake: 2, neverStarted: false }]);
  const again = await bench.claim(worker, id);
  expect(again).toMatchObject({ epoch: 2, attempt: 2 });
  await leaveRuns(bench.pool, [
    await bench.leaving(again, { status: "queued", eventType: "run.handed_over", data: "{}" }),
  ]);
  expect(await bench.row(id)).toMatchObject({ status: "queued", attempt: 2, woken: true, wake: 3, crashes: 0 });
});

test("cancel: queued ends at once; running gets the flag, the append's answer tells, and whatever the owner says becomes cancelled", async () => {
  const worker = await bench.addWorker();
  const [queued, running] = [await bench.submit(), await bench.submit()];
  const run = await bench.claim(worker, running);
  const answers = await cancelRuns(bench.pool, "default", [queued, running], "test");
  expect(answers).toEqual(
    expect.arrayContaining([
      { runId: queued, status: "cancelled", cancelRequested: false, batchId: null },
      { runId: running, status: "running", cancelRequested: true, batchId: null },
    ]),
  );
  expect(await messages(queued)).toEqual(["query.cancelled"]);
  expect(await append({ runId: running, epoch: run.epoch, tenant: "default", event: reply(1) })).toMatchObject({
    cancelRequested: true,
  });
  // A hand-over, a retry, a completion: each becomes cancelled.
  const [left] = await leaveRuns(bench.pool, [
    await bench.leaving(run, { status: "queued", eventType: "run.handed_over", data: "{}" }),
  ]);
  expect(left).toMatchObject({ status: "cancelled" });
  expect(await types(running)).toEqual([
    "run.queued",
    "run.started",
    "run.cancel_requested",
    "model.call",
    "run.cancelled",
  ]);
  const log = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: running });
  expect(log.at(-1)!.data).toMatchObject({ output: "kept" });
  // Repeating is harmless and tells what won.
  expect(await cancelRuns(bench.pool, "default", [running], "test")).toMatchObject([
    { status: "cancelled", cancelRequested: false },
  ]);
  expect(await types(running)).toHaveLength(5);
});

test("another tenant's cancel finds nothing", async () => {
  const id = await bench.submit();
  expect(await cancelRuns(bench.pool, "other", [id], "test")).toEqual([]);
  expect((await bench.row(id)).status).toBe("queued");
  await cancelRuns(bench.pool, "default", [id], "test");
});

test("a cancelled run is not taken over, it waits for its end", async () => {
  const worker = await bench.addWorker();
  const id = await bench.submit();
  await bench.claim(worker, id);
  await cancelRuns(bench.pool, "default", [id], "test");
  await bench.pool.query("DELETE FROM workers WHERE id = $1", [worker]);
  expect((await takeOver(bench.pool, 100)).map((run) => run.runId)).not.toContain(id);
});

test("a batch closes once, when its last item is final, whoever comes last", async () => {
  const worker = await bench.addWorker();
  const { id: batchId } = await bench.submitter.submitBatch({
    tenant: "default",
    items: Array.from({ length: 8 }, () => submission()),
    callbackUrl: null,
    callbackEvents: null,
    metadata: {},
  });
  const { rows } = await bench.pool.query("SELECT id FROM runs WHERE batch_id = $1", [batchId]);
  const runs = await claimRuns(
    bench.pool,
    worker,
    rows.map((row) => row.id),
  );
  expect(runs).toHaveLength(8);
  expect(await closeBatches(bench.pool, [batchId])).toEqual([]);
  const closed = await Promise.all(
    runs.map(async (run) => {
      await leaveRuns(bench.pool, [await bench.leaving(run)]);
      return closeBatches(bench.pool, [batchId]);
    }),
  );
  expect(closed.flat()).toEqual([batchId]);
  const { rows: owed } = await bench.pool.query("SELECT type FROM messages WHERE batch_id = $1", [batchId]);
  expect(owed).toEqual([{ type: "batch.completed" }]);
});

test("claims take the most urgent class first, then the lowest tag", async () => {
  const worker = await bench.addWorker();
  await bench.pool.query("UPDATE runs SET status = 'cancelled', finished_at = now() WHERE status = 'queued'");
  const late = await bench.submit();
  const urgent = await bench.submit({ priority: 9 });
  const later = await bench.submit();
  const claimed = await claimMany(bench.pool, worker, 2);
  expect(claimed.map((run) => run.id)).toEqual([urgent, late]);
  expect((await claimMany(bench.pool, worker, 10)).map((run) => run.id)).toEqual([later]);
});

test("whatever the order of concurrent moves, the log is gap-free, its last event is the status, and a final status stays", async () => {
  const worker = await bench.addWorker();
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.constantFrom("append", "complete", "retry", "cancel", "takeover", "claim"), {
        minLength: 3,
        maxLength: 8,
      }),
      async (actions) => {
        const id = await bench.submit();
        const run = await bench.claim(worker, id);
        await Promise.allSettled(
          actions.map(async (action) => {
            if (action === "append") return append({ runId: id, epoch: run.epoch, tenant: "default", event: reply(1) });
            if (action === "complete") return leaveRuns(bench.pool, [await bench.leaving(run)]);
            if (action === "retry")
              return leaveRuns(bench.pool, [
                await bench.leaving(run, { status: "queued", eventType: "run.retrying", data: "{}", attempt: 2 }),
              ]);
            if (action === "cancel") return cancelRuns(bench.pool, "default", [id], "test");
            if (action === "claim") return claimRuns(bench.pool, worker, [id]);
            return takeOver(bench.pool, 10);
          }),
        );
        const row = await bench.row(id);
        const log = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: id });
        expect(log.map((event) => event.seq)).toEqual(log.map((_, index) => index + 1));
        expect(row.last_seq).toBe(log.length);
        const ends = log.filter((event) => /^run\.(completed|partial|failed|cancelled)$/.test(event.type));
        if (row.finished_at) {
          expect(ends).toHaveLength(1);
          expect(log.at(-1)!.type).toBe(`run.${row.status}`);
          expect(await messages(id)).toEqual([`query.${row.status}`]);
        } else {
          expect(ends).toHaveLength(0);
          expect(await messages(id)).toEqual([]);
        }
      },
    ),
    { numRuns: 40 },
  );
});
