import { readLog } from "@drover/runs";
import { openPool } from "@drover/storage";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createLogWriter, LostOwnershipError } from "../../packages/runs/src/log.ts";
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
