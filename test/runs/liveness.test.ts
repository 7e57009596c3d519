/** The liveness thread against a real Postgres: whose lock it holds, whom it condemns and when, and where it refuses to start. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { openPool, transaction } from "@drover/storage";
import pg from "pg";
import { afterAll, afterEach, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { type Liveness, type LivenessOptions, startLiveness } from "../../packages/runs/src/liveness/liveness.ts";
import { workersLockClass } from "../../packages/runs/src/liveness/lock.ts";
import { identify, isGone } from "../../packages/runs/src/liveness/process.ts";
import { takeOver } from "../../packages/runs/src/moves/rescue.ts";
import { createDatabase } from "../support/database.ts";
import { startPgBouncer } from "../support/pgbouncer.ts";
import { spawnNode } from "../support/process.ts";
import { startProxy } from "../support/proxy.ts";
import { createBench, logger } from "./bench.ts";

let bench: Awaited<ReturnType<typeof createBench>>;
const started: Liveness[] = [];
const leaseMs = 2000;
const patience = { timeout: 20_000, interval: 20 };
vi.setConfig({ testTimeout: 60_000 });

beforeAll(async () => {
  bench = await createBench();
});
afterEach(async () => {
  await Promise.all(started.splice(0).map((liveness) => liveness.close()));
  await bench.pool.query("DELETE FROM runs");
  await bench.pool.query("DELETE FROM workers");
});
afterAll(() => bench.close());

/** What it told its worker, in order. */
type Told = ("up" | "down" | "dead" | "deaths")[];

/** A liveness whose first heartbeat is through. */
async function start(more: Partial<LivenessOptions> = {}): Promise<Liveness & { told: Told }> {
  const told: Told = [];
  const liveness = await startLiveness({
    directUrl: bench.url,
    pool: bench.pool,
    leaseMs,
    watchdog: false,
    slots: 1,
    logger,
    onBeat: () => ({ runs: [], epochs: [] }),
    onCancel() {},
    onHealth: (healthy) => told.push(healthy ? "up" : "down"),
    onDead: () => told.push("dead"),
    onDeaths: () => told.push("deaths"),
    ...more,
  });
  started.push(liveness);
  await expect.poll(() => told, patience).toEqual(["up"]);
  return Object.assign(liveness, { told });
}

interface WorkerRow {
  lock_id: number;
  dead_at: Date | null;
  cause: string | null;
  /** The session that holds its lock. */
  session: number | null;
  started_at: Date;
  /** By the database's clock. */
  silent_ms: number;
}

async function row(id: string): Promise<WorkerRow> {
  const { rows } = await bench.pool.query<WorkerRow>(
    `SELECT w.*, extract(epoch FROM clock_timestamp() - heartbeat_at)::float8 * 1000 AS silent_ms,
            (SELECT l.pid FROM pg_locks l WHERE l.classid::bigint = $2 AND l.objid::bigint = w.lock_id AND l.granted
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS session
     FROM workers w WHERE id = $1`,
    [id, workersLockClass],
  );
  return rows[0]!;
}

let locks = 0;
/** Another worker, as its row and its session show it; returns its id and what ends its session. */
async function other(silentMs = 0) {
  const lockId = ++locks;
  const session = new pg.Client({ connectionString: bench.url });
  await session.connect();
  let ended: Promise<void> | undefined;
  const end = () => (ended ??= session.end());
  onTestFinished(end);
  await session.query("SELECT pg_advisory_lock($1, $2)", [workersLockClass, lockId]);
  const id = await bench.addWorker(60_000);
  await session.query(
    "UPDATE workers SET lock_id = $3, heartbeat_at = clock_timestamp() - $2 * interval '1 ms' WHERE id = $1",
    [id, silentMs, lockId],
  );
  return { id, end };
}

async function startDirectProxy() {
  const url = new URL(bench.url);
  const proxy = await startProxy(Number(url.port));
  onTestFinished(() => proxy.close());
  url.host = `127.0.0.1:${proxy.port}`;
  return { proxy, url: url.href };
}

const dead = (id: string) => expect.poll(async () => (await row(id)).dead_at, patience).not.toBeNull();

test("behind a transaction pooler it refuses to start, and says what to set; with a direct connection beside it, it starts", async () => {
  const pooler = await startPgBouncer(bench.url);
  onTestFinished(() => pooler.stop());
  await expect(start({ directUrl: pooler.url })).rejects.toThrow(/transaction pooler.*set DATABASE_DIRECT_URL/);
  expect((await bench.pool.query("SELECT FROM workers")).rowCount).toBe(0);
  const pool = openPool({ url: pooler.url, logger, max: 5 });
  onTestFinished(() => pool.end());
  expect((await start({ pool })).healthy).toBe(true);
});

test("where the direct connection leads to another database it refuses to start", async () => {
  const elsewhere = await createDatabase();
  onTestFinished(() => elsewhere.drop());
  await expect(start({ directUrl: elsewhere.url })).rejects.toThrow(/cannot see its own liveness lock.*same database/);
  // Nobody has to find it dead there.
  const there = new pg.Client({ connectionString: elsewhere.url });
  await there.connect();
  expect((await there.query("SELECT FROM workers")).rowCount).toBe(0);
  await there.end();
});

test("a worker whose session has ended is dead long before its lease is over; one that keeps its session and says nothing, after it", async () => {
  const observer = await start();
  const [crashed, alive] = [await other(), await start()];
  await crashed.end();
  await dead(crashed.id);
  expect(await row(crashed.id)).toMatchObject({ cause: "crashed" });
  expect((await row(crashed.id)).silent_ms).toBeLessThan(60_000);
  const silent = await other(60_000);
  await dead(silent.id);
  expect(await row(silent.id)).toMatchObject({ cause: "silent" });
  expect(observer.told).toContain("deaths");
  for (const { workerId } of [observer, alive]) expect(await row(workerId)).toMatchObject({ dead_at: null });
});

test("an observer condemns nobody before it has watched for one lease, whatever it sees", async () => {
  const crashed = await other();
  await crashed.end();
  const silent = await other(3_600_000);
  const observer = await start();
  await dead(crashed.id);
  await dead(silent.id);
  const since = (await row(observer.workerId)).started_at.getTime() + leaseMs;
  for (const { id } of [crashed, silent]) expect((await row(id)).dead_at!.getTime()).toBeGreaterThanOrEqual(since);
});

test("a process is certainly gone when it has ended, or when its pid is somebody else's now, and only where pids mean the same", async () => {
  const own = identify(process.pid)!;
  const child = spawnNode(new URL("../support/idle-process.ts", import.meta.url));
  await child.waitForLine("ready");
  const theirs = identify(child.pid)!;
  expect(isGone(own, theirs)).toBe(false);
  expect(isGone(theirs, own)).toBe(false);
  const [boot, space, pid, startedAt] = own.split("/");
  const as = (...parts: unknown[]) => parts.join("/");
  expect(isGone(own, as(boot, space, pid, Number(startedAt) + 1))).toBe(true);
  await child.kill("SIGKILL");
  expect(isGone(own, theirs)).toBe(true);
  // Another start of the machine, another namespace, nothing known: no proof.
  const [, , gone, at] = theirs.split("/");
  for (const other of [as("other", space, gone, at), as(boot, "pid:[1]", gone, at), as(boot, space, "x", at), "", null])
    expect(isGone(own, other)).toBe(false);
  expect(isGone(null, theirs)).toBe(false);
});

// On a machine that gives it nothing for half a second it is condemned, and rightly: then once more.
test("a worker whose session is ended by the server comes back as the same one, with the same lock, and nobody condemns it", {
  retry: 2,
}, async () => {
  const [cut, peer] = [await start(), await start()];
  const before = await row(cut.workerId);
  // The peer has watched for a lease.
  const watched = async () => Date.now() - (await row(peer.workerId)).started_at.getTime();
  await expect.poll(watched, patience).toBeGreaterThan(leaseMs);
  for (const times of [1, 2, 3]) {
    const { session } = await row(cut.workerId);
    await bench.pool.query("SELECT pg_terminate_backend($1)", [session]);
    await expect.poll(() => cut.told.filter((told) => told === "up"), patience).toHaveLength(times + 1);
    const { lock_id, dead_at, session: now } = await row(cut.workerId);
    expect({ lock_id, dead_at }).toEqual({ lock_id: before.lock_id, dead_at: null });
    expect(now).not.toBe(session);
  }
  expect(cut.told).not.toContain("dead");
  expect(peer.told).toEqual(["up"]);
});

test("a connection that falls silent is given up for another, of the same worker with the same lock", async () => {
  const { proxy, url } = await startDirectProxy();
  const liveness = await start({ directUrl: url });
  const before = await row(liveness.workerId);
  proxy.forget();
  await expect.poll(() => liveness.told, patience).toEqual(["up", "down", "up"]);
  const after = await row(liveness.workerId);
  expect(after).toMatchObject({ lock_id: before.lock_id, dead_at: null });
  expect(after.session).not.toBe(before.session);
});

test("a session that holds the worker's lock when it comes back is ended", async () => {
  const liveness = await start();
  const { lock_id, session } = await row(liveness.workerId);
  const stale = new pg.Client({ connectionString: bench.url });
  stale.on("error", () => {});
  await stale.connect();
  // It is next in the queue for the lock.
  const holds = stale.query("SELECT pg_advisory_lock($1, $2)", [workersLockClass, lock_id]);
  await bench.pool.query("SELECT pg_terminate_backend($1)", [session]);
  await holds;
  await expect.poll(() => liveness.told.slice(-2), patience).toEqual(["down", "up"]);
  await expect(stale.query("SELECT 1")).rejects.toThrow();
  const after = await row(liveness.workerId);
  expect(after).toMatchObject({ lock_id, dead_at: null });
  expect(after.session).not.toBeNull();
});

test("no effect starts while the last confirmed heartbeat is older than half a lease", async () => {
  const { proxy, url } = await startDirectProxy();
  const liveness = await start({ directUrl: url });
  const { signal } = new AbortController();
  await liveness.whenFresh(signal);
  proxy.blackhole(true);
  await expect.poll(async () => (await row(liveness.workerId)).silent_ms, patience).toBeGreaterThan(leaseMs / 2);
  let fresh = false;
  const waiting = liveness.whenFresh(signal).then(() => {
    fresh = true;
  });
  for (let turns = 0; turns < 10; turns++) await nextTurn();
  expect(fresh).toBe(false);
  // A run that is lost meanwhile waits no longer.
  const lost = new AbortController();
  const given = liveness.whenFresh(lost.signal);
  lost.abort();
  await given;
  proxy.blackhole(false);
  await waiting;
});

test.each(["before", "after"])(
  "who was declared dead while away starts anew; the crashes it was blamed for %s it came back are none",
  async (blamed) => {
    const liveness = await start();
    const { workerId } = liveness;
    const id = await bench.submit();
    await bench.claim(workerId, id);
    await transaction(bench.pool, async (tx) => {
      await tx.query("UPDATE workers SET dead_at = now(), cause = 'crashed' WHERE id = $1", [workerId]);
      if (blamed === "before") expect(await takeOver(tx, 10)).toMatchObject([{ runId: id, status: "queued" }]);
    });
    await expect.poll(() => liveness.workerId, patience).not.toBe(workerId);
    expect(liveness.told).toContain("dead");
    if (blamed === "after") expect(await takeOver(bench.pool, 10)).toMatchObject([{ runId: id, status: "queued" }]);
    expect(await row(liveness.workerId)).toMatchObject({ dead_at: null });
    expect((await row(workerId)).dead_at).not.toBeNull();
    expect(await bench.row(id)).toMatchObject({ crashes: 0, lost_worker: null });
  },
);
