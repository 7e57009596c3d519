/** Time limits, with everything that ignores them: each run ends in its time with what it had, and its slot comes back. */
import { expect, test } from "vitest";
import { freePort } from "../support/ports.ts";
import { type EndedRun, fleet, rescues } from "./fleet.ts";
import { dataOf } from "./world.ts";

const world = fleet();
const limited = (soft_seconds: number, hard_seconds: number) => ({ limits: { soft_seconds, hard_seconds } });
/** From its first start to its end by the database's clock, ms. */
const lasted = ({ log, finishedAt }: EndedRun) =>
  finishedAt.getTime() - Date.parse(log.find(({ type }) => type === "run.started")!.at);
const pastBy = (id: string, seconds: number) =>
  world.until(
    "SELECT clock_timestamp() > started_at + $2 * interval '1 second' AS past FROM runs WHERE id = $1",
    [id, seconds],
    [{ past: true }],
  );
const wrapUps = () => world.models.calls.filter(({ query }) => query.startsWith("The time for this task is over"));

test("at the soft limit no new call starts, and a wrap-up turn is taken from the time kept for it; a stream is cut when nothing else is left", async () => {
  await world.spawn();
  world.endpoint.hold();
  const calling = await world.submit("pure_call calm", limited(2, 40));
  const streaming = await world.submit("calm stream:held", limited(2, 10));
  await world.endpoint.called(1);
  await pastBy(calling.id, 2.2);
  world.endpoint.release();
  const [called, cut] = await world.ended([calling, streaming]);

  expect(called).toMatchObject({ status: "partial", stopReason: "time_limit", attempt: 1 });
  expect(dataOf(called!.log, "tool.result")).toMatchObject([{ tool_name: "pure_call", status: "ok" }]);
  expect(world.asked(calling.name, 1)).toBe(0);
  expect(dataOf(called!.log, "run.partial")[0]!.output).toBe("wrapped up");

  expect(cut).toMatchObject({ status: "partial", stopReason: "time_limit", attempt: 1 });
  expect(dataOf(cut!.log, "run.partial")[0]!.output).toBe("wrapped up");
  // Half of the time between its limits is the wrap-up turn's.
  const [, wrapUp] = cut!.log.filter(({ type }) => type === "model.call");
  const startedAt = Date.parse(cut!.log.find(({ type }) => type === "run.started")!.at);
  expect(Date.parse(wrapUp!.at) - startedAt).toBeGreaterThanOrEqual(6000);
  expect(wrapUps()).toHaveLength(2);
  for (const { body } of wrapUps()) expect(body.tool_choice).toEqual({ type: "none" });
});

test("whatever ignores its limit gives the one slot back: a deaf tool, a promise that never settles, a stream that stalls, a wrap-up that hangs", async () => {
  const port = await freePort();
  const worker = await world.spawn({
    WORKER_CONCURRENCY: "1",
    MODEL_IDLE_TIMEOUT_SECONDS: "1",
    WORKER_PORT: String(port),
    WORKER_HOST: "127.0.0.1",
  });
  world.endpoint.hold();
  // It waits for a person for longer than it may run, which costs it nothing.
  const asking = await world.submit("send_call calm", limited(2, 2.5));
  await world.waiting(asking.id);
  const deaf = await world.submit("deaf", limited(1, 2));
  const never = await world.submit("never", limited(1, 2));
  const hanging = await world.submit("calm never hang", limited(1, 2));
  const retry = { max_attempts: 1, backoff_ms: 10, max_backoff_ms: 10 };
  const stalled = await world.submit("stall:2", { retry });
  const last = await world.submit("calm");
  const [gone, unsettled, hung, idle, next] = await world.ended([deaf, never, hanging, stalled, last]);
  for (const run of [gone, unsettled, hung]) {
    expect(run, run!.name).toMatchObject({ stopReason: "time_limit", attempt: 1, epoch: 1 });
    expect(lasted(run!), run!.name).toBeLessThan(17_000);
  }
  expect(hung).toMatchObject({ status: "partial" });
  // Tried three times in place, and ended with what had come.
  expect(world.asked(stalled.name, 0)).toBe(3);
  expect(dataOf(idle!.log, "run.partial")[0]!.output).toContain("some words");
  expect(next).toMatchObject({ status: "completed", epoch: 1 });

  // The deaf one ends after its run: what it returns is dropped and counted.
  world.endpoint.release();
  const late = async () => {
    const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
    return /drover_late_results_dropped_total\{what="tool"\} (\d+)/.exec(text)?.[1];
  };
  await expect.poll(late, { timeout: 10_000 }).toBe("1");
  expect((await world.log(deaf.id)).at(-1)!.seq).toBe(gone!.log.length);

  await world.decide(asking.id, { decision: "approve" }, { wake: true });
  const [approved] = await world.ended([asking]);
  expect(approved).toMatchObject({ status: "completed", epoch: 2 });
  expect(lasted(approved!)).toBeGreaterThan(2500);
  expect(approved!.activeMs).toBeLessThan(2500);
  expect(await world.worker(worker.id)).toMatchObject({ dead_at: null });
});

test("a deadline counts in the queue too: what never started fails there, and no model is asked", async () => {
  await world.spawn({ WORKER_CONCURRENCY: "1" });
  const holding = await world.submit("stream:held");
  await world.gate("stream:held").arrived();
  const deadline = new Date(Date.now() + 1500).toISOString();
  const queued = await world.submit("calm", { limits: { soft_seconds: 250, hard_seconds: 300, deadline } });
  const [run] = await world.ended([queued]);
  expect(run).toMatchObject({ status: "failed", stopReason: "deadline", epoch: 0 });
  expect(run!.log.map(({ type }) => type)).toEqual(["run.queued", "run.failed"]);
  expect(run!.finishedAt.getTime()).toBeGreaterThanOrEqual(Date.parse(deadline));
  expect(world.asked(queued.name, 0)).toBe(0);
  world.gate("stream:held").open();
  expect((await world.ended([holding]))[0]).toMatchObject({ status: "completed" });
});

test("a run that is taken over twice does not get its time anew", async () => {
  const hardMs = 100_000;
  const workers = await Promise.all([1, 2, 3].map(() => world.spawn()));
  const run = await world.submit("calm stream:held", limited(90, hardMs / 1000));
  const row = async () => {
    const { rows } = await world.bench.pool.query(
      `SELECT worker, active_ms, (extract(epoch FROM hard_at - claimed_at) * 1000)::int AS left_ms FROM runs WHERE id = $1`,
      [run.id],
    );
    return rows[0];
  };
  for (const times of [1, 2, 3]) {
    await world.gate("stream:held").arrived();
    const { worker, active_ms, left_ms } = await row();
    expect(active_ms + left_ms).toBe(hardMs);
    if (times === 3) break;
    await pastBy(run.id, times * 2);
    await workers.find(({ id }) => id === worker)!.kill("SIGKILL");
    await world.logged(run, "run.rescued", times);
    await world.logged(run, "run.started", times + 1);
  }
  world.gate("stream:held").open();
  const [ended] = await world.ended([run]);
  expect(ended).toMatchObject({ status: "completed", epoch: 3, attempt: 1 });
  expect(rescues(ended!.log)).toHaveLength(2);
  // Every moment that somebody was known to work on it, and none besides: a lost owner's last one is its last heartbeat.
  const { rows } = await world.bench.pool.query<{ id: string; heartbeat_at: Date }>(
    "SELECT id, heartbeat_at FROM workers",
  );
  const heartbeats = new Map(rows.map((worker) => [worker.id, worker.heartbeat_at.getTime()]));
  const completedAt = Date.parse(ended!.log.at(-1)!.at);
  const owned = ended!.log
    .filter((event) => event.type === "run.started")
    .reduce(
      (sum, { at, data }, index) => sum + (index === 2 ? completedAt : heartbeats.get(data.worker)!) - Date.parse(at),
      0,
    );
  expect(Math.abs(ended!.activeMs - owned)).toBeLessThan(1000);
  expect(owned).toBeGreaterThan(2000);
});

test("everything dies and stays away for longer than the hard limit: the run goes on with the rest of its time", async () => {
  const hardMs = 8000;
  const first = await world.spawn();
  const run = await world.submit("calm stream:held", limited(6, hardMs / 1000));
  await world.gate("stream:held").arrived();
  await pastBy(run.id, 1);
  await first.kill("SIGKILL");
  await pastBy(run.id, hardMs / 1000 + 1);
  await world.spawn();
  await world.logged(run, "run.started", 2);
  world.gate("stream:held").open();
  const [ended] = await world.ended([run]);
  expect(ended).toMatchObject({ status: "completed", epoch: 2 });
  expect(ended!.activeMs).toBeLessThan(hardMs);
});

test("a living worker that does not end a run is overruled 15 s past the hard limit, and its later result is refused", async () => {
  await world.spawn();
  const run = await world.submit("calm stream:held");
  await world.gate("stream:held").arrived();
  // Its own clock still shows five minutes.
  const moved =
    "UPDATE runs SET hard_at = now() - interval '13 seconds', soft_at = now() - interval '14 seconds' WHERE id = $1 RETURNING hard_at";
  const { hard_at } = (await world.bench.pool.query(moved, [run.id])).rows[0];
  const [ended] = await world.ended([run]);
  expect(ended).toMatchObject({ status: "partial", stopReason: "time_limit", epoch: 1 });
  expect(ended!.finishedAt.getTime()).toBeGreaterThanOrEqual(hard_at.getTime() + 15_000);
  world.gate("stream:held").open();
  // The slot is free, and the log as it was.
  const [next] = await world.ended([await world.submit("calm")]);
  expect(next).toMatchObject({ status: "completed" });
  expect(await world.log(run.id)).toEqual(ended!.log);
});
