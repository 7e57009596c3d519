/**
 * Cancelled in every state, through one API process while another accepted it and any worker has it; twice, which says the same. Nothing starts
 * once a cancel was acknowledged, and what there was is kept.
 */
import { setTimeout as pause } from "node:timers/promises";
import { expect, test, vi } from "vitest";
import { startProxy } from "../support/proxy.ts";
import { startRedis } from "../support/redis.ts";
import { type ApiProcess, cancelling, type WorkerProcess } from "./cancel-world.ts";
import { dataOf } from "./world.ts";

const world = cancelling();
vi.setConfig({ testTimeout: 90_000 });

/** So rarely do workers beat then that what they hear in between, they were told. */
const told = { LEASE_SECONDS: "100" };
const short = { LEASE_SECONDS: "2" };

/** Cancels twice, through either API; both say the same, or that it has ended meanwhile. */
async function cancelTwice([first, second]: [ApiProcess, ApiProcess], taskId: string) {
  const answer = await first.cancel(taskId);
  const again = await second.cancel(taskId);
  const final = { status: 200, body: { task_id: taskId, status: "cancelled" } };
  if (answer.status === 200) expect(answer).toEqual(final);
  else {
    expect(answer).toEqual({ status: 202, body: { task_id: taskId, status: "running", cancel_requested: true } });
    if (again.status === 202) expect(again).toEqual(answer);
  }
  if (answer.status === 200 || again.status === 200) expect(again).toEqual(final);
  return answer.status;
}

/** It ends, with its cancel as the last thing, and one message. Returns how long that took after the request, ms. */
async function expectCancelled(api: ApiProcess, taskId: string, output: string | null = null): Promise<number> {
  const { run, log } = await world.ended(taskId);
  expect(run.status).toBe("cancelled");
  const types = log.map(({ type }) => type);
  expect(types.at(-1)).toBe("run.cancelled");
  const requests = log.filter(({ type }) => type === "run.cancel_requested");
  expect(requests.length).toBeLessThanOrEqual(1);
  const { rows } = await world.bench.pool.query(
    "SELECT type FROM messages WHERE run_id = $1 AND type <> 'query.waiting'",
    [run.id],
  );
  expect(rows).toEqual([{ type: "query.cancelled" }]);
  const result = await api.call("GET", `/query/result/${taskId}`);
  expect(result).toMatchObject({
    status: 409,
    body: { code: "conflict", error: { code: "cancelled" }, result: { output } },
  });
  expect((await api.cancel(taskId)).body).toEqual({ task_id: taskId, status: "cancelled" });
  const from = requests[0] ?? log.at(-1)!;
  return Date.parse(log.at(-1)!.at) - Date.parse(from.at);
}

/** Of many cancels each is heard at once, and at least one while its worker's heart did not beat. */
async function expectTold([one, two]: [ApiProcess, ApiProcess], workers: WorkerProcess[]): Promise<void> {
  const rounds = 8;
  const took: number[] = [];
  let proven = 0;
  for (let n = 0; n < rounds; n++) {
    const taskId = await one.submit(`told-${n}: stream`);
    await world.gate(`told-${n}`).arrived();
    expect((await two.cancel(taskId)).status).toBe(202);
    took.push(await expectCancelled(two, taskId));
    const log = await world.log(taskId);
    expect(log.slice(-2).map(({ type }) => type)).toEqual(["run.cancel_requested", "run.cancelled"]);
    const { worker } = dataOf(log, "run.started")[0]!;
    expect(workers.map(({ id }) => id)).toContain(worker);
    const { rows } = await world.bench.pool.query("SELECT heartbeat_at FROM workers WHERE id = $1", [worker]);
    // Its heart has not beaten since: nothing else can have told it.
    if (rows[0].heartbeat_at < new Date(log.at(-2)!.at)) proven++;
  }
  took.sort((a, b) => a - b);
  console.log(`ms from the request to the end, in a model stream: median ${took[rounds / 2]}, worst ${took.at(-1)}`);
  expect(proven).toBeGreaterThan(0);
}

test("in every state, from any API process to any worker", async () => {
  const apis: [ApiProcess, ApiProcess] = await Promise.all([world.api(told), world.api(told)]);
  const [one, two] = apis;
  const took: Record<string, number> = {};
  /** What the model and the tools had been asked by then is all they are ever asked. */
  const counts = new Map<string, [asked: number, called: number]>();
  async function cancel(name: string, taskId: string, expected: 200 | 202, output: string | null = null) {
    expect(await cancelTwice([two, one], taskId), name).toBe(expected);
    counts.set(name, [world.asked(name).length, world.called(name).length]);
    took[name] = await expectCancelled(one, taskId, output);
  }

  // Nobody has them yet.
  await cancel("queued", await one.submit("queued: put"), 200);
  await cancel("delayed", await one.submit("delayed: put", { delay_seconds: 3600 }), 200);

  // Claimed, and its log cannot be read yet.
  const starting = await one.submit("starting: put", { context: { large: "x".repeat(40_000) } });
  let workers: WorkerProcess[] = [];
  await world.withoutContents(async () => {
    workers = await Promise.all([world.worker(told), world.worker(told)]);
    await world.until(async () => (await world.types(starting)).at(-1), "run.started");
    expect(await cancelTwice([two, one], starting)).toBe(202);
  });
  counts.set("starting", [0, 0]);
  await expectCancelled(one, starting);

  const streaming = await one.submit("streaming: put stream");
  world.gate("streaming").pass(2);
  await world.logged(streaming, "model.partial");
  await cancel("streaming", streaming, 202, "the beginning of streaming, and ");
  expect(await world.asked("streaming").at(-1)!.closed).toBe(true);

  world.endpoint.hold();
  for (const name of ["obedient", "deaf"]) {
    const taskId = await one.submit(`${name}: ${name} put`);
    await world.until(() => world.called(name).length, 1);
    await cancel(name, taskId, 202);
  }
  const late = await one.submit("late: deaf");
  await world.until(() => world.called("late").length, 1);
  await cancel("late", late, 202);
  const log = await world.log(late);
  world.endpoint.release();

  const spinning = await one.submit("spinning: spin");
  const child = () => world.endpoint.calls.find(({ effect }) => effect === "spin")?.note;
  await world.until(() => child() !== undefined, true);
  await cancel("spinning", spinning, 202);
  await world.until(() => isAlive(Number(child())), false);

  const asking = await one.submit("asking: send");
  await world.logged(asking, "run.waiting");
  await cancel("asking", asking, 200);
  const questions = await two.call("GET", `/query/${asking}/approvals?status=expired`);
  expect(questions.body.data).toMatchObject([{ tool_name: "send", status: "expired" }]);

  const poor = await one.submit("poor: put", { max_cost_usd: 0.000001, budget: { at_cap: "pause" } });
  await world.logged(poor, "run.waiting");
  await cancel("poor", poor, 200);

  const busy = await one.submit("busy: busy");
  await world.logged(busy, "run.retrying");
  await cancel("busy", busy, 200);

  const undone = await one.submit("undone: put");
  expect((await world.ended(undone)).run.status).toBe("completed");
  world.endpoint.hold();
  const { body: rollback } = await one.call("POST", `/query/${undone}/rollback`);
  await world.until(() => world.called("undone").length, 1);
  counts.set("undone", [2, 1]);
  expect(await cancelTwice([two, one], rollback.task_id)).toBe(202);
  took.rollback = await expectCancelled(one, rollback.task_id);
  world.endpoint.release();

  await expectTold(apis, workers);
  // Time enough for anything that was not stopped to show.
  expect((await world.ended(await one.submit("last: put"))).run.status).toBe("completed");
  for (const [name, before] of counts)
    expect([world.asked(name).length, world.called(name).length], name).toEqual(before);
  expect(await world.log(late)).toEqual(log);
  console.log("ms from the request to the end:", JSON.stringify(took));
});

test("a cancel and a completion have one winner, and whoever cancels is told which", async () => {
  const api = await world.api(told);
  await world.worker(told);
  const won = { cancelled: 0, completed: 0 };
  const rounds = { least: 30, most: 400, each: 6 };
  /** How long after the answer's last words the cancel is sent, ms: looks for the moment at which both may win. */
  let lagMs = 5;
  for (let n = 0; n < rounds.most; n++) {
    const taskId = await api.submit(`race-${n}: stream`);
    const gate = world.gate(`race-${n}`);
    await gate.arrived();
    gate.open();
    await pause(lagMs);
    const answer = await api.cancel(taskId);
    const { run, log, outcome } = await world.ended(taskId);
    if (run.status === "completed") {
      // It was over when it was to be cancelled: nobody was promised anything.
      expect(answer).toEqual({ status: 200, body: { task_id: taskId, status: "completed" } });
      expect(outcome.result.output).toBe(`the beginning of race-${n}, and its end`);
      expect(log.some(({ type }) => type === "run.cancel_requested")).toBe(false);
      won.completed++;
      lagMs *= 0.8;
    } else {
      expect(run.status).toBe("cancelled");
      expect(answer.body.cancel_requested ?? answer.body.status === "cancelled").toBe(true);
      won.cancelled++;
      lagMs = lagMs * 1.25 + 0.5;
    }
    expect(log.filter(({ type }) => /^run\.(completed|partial|failed|cancelled)$/.test(type))).toHaveLength(1);
    if (n + 1 >= rounds.least && Math.min(won.cancelled, won.completed) >= rounds.each) break;
  }
  console.log("won:", JSON.stringify(won));
  expect(Math.min(won.cancelled, won.completed)).toBeGreaterThanOrEqual(rounds.each);
});

test("a batch takes its items with it, in whatever state they are, and leaves alone what has ended", async () => {
  const [one, two] = await Promise.all([world.api(told), world.api(told)]);
  await Promise.all([world.worker(told), world.worker(told)]);
  world.endpoint.hold();
  const { body: batch } = await one.call("POST", "/query/batch", {
    queries: [
      "b0: ",
      "b1: stream",
      "b2: deaf",
      "b3: send",
      "b4: busy",
      { query: "b5: put", delay_seconds: 3600 },
      { query: "b6: put", max_cost_usd: 0.000001, budget: { at_cap: "pause" } },
    ],
  });
  const path = `/query/batch/${batch.batch_id}`;
  const counts = async () => (await two.call("GET", path)).body.counts;
  await world.gate("b1").arrived();
  await world.until(() => world.called("b2").length, 1);
  await world.until(counts, { queued: 2, running: 2, waiting: 2, completed: 1, partial: 0, failed: 0, cancelled: 0 });
  await world.until(() => world.asked("b4").length, 1);

  const answer = await two.call("POST", `${path}/cancel`);
  // The workers may be done with the two that run before it is written.
  const [ended, status] = answer.status === 200 ? [200, "cancelled"] : [202, "running"];
  expect(answer).toMatchObject({
    status: ended,
    body: { status, cancel_requested: true, counts: { queued: 0, waiting: 0 } },
  });
  const over = { queued: 0, running: 0, waiting: 0, completed: 1, partial: 0, failed: 0, cancelled: 6 };
  await world.until(async () => (await one.call("GET", path)).body.status, "cancelled");
  for (const api of [one, two]) {
    const again = await api.call("POST", `${path}/cancel`);
    expect(again).toMatchObject({ status: 200, body: { status: "cancelled", counts: over } });
  }
  const statuses = (await one.call("GET", path)).body.data.map(({ status }: { status: string }) => status);
  expect(statuses).toEqual(["completed", ...Array(6).fill("cancelled")]);
  world.endpoint.release();
  expect(world.models.calls.filter(({ turn }) => turn > 0)).toEqual([]);

  const { body: next } = await one.call("POST", "/query/batch", { queries: ["b7: "] });
  await world.until(async () => (await one.call("GET", `/query/batch/${next.batch_id}`)).body.status, "completed");
  const tooLate = await two.call("POST", `/query/batch/${next.batch_id}/cancel`);
  expect(tooLate).toMatchObject({ status: 200, body: { status: "completed", counts: { completed: 1, cancelled: 0 } } });
  expect(tooLate.body).not.toHaveProperty("cancel_requested");
});

test("while its worker is stopped, dead, or going: it ends all the same, and what comes late is dropped", async () => {
  const api = await world.api(short);
  const stopped = await world.worker(short);
  const streams = async (name: string) => {
    const taskId = await api.submit(`${name}: stream`);
    world.gate(name).pass(1);
    await world.logged(taskId, "model.partial");
    return taskId;
  };
  const held = await streams("held");
  const other = await world.worker(short);

  process.kill(stopped.pid, "SIGSTOP");
  expect((await api.cancel(held)).status).toBe(202);
  const heldMs = await expectCancelled(api, held, "the beginning of held, ");
  expect(heldMs).toBeLessThan(17_000);
  const log = await world.log(held);
  world.gate("held").open();
  process.kill(stopped.pid, "SIGCONT");
  await stopped.kill("SIGTERM");
  expect(await world.log(held)).toEqual(log);

  const orphan = await streams("orphan");
  const heir = await world.worker(short);
  await other.kill("SIGKILL");
  // Before anybody has noticed, or after: it is not carried on.
  expect([200, 202]).toContain((await api.cancel(orphan)).status);
  const orphanMs = await expectCancelled(api, orphan, "the beginning of orphan, ");
  expect(orphanMs).toBeLessThan(17_000);

  // Its worker is told to stop and waits for the model, while a hand-over puts the next one back in the queue.
  const going = await streams("going");
  const ended = heir.kill("SIGTERM");
  expect((await api.cancel(going)).status).toBe(202);
  await expectCancelled(api, going, "the beginning of going, ");
  expect((await ended).code).toBe(0);

  const last = await world.worker({ ...short, SHUTDOWN_GRACE_SECONDS: "0" });
  const handedOver = await streams("handed");
  await last.kill("SIGTERM");
  await world.logged(handedOver, "run.handed_over");
  expect(await cancelTwice([api, api], handedOver)).toBe(200);
  await expectCancelled(api, handedOver, "the beginning of handed, ");
  for (const name of ["held", "orphan", "going", "handed"]) expect(world.asked(name), name).toHaveLength(1);
  console.log(`ms from the request to the end: stopped ${heldMs}, killed ${orphanMs}`);
});

test("while Redis is away", async () => {
  const redis = await startRedis();
  const env = { ...told, REDIS_URL: redis.url };
  const api = await world.api(env);
  await world.worker(env);
  const running = await api.submit("running: stream");
  await world.gate("running").arrived();
  const delayed = await api.submit("delayed: put", { delay_seconds: 3600 });
  await redis.kill("SIGKILL");
  expect(await cancelTwice([api, api], running)).toBe(202);
  expect(await cancelTwice([api, api], delayed)).toBe(200);
  await expectCancelled(api, running);
  await expectCancelled(api, delayed);
  expect(world.asked("running")).toHaveLength(1);
});

test("told of it before its claim's answer has come, a worker asks no model", async () => {
  const api = await world.api(told);
  const taskId = await api.submit("early: put");
  const proxy = await startProxy(Number(new URL(world.bench.url).port));
  const through = new URL(world.bench.url);
  through.port = String(proxy.port);
  const client = await world.bench.pool.connect();
  try {
    await client.query("BEGIN");
    await client.query("LOCK TABLE runs IN SHARE MODE");
    await world.worker({ ...told, DATABASE_URL: through.href, DATABASE_DIRECT_URL: world.bench.url });
    const claims = async () =>
      (
        await world.bench.pool.query(
          "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'drover-worker' AND wait_event_type = 'Lock' AND query LIKE '%WITH me AS%'",
        )
      ).rowCount;
    await world.until(async () => (await claims())! > 0, true);
    proxy.blackhole(true);
    await client.query("COMMIT");
    await world.until(async () => (await world.types(taskId)).at(-1), "run.started");
    expect((await api.cancel(taskId)).status).toBe(202);
    // Nothing tells that the worker has been told; if it has not, it hears it a moment later.
    await pause(200);
    proxy.blackhole(false);
    await expectCancelled(api, taskId);
    expect(world.asked("early")).toHaveLength(0);
  } finally {
    await client.query("ROLLBACK");
    client.release();
    await proxy.close();
  }
});

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
