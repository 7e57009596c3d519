import { readLog } from "@drover/runs";
import { createBatcher, openPool } from "@drover/storage";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { areFree, createLogWriter, LostOwnershipError } from "../../packages/runs/src/log/append.ts";
import { type Leaving, leaveRuns, readLeft } from "../../packages/runs/src/moves/leave.ts";
import { manyCopies } from "../support/copies.ts";
import { startProxy } from "../support/proxy.ts";
import { createBench, logger } from "./bench.ts";

let bench: Awaited<ReturnType<typeof createBench>>;
let proxy: Awaited<ReturnType<typeof startProxy>>;
let pool: ReturnType<typeof openPool>;
const stop = new AbortController();
beforeAll(async () => {
  bench = await createBench();
  const url = new URL(bench.url);
  proxy = await startProxy(Number(url.port));
  url.port = String(proxy.port);
  pool = openPool({ url: url.href, logger, max: 4 });
});
afterAll(async () => {
  stop.abort();
  await pool.end();
  await proxy.close();
  await bench.close();
});

/** Ends runs in groups, as a worker does. */
const settler = (of: typeof pool) => {
  const leave = createBatcher<Leaving, unknown>({
    key: (op) => op.runId,
    execute: async (ops) => {
      await leaveRuns(of, ops);
      return ops.map(() => true);
    },
    free: (ops) =>
      areFree(
        of,
        ops.map((op) => op.runId),
      ),
  });
  return { settle: async (run: { id: string; epoch: number }) => leave(await bench.leaving(run)) };
};
const partial = (text: string) => ({ type: "model.partial" as const, data: { iteration: 1, text } });
const texts = async (runId: string) =>
  (await readLog(bench.pool, bench.blobs, { tenant: "default", runId })).flatMap((event) =>
    event.type === "model.partial" ? [event.data.text] : [],
  );

test("a connection cut while the append waits for its row: it is read back, and stands in the log once", async () => {
  const append = createLogWriter(pool, bench.blobs, stop.signal);
  const run = await bench.claim(await bench.addWorker(), await bench.submit());
  const holder = await bench.pool.connect();
  await holder.query("BEGIN");
  await holder.query("SELECT FROM runs WHERE id = $1 FOR UPDATE", [run.id]);
  const appended = append({ runId: run.id, epoch: run.epoch, tenant: "default", event: partial("once") });
  await expect
    .poll(
      async () =>
        (await bench.pool.query("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")).rows[0].count,
    )
    .toBeGreaterThan(0);
  proxy.cut();
  await holder.query("COMMIT");
  holder.release();
  expect(await appended).toMatchObject({ seq: 3 });
  expect(await texts(run.id)).toEqual(["once"]);
});

test("a run whose row somebody holds waits alone: appends and ends of a hundred others go on, and its own come in order", async () => {
  const append = createLogWriter(bench.pool, bench.blobs, stop.signal);
  const { settle } = settler(bench.pool);
  const worker = await bench.addWorker();
  const [held, ending, ...others] = await Promise.all(
    Array.from({ length: 102 }, async () => bench.claim(worker, await bench.submit())),
  );
  const holder = await bench.pool.connect();
  await holder.query("BEGIN");
  await holder.query("SELECT FROM runs WHERE id = ANY($1::uuid[]) FOR UPDATE", [[held!.id, ending!.id]]);
  const write = (run: { id: string; epoch: number }, text: string) =>
    append({ runId: run.id, epoch: run.epoch, tenant: "default", event: partial(text) });
  let done = false;
  const own = Promise.all([write(held!, "one"), write(held!, "two")]).then(() => {
    done = true;
  });
  // In the same statements, and again while it waits.
  for (const text of ["a", "b"]) await Promise.all(others.map((run) => write(run, text)));
  const [first, ...more] = others;
  const ends = Promise.all([ending!, ...more].map((run) => settle(run)));
  await settle(first!);
  await Promise.all(
    more.map(async ({ id }) => expect.poll(async () => (await bench.row(id)).status).toBe("completed")),
  );
  expect(done).toBe(false);
  await holder.query("COMMIT");
  holder.release();
  await own;
  expect(await texts(held!.id)).toEqual(["one", "two"]);
  await ends;
  expect(await bench.row(ending!.id)).toMatchObject({ status: "completed" });
});

test("what a run appends while an earlier append of its own waits for its row comes after it", async () => {
  const append = createLogWriter(bench.pool, bench.blobs, stop.signal);
  const run = await bench.claim(await bench.addWorker(), await bench.submit());
  const holder = await bench.pool.connect();
  await holder.query("BEGIN");
  await holder.query("SELECT FROM runs WHERE id = $1 FOR UPDATE", [run.id]);
  const write = (text: string) => append({ runId: run.id, epoch: run.epoch, tenant: "default", event: partial(text) });
  const written = [write("0")];
  // Held by now: more than one statement has given up on it.
  const looks = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%SKIP LOCKED'";
  await expect
    .poll(async () => (await bench.pool.query(looks)).rowCount, { timeout: 20_000, interval: 2 })
    .toBeGreaterThan(0);
  await holder.query("COMMIT");
  holder.release();
  for (let next = 1; next < 50; next++) {
    written.push(write(String(next)));
    await bench.pool.query("SELECT");
  }
  await Promise.all(written);
  expect(await texts(run.id)).toEqual(Array.from({ length: 50 }, (_, index) => String(index)));
});

test("appends through an outage are kept, in order, also those that need the blob store", async () => {
  const append = createLogWriter(pool, bench.blobs, stop.signal);
  const run = await bench.claim(await bench.addWorker(), await bench.submit());
  const long = "x".repeat(40_000);
  proxy.refuse(true);
  proxy.cut();
  const event = (text: string) => append({ runId: run.id, epoch: run.epoch, tenant: "default", event: partial(text) });
  const first = event("first");
  proxy.refuse(false);
  await first;
  await event(long);
  expect(await texts(run.id)).toEqual(["first", long]);
});

test("a table lock longer than the answer is waited for: every copy of the append comes through, and the event stands once", async () => {
  const run = await bench.claim(await bench.addWorker(), await bench.submit());
  const usage = { input: 10, output: 5, cached: 0 };
  await manyCopies(bench, "run_events", async (hasty) => {
    const append = createLogWriter(hasty, bench.blobs, stop.signal);
    const data = {
      iteration: 1,
      model: "x/y",
      text: "",
      tool_calls: [],
      finish_reason: "stop",
      usage,
      cost_usd: 0.25,
      duration_ms: 1,
    };
    const event = { type: "model.call" as const, data };
    const appended = await append({ runId: run.id, epoch: run.epoch, tenant: "default", event });
    expect(appended).toMatchObject({ seq: 3 });
    await append({ runId: run.id, epoch: run.epoch, tenant: "default", event: partial("next") });
  });
  const log = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: run.id });
  expect(log.map((event) => event.type)).toEqual(["run.queued", "run.started", "model.call", "model.partial"]);
  expect(await bench.row(run.id)).toMatchObject({ steps: 1, iterations: 1, cost_nanos: 250_000_000, input_tokens: 10 });
});

test("the same while a run leaves: it has left once, and its owner is told so", async () => {
  const run = await bench.claim(await bench.addWorker(), await bench.submit());
  const leaving = await bench.leaving(run);
  await manyCopies(bench, "messages", async (hasty) => {
    const leave = createBatcher({
      key: (op: Leaving) => op.runId,
      execute: async (ops) => {
        const [left] = await leaveRuns(hasty, ops);
        return [left ?? null];
      },
      recover: async (ops) => {
        const [left] = await readLeft(hasty, ops);
        return [left];
      },
      signal: stop.signal,
    });
    expect(await leave(leaving)).toMatchObject({ status: "completed" });
  });
  const { rows } = await bench.pool.query("SELECT type FROM messages WHERE run_id = $1", [run.id]);
  expect(rows).toEqual([{ type: "query.completed" }]);
});

test("a copy of an append that comes through after later ones changes nothing", async () => {
  const run = await bench.claim(await bench.addWorker(), await bench.submit());
  const sent: unknown[][] = [];
  const recording = new Proxy(bench.pool, {
    get: (of, name) =>
      name === "query"
        ? (...statement: unknown[]) => {
            if (String(statement[0]).includes("INSERT INTO run_events")) sent.push(statement);
            return (of.query as (...args: unknown[]) => unknown)(...statement);
          }
        : Reflect.get(of, name, of),
  });
  const append = createLogWriter(recording, bench.blobs, stop.signal);
  for (const text of ["one", "two", "three"])
    await append({ runId: run.id, epoch: run.epoch, tenant: "default", event: partial(text) });
  expect(sent).toHaveLength(3);
  for (const [text, values] of sent)
    expect((await bench.pool.query(String(text), values as unknown[])).rows).toEqual([]);
  expect(await texts(run.id)).toEqual(["one", "two", "three"]);
  expect((await bench.row(run.id)).last_seq).toBe(5);
});

describe("after a fail-over that lost commits", () => {
  /** What the new primary has: all but the last event. */
  async function loseLast(runId: string): Promise<void> {
    await bench.pool.query(
      `WITH gone AS (DELETE FROM run_events e USING runs r WHERE r.id = $1 AND e.run_id = r.id AND e.seq = r.last_seq RETURNING e.run_id)
       UPDATE runs SET last_seq = last_seq - 1 WHERE id IN (SELECT run_id FROM gone)`,
      [runId],
    );
  }
  const lost = (promise: Promise<unknown>) => expect(promise).rejects.toBeInstanceOf(LostOwnershipError);

  test("an owner whose log is shorter than it was told has lost the run, and writes nothing over the hole", async () => {
    const append = createLogWriter(bench.pool, bench.blobs, stop.signal);
    const run = await bench.claim(await bench.addWorker(), await bench.submit());
    const event = (text: string, lastSeq: number) =>
      append({ runId: run.id, epoch: run.epoch, tenant: "default", lastSeq, event: partial(text) });
    const { seq } = await event("kept", run.lastSeq);
    const told = await event("lost", seq);
    await loseLast(run.id);
    await lost(event("over the hole", told.seq));
    const owned = { ...run, lastSeq: told.seq };
    const leaving = await bench.leaving(owned, { lastSeq: told.seq });
    expect(await leaveRuns(bench.pool, [leaving])).toEqual([]);
    expect(await texts(run.id)).toEqual(["kept"]);
    // What the database says is not lost goes on.
    expect(await event("who reads it", seq)).toMatchObject({ seq: seq + 1 });
  });

  test("two owners of one epoch, since a claim was lost: only the one the database knows writes", async () => {
    const append = createLogWriter(bench.pool, bench.blobs, stop.signal);
    const [before, after] = [await bench.addWorker(), await bench.addWorker()];
    const id = await bench.submit();
    const old = await bench.claim(before, id);
    await loseLast(id);
    await bench.pool.query("UPDATE runs SET status = 'queued', worker = NULL, epoch = epoch - 1 WHERE id = $1", [id]);
    const fresh = await bench.claim(after, id);
    expect(fresh.epoch).toBe(old.epoch);
    const event = (worker: string) =>
      append({ runId: id, epoch: fresh.epoch, tenant: "default", worker, lastSeq: 2, event: partial(worker) });
    await lost(event(before));
    await event(after);
    expect(await leaveRuns(bench.pool, [await bench.leaving(old, { worker: before })])).toEqual([]);
    expect(await texts(id)).toEqual([after]);
  });
});

test("an append to a run that ended meanwhile is refused, whatever it carries", async () => {
  const append = createLogWriter(pool, bench.blobs, stop.signal);
  const run = await bench.claim(await bench.addWorker(), await bench.submit());
  await bench.pool.query("UPDATE runs SET status = 'cancelled', worker = NULL, finished_at = now() WHERE id = $1", [
    run.id,
  ]);
  await expect(
    append({ runId: run.id, epoch: run.epoch, tenant: "default", event: partial("late") }),
  ).rejects.toBeInstanceOf(LostOwnershipError);
});
