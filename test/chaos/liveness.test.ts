/**
 * Whole worker processes that are killed, stopped and woken: who is taken for dead and who is not, what becomes of the runs, and when a call that
 * may have taken effect is looked into.
 */
import { expect, test } from "vitest";
import { type FleetWorker, fleet, rescues } from "./fleet.ts";
import { dataOf } from "./world.ts";

const world = fleet();
/** One that has watched the others for long enough to condemn them. */
async function observer(more: Record<string, string> = {}): Promise<FleetWorker> {
  const worker = await world.spawn(more);
  const watched = `SELECT clock_timestamp() > started_at + lease_ms * interval '1.1 ms' AS watched FROM workers WHERE id = $1`;
  await world.until(watched, [worker.id], [{ watched: true }]);
  return worker;
}
const silentFor = (worker: FleetWorker, seconds: number) =>
  world.until(
    "SELECT clock_timestamp() > heartbeat_at + $2 * interval '1 second' AS silent FROM workers WHERE id = $1",
    [worker.id, seconds],
    [{ silent: true }],
  );
const heardOf = (worker: FleetWorker) =>
  world.until(
    "SELECT clock_timestamp() < heartbeat_at + interval '1 second' AS heard FROM workers WHERE id = $1",
    [worker.id],
    [{ heard: true }],
  );

test("SIGKILL is seen by the missing lock, long before the lease is over; every run goes on where it was", async () => {
  const victim = await world.spawn({ LEASE_SECONDS: "20" });
  world.endpoint.hold();
  const streaming = await world.many(20, "calm stream:held");
  await world.gate("stream:held").arrived(20);
  const calling = [...(await world.many(10, "pure_call calm")), ...(await world.many(10, "idempotent_call calm"))];
  await world.endpoint.called(20);
  await observer();
  await victim.kill("SIGKILL");
  await world.gate("stream:held").arrived(20);
  await world.endpoint.called(40);
  world.gate("stream:held").open();
  world.endpoint.release();
  for (const { name, log, ...run } of await world.ended([...streaming, ...calling])) {
    expect(run, name).toMatchObject({ status: "completed", attempt: 1, crashes: 0, epoch: 2 });
    const [rescued, ...more] = rescues(log);
    expect(more, name).toEqual([]);
    expect(rescued, name).toMatchObject({ worker: victim.id, cause: "crashed" });
    // Nobody in a model's stream can have killed it.
    expect(rescued!.crashes, name).toBe(calling.some((run) => run.name === name) ? 1 : undefined);
    // `quiet_at` is where the lease would have ended.
    const { at } = log.find(({ type }) => type === "run.rescued")!;
    expect(Date.parse(at), name).toBeLessThan(Date.parse(rescued!.quiet_at!));
  }
});

test("a lone worker that is killed and started again does not wait for its lease of five minutes: its process is certainly gone", async () => {
  const lease = { LEASE_SECONDS: "300" };
  const victim = await world.spawn(lease);
  const run = await world.submit("calm stream:held");
  await world.gate("stream:held").arrived();
  await victim.kill("SIGKILL");
  const next = await world.spawn(lease);
  await world.logged(run, "run.started", 2);
  world.gate("stream:held").open();
  const [ended] = await world.ended([run]);
  expect(ended).toMatchObject({ status: "completed", epoch: 2, attempt: 1 });
  expect(rescues(ended!.log)).toMatchObject([{ worker: victim.id, cause: "crashed" }]);
  expect(dataOf(ended!.log, "run.started")[1]).toMatchObject({ worker: next.id });
});

test("SIGSTOP: silent after the lease, no crash is counted; woken, it aborts all, writes nothing, and takes runs as a new worker", async () => {
  const stopped = await world.spawn();
  world.endpoint.hold();
  const streaming = await world.many(5, "calm stream:first");
  await world.gate("stream:first").arrived(5);
  const calling = [
    ...(await world.many(3, "pure_call stream:second")),
    ...(await world.many(3, "idempotent_call stream:second")),
  ];
  await world.endpoint.called(6);
  const other = await observer();
  process.kill(stopped.pid, "SIGSTOP");
  // The same again on the other one, and whatever the stopped one waits for has come by the time it wakes.
  await world.gate("stream:first").arrived(10);
  await world.endpoint.called(12);
  world.gate("stream:first").open();
  world.endpoint.release();
  await world.gate("stream:second").arrived(6);
  process.kill(stopped.pid, "SIGCONT");
  await stopped.waitForLine("declared dead while away");
  const anew = "SELECT id FROM workers WHERE pid = $1 AND dead_at IS NULL";
  await expect
    .poll(async () => (await world.bench.pool.query(anew, [stopped.pid])).rowCount, { timeout: 20_000 })
    .toBe(1);
  world.gate("stream:second").open();
  for (const { name, log, ...run } of await world.ended([...streaming, ...calling])) {
    expect(run, name).toMatchObject({ status: "completed", attempt: 1, crashes: 0, epoch: 2 });
    const [rescued, ...more] = rescues(log);
    expect(more, name).toEqual([]);
    expect(rescued, name).toMatchObject({ worker: stopped.id, cause: "silent" });
    expect(rescued!.crashes, name).toBeUndefined();
    const { at } = log.find(({ type }) => type === "run.rescued")!;
    expect(Date.parse(at), name).toBeGreaterThanOrEqual(Date.parse(rescued!.quiet_at!));
  }

  expect((await other.kill("SIGTERM")).code).toBe(0);
  const [later] = await world.ended([await world.submit("calm")]);
  const [started] = dataOf(later!.log, "run.started");
  const { rows } = await world.bench.pool.query(anew, [stopped.pid]);
  expect(rows).toEqual([{ id: started!.worker }]);
  expect(started!.worker).not.toBe(stopped.id);
});

test("all stopped at once, as when a machine sleeps: the first one awake condemns nobody, although all seem silent", async () => {
  const workers = await Promise.all([observer(), observer()]);
  const runs = await world.many(10, "calm stream:held");
  await world.gate("stream:held").arrived(10);
  for (const { pid } of workers) process.kill(pid, "SIGSTOP");
  for (const worker of workers) await silentFor(worker, 4);
  for (const worker of workers) {
    process.kill(worker.pid, "SIGCONT");
    await heardOf(worker);
  }
  world.gate("stream:held").open();
  for (const { name, log, ...run } of await world.ended(runs)) {
    expect(run, name).toMatchObject({ status: "completed", attempt: 1, epoch: 1 });
    expect(rescues(log), name).toEqual([]);
  }
  for (const { id } of workers) expect(await world.worker(id)).toMatchObject({ dead_at: null });
});

test.each(["SIGKILL", "SIGSTOP"] as const)(
  "%s inside an unsafe call: nobody verifies it, asks about it or makes it again before a lease and the tool's limit have passed since the last heartbeat",
  async (signal) => {
    const limitMs = 1500;
    const victim = await world.spawn({ LEASE_SECONDS: signal === "SIGKILL" ? "6" : "3" });
    world.endpoint.hold();
    const [asked, again, known] = [
      await world.submit("unsafe_call"),
      await world.submit("unsafe_not_done"),
      await world.submit("unsafe_done"),
    ];
    await world.endpoint.called(3);
    await observer({ TOOL_TIMEOUT_MS: String(limitMs) });
    process.kill(victim.pid, signal);
    const questioned = world.logged(asked, "approval.requested");
    await expect.poll(() => world.endpoint.calls.length, { timeout: 30_000 }).toBeGreaterThan(3);
    world.endpoint.release();
    await questioned;
    await world.ended([again, known]);

    const { heartbeat_at, lease_ms } = await world.worker(victim.id);
    const quietAt = heartbeat_at.getTime() + lease_ms;
    for (const run of [asked, again, known]) {
      const events = await world.log(run.id);
      const [rescued] = rescues(events);
      expect(rescued, run.name).toMatchObject({
        worker: victim.id,
        cause: signal === "SIGKILL" ? "crashed" : "silent",
      });
      expect(Date.parse(rescued!.quiet_at!), run.name).toBe(quietAt);
      const acted = events.filter(({ type }) => type === "tool.verified" || type === "approval.requested");
      expect(acted, run.name).toHaveLength(1);
      expect(Date.parse(acted[0]!.at), run.name).toBeGreaterThanOrEqual(quietAt + limitMs);
      for (const call of world.endpoint.calls.filter(({ note }) => note === `${run.name}.0`).slice(1))
        expect(call.at, `${run.name}: ${call.effect}`).toBeGreaterThanOrEqual(quietAt + limitMs);
    }
    // Its first try, a look whether that took place, and a second try: each once.
    expect(world.called(asked.name, 0)).toBe(1);
    expect(world.called(again.name, 0)).toBe(2);
    expect(world.called(known.name, 0)).toBe(1);
  },
);
