/** What is over is read by nobody: under a long snapshot, which keeps every version of every row, a heartbeat and the rescuer's duties stay cheap. */
import { randomUUID } from "node:crypto";
import type { Pool } from "@drover/storage";
import { afterAll, beforeAll, expect, onTestFinished, test } from "vitest";
import { sayAlive } from "../../packages/runs/src/liveness/beat.ts";
import { createLogWriter } from "../../packages/runs/src/log/append.ts";
import { claimNext } from "../../packages/runs/src/moves/claim.ts";
import { leaveRuns } from "../../packages/runs/src/moves/leave.ts";
import { findOverdue, findWhose, seenTo, takeOver } from "../../packages/runs/src/moves/rescue.ts";
import { liftStragglers, raiseFloors } from "../../packages/runs/src/moves/wake.ts";
import { claimMany, claimRuns } from "../support/claim.ts";

import { countingPages } from "../support/pages.ts";
import { createBench, submission } from "./bench.ts";
import { endMany, looks, overdue } from "./looks.ts";

let bench: Awaited<ReturnType<typeof createBench>>;
beforeAll(async () => {
  bench = await createBench();
});
afterAll(() => bench.close());

/** What is longer ago than so many ms is over. */
const lately = 2000;

test("10,000 runs have ended under one snapshot: a heartbeat reads under 50 pages, each duty and an idle look under 500", {
  timeout: 120_000,
}, async () => {
  const { pool } = bench;
  const old = await pool.connect();
  await old.query("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM runs");
  try {
    const [gone, here] = await Promise.all([bench.addWorker(3_600_000), bench.addWorker(3_600_000)]);
    await endMany(pool, here, 10_000);
    const over = `SELECT max(available_at) < now() - ${lately} * interval '1 ms' AS over FROM runs`;
    await expect.poll(async () => (await pool.query(over)).rows[0], { timeout: 20_000 }).toEqual({ over: true });
    // Hundreds of heartbeats, each a version of the worker's row, and three runs that it holds; another worker has died with one.
    const own = await Promise.all([1, 2, 3].map(async () => bench.claim(here, await bench.submit())));
    const held = { runs: own.map((run) => run.id), epochs: own.map((run) => run.epoch) };
    let { place } = (await sayAlive(pool, here, held, null))!;
    for (let beat = 0; beat < 500; beat++) ({ place } = (await sayAlive(pool, here, held, place))!);
    const orphan = await bench.submit();
    await bench.claim(gone, orphan);
    await bench.endWorker(gone);
    const next = await bench.submit();

    const counting = countingPages(pool);
    const pages: Record<string, number> = {};
    for (const [name, look] of Object.entries(looks(here, held, place, lately))) {
      await look(counting.pool);
      pages[name] = counting.read().pages;
    }
    expect(await bench.row(orphan)).toMatchObject({ status: "queued", crashes: 1 });
    expect(await bench.row(next)).toMatchObject({ status: "running" });
    const { beat, ...duties } = pages;
    expect(beat).toBeLessThan(50);
    for (const [name, read] of Object.entries(duties)) expect(read, name).toBeLessThan(500);

    // The test can fail: the same looks without their bounds read it all.
    await findOverdue(counting.pool, overdue);
    expect(counting.read().pages).toBeGreaterThan(500);
    await pool.query("UPDATE fair_classes SET floor_tag = 0");
    await claimMany(counting.pool, here, 1);
    expect(counting.read().pages).toBeGreaterThan(500);
  } finally {
    await old.query("ROLLBACK");
    old.release();
  }
});

/** What the planner may believe of the table. */
const beliefs: [string, (pool: Pool) => Promise<unknown>][] = [
  ["nothing, since nobody has analysed it yet", async () => {}],
  [
    "that it is empty, as it was when it was analysed",
    async (pool) => {
      await pool.query(
        "INSERT INTO runs (id, tenant, agent, woken, available_at, soft_ms, hard_ms) VALUES ($1, 'default', 'x', true, now(), 1, 2)",
        [randomUUID()],
      );
      await pool.query("DELETE FROM runs");
      await pool.query("ANALYZE runs");
    },
  ],
];

test.each(beliefs)(
  "moves of hundreds find their runs by key in a backlog of thousands when the planner believes %s",
  async (_what, believe) => {
    const fresh = await createBench();
    onTestFinished(() => fresh.close());
    // Nobody but this test tells the planner anything.
    await fresh.pool.query("ALTER TABLE runs SET (autovacuum_enabled = off)");
    await believe(fresh.pool);
    const items = Array.from({ length: 4000 }, () => submission());
    const shared = { tenant: "default", submittedBy: null, callbackUrl: null, callbackEvents: null, metadata: {} };
    await fresh.submitter.submitBatch({ ...shared, items });
    const worker = await fresh.addWorker();
    const { rows } = await fresh.pool.query<{ id: string }>("SELECT id FROM runs ORDER BY tag LIMIT 400");
    const ids = rows.map((row) => row.id);
    const { pool, read } = countingPages(fresh.pool);
    const byKey = () => expect(read().runs).toBeLessThanOrEqual(2 * ids.length);

    const claimed = await claimMany(pool, worker, 400);
    expect(claimed.map(({ id }) => id)).toEqual(ids);
    byKey();
    const aside = await claimNext(pool, worker, { most: 400, known: { agents: ["other"], models: [] } });
    expect(aside).toEqual({ runs: [], seen: 400, aside: ["default"] });
    byKey();
    const append = createLogWriter(pool, fresh.blobs, new AbortController().signal);
    const event = { type: "agent.changed", data: { from: "a", to: "b" } } as const;
    await Promise.all(claimed.map(({ id, epoch }) => append({ runId: id, epoch, tenant: "default", event })));
    byKey();
    expect(await leaveRuns(pool, await Promise.all(claimed.map((run) => fresh.leaving(run))))).toHaveLength(400);
    byKey();
  },
);

test("a floor follows the first run that can be claimed; whatever comes back, and whoever comes late, stands on it or above", async () => {
  const { pool } = bench;
  const worker = await bench.addWorker();
  const submit = () => bench.submit({ priority: 5 });
  const ids = [await submit(), await submit(), await submit()];
  const tag = async (id: string): Promise<number> => (await bench.row(id)).tag;
  const tags = await Promise.all(ids.map(tag));
  const floor = async () =>
    (await pool.query("SELECT floor_tag FROM fair_classes WHERE priority = 5")).rows[0].floor_tag;
  const all = new Map([[5, tags[2]! + 1000]]);

  const [first] = await claimRuns(pool, worker, [ids[0]!]);
  await raiseFloors(pool, all);
  expect(await floor()).toBe(tags[1]);
  await raiseFloors(pool, new Map([[5, tags[0]!]]));
  expect(await floor()).toBe(tags[1]);

  await claimRuns(pool, worker, ids.slice(1));
  await raiseFloors(pool, all);
  expect(await floor()).toBe(tags[2]! + 1000);
  // Handed over, taken over, submitted with a tag that was taken long ago: each is found.
  await leaveRuns(pool, [await bench.leaving(first!, { status: "queued", eventType: "run.handed_over", data: "{}" })]);
  await bench.endWorker(worker);
  await takeOver(pool, 10);
  const late = await submit();
  for (const id of [...ids, late]) expect(await tag(id)).toBeGreaterThanOrEqual(await floor());
  const next = await bench.addWorker();
  expect((await claimMany(pool, next, 4)).map((run) => run.id).sort()).toEqual([...ids, late].sort());

  // Below it all the same: lifted by the look at everything.
  const lost = await submit();
  await pool.query("UPDATE runs SET tag = 1 WHERE id = $1", [lost]);
  expect((await claimMany(pool, next, 10)).map((run) => run.id)).not.toContain(lost);
  await liftStragglers(pool);
  expect(await claimMany(pool, next, 10)).toMatchObject([{ id: lost }]);
});

test("what a living worker holds too long is said by its heartbeat, and what is not its own any more is told to it", async () => {
  const { pool } = bench;
  const worker = await bench.addWorker();
  const ids = await Promise.all([1, 2, 3].map(() => bench.submit()));
  const [late, other, cancelled] = await Promise.all(ids.map((id) => bench.claim(worker, id)));
  await pool.query(
    "UPDATE runs SET claimed_at = claimed_at - interval '1 hour', soft_at = soft_at - interval '1 hour', hard_at = hard_at - interval '1 hour' WHERE id = $1",
    [late!.id],
  );
  await pool.query("UPDATE runs SET cancel_requested_at = now() WHERE id = $1", [cancelled!.id]);
  await leaveRuns(pool, [await bench.leaving(other!)]);
  const heard = (await sayAlive(pool, worker, { runs: ids, epochs: [1, 1, 1] }, null))!;
  expect(heard).toMatchObject({ lost: [{ runId: other!.id, epoch: 1 }], cancelled: [cancelled!.id] });
  const whose = await findWhose(pool);
  expect(whose.held).toEqual([late!.id]);
  expect(await findOverdue(pool, { ...overdue, whose })).toMatchObject([{ id: late!.id, cause: "time_limit" }]);
  // Of another epoch it asks nothing that is its own.
  expect((await sayAlive(pool, worker, { runs: [late!.id], epochs: [7] }, heard.place))!.lost).toHaveLength(1);
  await bench.endWorker(worker);
  expect(await sayAlive(pool, worker, { runs: ids, epochs: [1, 1, 1] }, heard.place)).toBeNull();
});

test("a dead worker is looked at again for a minute, for what it may still have claimed, and then no more", async () => {
  const { pool } = bench;
  const worker = await bench.addWorker();
  const id = await bench.submit();
  await bench.endWorker(worker, "silent");
  const dead = async () => (await findWhose(pool)).dead.includes(worker);
  expect(await dead()).toBe(true);
  await seenTo(pool, [worker]);
  expect(await dead()).toBe(false);
  // Its claim came through afterwards.
  await pool.query(
    "UPDATE runs SET status = 'running', worker = $2, epoch = 1, claimed_at = now(), soft_at = now() + interval '1 minute', hard_at = now() + interval '1 minute' WHERE id = $1",
    [id, worker],
  );
  await pool.query("UPDATE workers SET look_at = now() - interval '1 second' WHERE id = $1", [worker]);
  expect(await takeOver(pool, 10, await findWhose(pool))).toMatchObject([{ runId: id }]);
  await pool.query(
    "UPDATE workers SET dead_at = now() - interval '2 minutes', look_at = now() - interval '1 second' WHERE id = $1",
    [worker],
  );
  await seenTo(pool, [worker]);
  expect((await pool.query("SELECT look_at FROM workers WHERE id = $1", [worker])).rows[0].look_at).toBe(
    Number.POSITIVE_INFINITY,
  );
  expect(await dead()).toBe(false);
});
