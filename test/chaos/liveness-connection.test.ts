/**
 * The liveness connections of whole worker processes, cut by the server, by the network, or led through a transaction pooler: who stays who it
 * is, what starts meanwhile and what does not, and who refuses to start.
 */
import { expect, onTestFinished, test } from "vitest";
import { createDatabase } from "../support/database.ts";
import { startPgBouncer } from "../support/pgbouncer.ts";
import { spawnNode } from "../support/process.ts";
import { type FaultProxy, startProxy } from "../support/proxy.ts";
import { type FleetWorker, fleet, rescues } from "./fleet.ts";
import { dataOf } from "./world.ts";

const world = fleet();
const patience = { timeout: 20_000, interval: 25 };

async function startDirectProxy(): Promise<{ proxy: FaultProxy; url: string }> {
  const url = new URL(world.bench.url);
  const proxy = await startProxy(Number(url.port));
  onTestFinished(() => proxy.close());
  url.host = `127.0.0.1:${proxy.port}`;
  return { proxy, url: url.href };
}

test("the server ends one worker's liveness connection, then everybody's at once: the same workers, the same locks, and nothing of theirs is lost", async () => {
  const workers = await Promise.all([world.spawn({ LEASE_SECONDS: "4" }), world.spawn({ LEASE_SECONDS: "4" })]);
  world.endpoint.hold();
  const runs = [
    ...(await world.many(10, "idempotent_call calm stream:held")),
    ...(await world.many(10, "unsafe_call calm stream:held")),
  ];
  await world.endpoint.called(20);
  const watched =
    "SELECT count(*) AS watched FROM workers WHERE clock_timestamp() > started_at + lease_ms * interval '1.1 ms'";
  await world.until(watched, [], [{ watched: 2 }]);
  const before = await Promise.all(workers.map(({ id }) => world.worker(id)));
  const back = async (ended: { id: string; session: number }[]) => {
    for (const { id, session } of ended)
      await expect
        .poll(async () => (await world.worker(id)).session, patience)
        .toSatisfy((now) => now !== null && now !== session);
  };

  await world.bench.pool.query("SELECT pg_terminate_backend($1)", [before[0].session]);
  // While it is away: ten steps, at least, end on either of them.
  world.endpoint.release();
  await back([before[0]]);
  await world.gate("stream:held").arrived(20);
  const now = await Promise.all(workers.map(({ id }) => world.worker(id)));
  await world.bench.pool.query(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'drover-liveness' AND datname = current_database()",
  );
  world.gate("stream:held").open();
  await back(now);
  for (const { name, log, ...run } of await world.ended(runs)) {
    expect(run, name).toMatchObject({ status: "completed", attempt: 1, epoch: 1, crashes: 0 });
    expect(rescues(log), name).toEqual([]);
    expect([world.asked(name, 0), world.called(name, 0), world.asked(name, 2)], name).toEqual([1, 1, 1]);
  }
  for (const { id, lock_id } of before) expect(await world.worker(id)).toMatchObject({ lock_id, dead_at: null });
});

test.each(["refused", "silent"] as const)(
  "while the liveness connection alone is %s nothing is claimed and no step starts, and what runs is recorded; then it goes on",
  async (how) => {
    const { proxy, url } = await startDirectProxy();
    const worker = await world.spawn({ DATABASE_DIRECT_URL: url, LEASE_SECONDS: "3" });
    world.endpoint.hold();
    const calling = await world.many(3, "pure_call calm");
    const streaming = await world.many(3, "stream:held+idempotent_call calm");
    await world.endpoint.called(3);
    await world.gate("stream:held").arrived(3);
    if (how === "silent") proxy.blackhole(true);
    else {
      proxy.refuse(true);
      proxy.cut();
    }
    await worker.waitForLine("liveness connection lost");
    // A look that was under way is over by then.
    const lost = (await world.bench.pool.query("SELECT clock_timestamp() AS at")).rows[0].at;
    const over = "SELECT clock_timestamp() > $1::timestamptz + interval '0.5 seconds' AS over";
    await world.until(over, [lost], [{ over: true }]);

    const waiting = await world.submit("calm");
    world.endpoint.release();
    world.gate("stream:held").open();
    for (const run of calling) await world.logged(run, "tool.result");
    for (const run of streaming) await world.logged(run, "model.call");
    // Long enough for an idle slot to have taken the new run, and for the next steps to have begun a thousand times.
    const quiet = "SELECT clock_timestamp() > created_at + interval '2.5 seconds' AS quiet FROM runs WHERE id = $1";
    await world.until(quiet, [waiting.id], [{ quiet: true }]);
    const { rows } = await world.bench.pool.query("SELECT status FROM runs WHERE id = $1", [waiting.id]);
    expect(rows).toEqual([{ status: "queued" }]);
    for (const { name } of calling) expect(world.asked(name, 1)).toBe(0);
    for (const { name } of streaming) expect(world.called(name, 0)).toBe(0);

    if (how === "silent") proxy.blackhole(false);
    else proxy.refuse(false);
    for (const { name, log, ...run } of await world.ended([...calling, ...streaming, waiting])) {
      expect(run, name).toMatchObject({ status: "completed", attempt: 1, epoch: 1, crashes: 0 });
      expect(dataOf(log, "run.started"), name).toMatchObject([{ worker: worker.id }]);
    }
    expect(await world.worker(worker.id)).toMatchObject({ dead_at: null });
  },
);

test("a worker whose database is behind a transaction pooler needs a direct connection beside it, and says so", async () => {
  const pooler = await startPgBouncer(world.bench.url, 5);
  onTestFinished(() => pooler.stop());
  const refuses = async (more: Record<string, string>) => {
    const entry = new URL("../../apps/worker/src/main.ts", import.meta.url);
    const worker = spawnNode(entry, { env: world.environment(more) });
    onTestFinished(() => void worker.kill("SIGKILL"));
    expect((await worker.exited).code).toBe(1);
    return worker.output();
  };
  expect(await refuses({ DATABASE_URL: pooler.url })).toMatch(
    /The worker cannot start: .*transaction pooler.*set DATABASE_DIRECT_URL to the database itself/,
  );
  const elsewhere = await createDatabase();
  onTestFinished(() => elsewhere.drop());
  expect(await refuses({ DATABASE_URL: pooler.url, DATABASE_DIRECT_URL: elsewhere.url })).toMatch(
    /The worker cannot start: .*DATABASE_DIRECT_URL must lead to the same database/,
  );

  const worker: FleetWorker = await world.spawn({ DATABASE_URL: pooler.url, DATABASE_DIRECT_URL: world.bench.url });
  const runs = await world.many(10, "pure_call unsafe_call calm");
  for (const { name, log, ...run } of await world.ended(runs)) {
    expect(run, name).toMatchObject({ status: "completed", epoch: 1 });
    expect(dataOf(log, "run.started"), name).toMatchObject([{ worker: worker.id }]);
  }
});
