/** What many rings at once, a claim whose answer is lost, and a log nobody can read do to a worker: nothing runs twice, nothing stays behind. */
import { defaultAgent, ToolRegistry } from "@drover/harness";
import { createModels, modelConfig } from "@drover/llm";
import { type ConsumeOptions, openSignals, queueConfig, type Signals, type WakeQueue } from "@drover/queue";
import { followLog, type RunWorker, readLog, readRun, startWorker } from "@drover/runs";
import { openPool, type Pool } from "@drover/storage";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { createBudgets } from "../../packages/runs/src/money/budget.ts";
import { logsOf } from "../../packages/runs/src/observe.ts";
import { Executor } from "../../packages/runs/src/worker/executor.ts";
import { Ownership } from "../../packages/runs/src/worker/ownership.ts";
import { createGate, type ModelServer, startModelServer } from "../support/model-server.ts";
import { type FaultProxy, startProxy } from "../support/proxy.ts";
import { createBench, input, logger } from "./bench.ts";

let bench: Awaited<ReturnType<typeof createBench>>;
let models: ModelServer;
let signals: Signals;
let proxy: FaultProxy;
/** The worker's pool: through the proxy, with little patience. */
let pool: Pool;
const workers: RunWorker[] = [];
let hear: ConsumeOptions["hear"];

beforeAll(async () => {
  bench = await createBench();
  signals = await openSignals(queueConfig.parse({}), { logger, directUrl: bench.url });
});
afterAll(async () => {
  await signals.close();
  await bench.close();
});
beforeEach(async () => {
  models = await startModelServer();
  const url = new URL(bench.url);
  proxy = await startProxy(Number(url.port), url.hostname);
  url.hostname = "127.0.0.1";
  url.port = String(proxy.port);
  // A trap of the proxy knows a statement by its text.
  pool = openPool({ url: url.href, logger, max: 10, answerTimeoutMs: 1000, prepared: false });
});
afterEach(async () => {
  proxy.refuse(false);
  await Promise.all(workers.splice(0).map((worker) => worker.stop(0)));
  await pool.end();
  await Promise.all([models.close(), proxy.close()]);
  await bench.pool.query(
    "UPDATE runs SET status = 'cancelled', waiting_for = NULL, worker = NULL, finished_at = now() WHERE finished_at IS NULL",
  );
});

/** A worker that hears rings by `hear`, besides those of its queue. */
async function start(more: Partial<Parameters<typeof startWorker>[0]> = {}): Promise<RunWorker> {
  const source = createModels(modelConfig.parse({ ...models.env(), DROVER_MODEL: "anthropic/claude-sonnet-4-5" }));
  const queue: WakeQueue = {
    ...bench.queue,
    consume(options) {
      hear = options.hear;
      return bench.queue.consume(options);
    },
  };
  const worker = await startWorker({
    pool,
    directUrl: bench.url,
    blobs: bench.blobs,
    queue,
    signals,
    logger,
    agents: {
      agent: (name) => (name === "default" ? defaultAgent : undefined),
      model: (id) => source.resolve(id ?? source.default),
      tools: new ToolRegistry([]),
      policies: [],
    },
    slots: 20,
    leaseMs: 2000,
    partialEveryMs: 60_000,
    workspaces: "unused",
    ...more,
  });
  workers.push(worker);
  await expect.poll(() => worker.healthy).toBe(true);
  return worker;
}

/** Accepted without a wake-up: nobody but the test has it claimed for a second. */
async function submitQuietly(more: Partial<Parameters<typeof input>[0]> = {}): Promise<string> {
  await bench.queue.pause();
  return await bench.submit({ input: input(more) });
}

const log = (runId: string) => readLog(bench.pool, bench.blobs, { tenant: "default", runId });
const end = async (runId: string) => {
  const signal = AbortSignal.timeout(20_000);
  for await (const _ of followLog({
    db: bench.pool,
    blobs: bench.blobs,
    signals,
    tenant: "default",
    runId,
    after: 0,
    signal,
  }));
  return (await readRun(bench.pool, "default", runId))!;
};
/** Claims that wait for a lock. */
const claiming = "datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%WITH me AS%'";

test("many rings at once carry a run once", async () => {
  await start();
  const id = await submitQuietly();
  models.script(() => "the answer");
  expect([hear(), hear(), hear()]).toEqual([true, true, true]);
  expect((await end(id)).status).toBe("completed");
  expect(models.count).toBe(1);
});

test("a look whose claim's answer is lost does not carry a run that is being carried here", async () => {
  const gate = createGate();
  models.script(() => ({ text: "the answer", gate }));
  await start();
  const id = await submitQuietly();
  hear();
  await gate.arrived();
  const holder = await bench.pool.connect();
  await holder.query("BEGIN");
  await holder.query("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE");
  hear();
  const killed = () => bench.pool.query(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE ${claiming}`);
  await expect.poll(async () => (await killed()).rowCount).toBe(1);
  await holder.query("COMMIT");
  holder.release();
  gate.open();
  expect((await end(id)).status).toBe("completed");
  expect(models.count).toBe(1);
  expect((await log(id)).filter((event) => event.type === "model.call")).toHaveLength(1);
});

test("runs that were claimed while the answer got lost are carried as soon as the database can be asked", async () => {
  models.script(() => "the answer");
  const told: string[] = [];
  await start({ observe: ({ type }) => void told.push(type) });
  const ids = [await submitQuietly(), await submitQuietly()];
  const lost = proxy.loseAnswerTo("left_aside");
  hear();
  await lost;
  for (const id of ids) {
    expect(await end(id)).toMatchObject({ status: "completed", attempt: 1, steps: 1 });
    expect((await bench.row(id)).epoch).toBe(1);
  }
  expect(models.count).toBe(2);
  expect(told).not.toContain("given_back");
});

test("a run that was claimed while the answer got lost for good is not left behind", async () => {
  models.script(() => "the answer");
  await start();
  const id = await submitQuietly();
  const holder = await bench.pool.connect();
  await holder.query("BEGIN");
  await holder.query("LOCK TABLE runs IN SHARE MODE");
  hear();
  const waiting = () => bench.pool.query(`SELECT FROM pg_stat_activity WHERE ${claiming}`);
  await expect.poll(async () => (await waiting()).rowCount).toBe(1);
  proxy.refuse(true);
  proxy.cut();
  await holder.query("COMMIT");
  holder.release();
  await expect.poll(async () => (await bench.row(id)).status).toBe("running");
  proxy.refuse(false);
  await bench.queue.resume();
  expect(await end(id)).toMatchObject({ status: "completed", attempt: 1, steps: 1 });
  expect(models.count).toBe(1);
});

test("a run whose log cannot be read ends when it is overdue, and holds up no other", async () => {
  const deadline = new Date(Date.now() - 1000).toISOString();
  const limits = { soft_seconds: 25, hard_seconds: 30, deadline };
  const unreadable = await submitQuietly({ limits });
  const other = await submitQuietly({ limits });
  await bench.pool.query("DELETE FROM run_events WHERE run_id = $1", [unreadable]);
  await start();
  expect(await end(other)).toMatchObject({ status: "failed", stopReason: "deadline" });
  expect(await end(unreadable)).toMatchObject({ status: "failed", stopReason: "deadline" });
});

test("a paused queue holds runs back from idle slots as well, until it is resumed", async () => {
  models.script(() => "the answer");
  const paused = await submitQuietly();
  const looked = Promise.withResolvers<void>();
  let looks = 0;
  const queue: WakeQueue = {
    ...bench.queue,
    isPaused: async () => {
      const answer = await bench.queue.isPaused();
      if (++looks === 3) looked.resolve();
      return answer;
    },
  };
  await start({ queue });
  await looked.promise;
  expect((await bench.row(paused)).status).toBe("queued");
  await bench.queue.resume();
  expect((await end(paused)).status).toBe("completed");
});

test("a run whose log could not be written while Postgres was away goes back to the queue, it does not fail", async () => {
  models.script(() => "the answer");
  const worker = await bench.addWorker();
  const id = await submitQuietly();
  const run = await bench.claim(worker, id);
  const source = createModels(modelConfig.parse({ ...models.env(), DROVER_MODEL: "anthropic/claude-sonnet-4-5" }));
  const executor = new Executor({
    pool: bench.pool,
    blobs: bench.blobs,
    signals,
    append: async () => {
      throw Object.assign(new Error("connection reset"), { code: "ECONNRESET" });
    },
    agents: {
      agent: () => defaultAgent,
      model: () => source.resolve(source.default),
      tools: new ToolRegistry([]),
      policies: [],
    },
    budgets: createBudgets(bench.pool, AbortSignal.abort()),
    liveness: { workerId: worker, whenFresh: async () => {}, inside: (_, work) => work() },
    workspaces: "unused",
    partialEveryMs: 60_000,
    ownership: new Ownership(1000),
    observe: logsOf(logger),
    signal: AbortSignal.abort(),
  });
  expect(await executor.execute(run)).toMatchObject({ status: "queued" });
});
