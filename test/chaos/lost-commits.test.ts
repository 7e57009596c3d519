/**
 * Postgres comes back without what it had committed last, as after a fail-over to a replica that lagged: here with `synchronous_commit = off`,
 * and a crash before the log was written.
 */
import { migrateQueue } from "@drover/queue";
import { migrate, openPool, postgresBlobs } from "@drover/storage";
import { expect, onTestFinished, test } from "vitest";
import { createLogWriter, LostOwnershipError } from "../../packages/runs/src/log/append.ts";
import { readLog } from "../../packages/runs/src/log/events.ts";
import { leaveRuns } from "../../packages/runs/src/moves/leave.ts";
import { createBench, logger } from "../runs/bench.ts";
import { claimRuns } from "../support/claim.ts";
import { startPostgres } from "../support/postgres.ts";

test("an owner whose last events are gone writes nothing over the hole; the next one goes on from what there is", async () => {
  // Nobody else may have a reason to write the log out.
  const quiet = { autovacuum: "off", bgwriter_lru_maxpages: 0, checkpoint_timeout: "1h" };
  const postgres = await startPostgres({ settings: { synchronous_commit: "off", ...quiet } });
  onTestFinished(() => postgres.stop());
  await migrate(postgres.url);
  await migrateQueue(postgres.url);
  const bench = await createBench(postgres.url);
  onTestFinished(() => bench.close());
  const { pool, blobs } = bench;
  const watch = openPool({ url: postgres.url, logger, max: 1 });
  onTestFinished(() => watch.end());

  const [one, two] = [await bench.addWorker(3_600_000), await bench.addWorker(3_600_000)];
  const run = await bench.claim(one, await bench.submit());
  const append = createLogWriter(pool, postgresBlobs(pool), new AbortController().signal);
  const event = async (text: string) => {
    const of = { runId: run.id, epoch: run.epoch, tenant: "default", worker: one, lastSeq: run.lastSeq };
    run.lastSeq = (await append({ ...of, event: { type: "model.partial", data: { iteration: 1, text } } })).seq;
  };
  await event("kept");
  // Nobody writes the log out from here on.
  const walWriter = async () => {
    const { rows } = await watch.query("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'");
    return rows[0]?.pid as number | undefined;
  };
  const stopped = (await walWriter())!;
  await watch.query("SET synchronous_commit = on; UPDATE tenants SET id = id");
  process.kill(stopped, "SIGSTOP");
  await event("lost");
  await event("lost too");
  process.kill(stopped, "SIGKILL");
  // The server notices after a moment, in which it takes one more statement.
  await expect.poll(() => walWriter().catch(() => undefined)).toSatisfy((pid) => pid !== undefined && pid !== stopped);

  await expect(event("over the hole")).rejects.toBeInstanceOf(LostOwnershipError);
  const left = await bench.leaving(run, { worker: one, lastSeq: run.lastSeq });
  expect(await leaveRuns(pool, [left])).toEqual([]);
  const texts = async () =>
    (await readLog(pool, blobs, { tenant: "default", runId: run.id })).map((e) =>
      e.type === "model.partial" ? e.data.text : e.type,
    );
  expect(await texts()).toEqual(["run.queued", "run.started", "kept"]);

  // What the heartbeat of its worker does with a run that nobody carries.
  const { runId, epoch, eventId, ...more } = await bench.leaving(run, {
    status: "queued",
    eventType: "run.handed_over",
  });
  expect(await leaveRuns(pool, [{ runId, epoch, eventId, ...more, data: "{}" }])).toHaveLength(1);
  const [next] = await claimRuns(pool, two, [run.id]);
  await append({
    ...{ runId: run.id, epoch: next!.epoch, tenant: "default", worker: two, lastSeq: next!.lastSeq },
    event: { type: "model.partial", data: { iteration: 1, text: "goes on" } },
  });
  expect((await texts()).slice(2)).toEqual(["kept", "run.handed_over", "run.started", "goes on"]);
});
