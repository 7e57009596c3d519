/** A database, a scripted model and real workers in this process: for tests of what durable runs do, told by their rows and logs. */
import {
  type AgentDefinition,
  type AnyTool,
  type EventData,
  type EventType,
  type LogEvent,
  ToolRegistry,
} from "@drover/harness";
import { createModels, modelConfig } from "@drover/llm";
import { openSignals, queueConfig, type Signals } from "@drover/queue";
import {
  type AgentSource,
  type Observe,
  type Run,
  type RunWorker,
  readLog,
  readOutcome,
  readRun,
  type Submission,
  startWorker,
  waitForRun,
  wakeRuns,
} from "@drover/runs";
import { afterAll, afterEach, beforeAll, expect, inject } from "vitest";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { createBench, logger } from "./bench.ts";

export interface Installation {
  tools?: AnyTool[];
  agents?: Record<string, AgentDefinition>;
  known?: NonNullable<AgentSource["known"]>;
  noWorkerMs?: number;
  observe?: Observe;
}

export function dataOf<T extends EventType>(log: LogEvent[], type: T): EventData[T][] {
  return log.flatMap((event) => (event.type === type ? [event.data as EventData[T]] : []));
}

const patience = { timeout: 25_000, interval: 20 };
const rests = (status: Run["status"]) => status !== "queued" && status !== "running";

/** Call it once at the top of a test file. Workers end with their test. */
export function live() {
  let bench: Awaited<ReturnType<typeof createBench>>;
  let models: ModelServer;
  let signals: Signals;
  const workers: RunWorker[] = [];
  beforeAll(async () => {
    bench = await createBench();
    models = await startModelServer();
    const config = queueConfig.parse({
      REDIS_URL: inject("redisUrl"),
      DROVER_QUEUE_PREFIX: `{${bench.url.split("/").at(-1)}}`,
    });
    signals = await openSignals(config, { logger, directUrl: bench.url });
  });
  afterEach(async () => {
    await Promise.all(workers.splice(0).map((worker) => worker.stop(0)));
    models.reset();
    await bench.pool.query("DELETE FROM runs WHERE of_run IS NOT NULL");
    await bench.pool.query("DELETE FROM runs");
  });
  afterAll(async () => {
    await signals.close();
    await models.close();
    await bench.close();
  });

  const log = (id: string, tenant = "default") => readLog(bench.pool, bench.blobs, { tenant, runId: id });

  return {
    get bench() {
      return bench;
    },
    get models() {
      return models;
    },
    async start(
      { tools = [], agents = {}, known, noWorkerMs, observe }: Installation = {},
      slots = 20,
    ): Promise<RunWorker> {
      const source = createModels(modelConfig.parse({ ...models.env(), DROVER_MODEL: "anthropic/claude-sonnet-4-5" }));
      const worker = await startWorker({
        pool: bench.pool,
        directUrl: bench.url,
        blobs: bench.blobs,
        queue: bench.queue,
        signals,
        logger,
        agents: {
          agent: (name) => agents[name] ?? (name === "default" ? {} : undefined),
          model: (id) => source.resolve(id ?? source.default),
          tools: new ToolRegistry(tools),
          policies: [],
          ...(known && { known }),
        },
        ...(noWorkerMs !== undefined && { noWorkerMs }),
        ...(observe && { observe }),
        slots,
        leaseMs: 2000,
        partialEveryMs: 1000,
        workspaces: "unused",
      });
      workers.push(worker);
      return worker;
    },
    submit: (more: Partial<Submission> = {}) => bench.submit(more),
    log,
    /** The run once it is final or waits. */
    async rest(id: string, tenant = "default") {
      const signal = new AbortController().signal;
      await waitForRun(
        { db: bench.pool, blobs: bench.blobs, signals, tenant, runId: id, waitMs: 20_000, signal },
        ({ status }) => rests(status),
      );
      const run = (await readRun(bench.pool, tenant, id))!;
      const events = await log(id, tenant);
      expect(run.status, JSON.stringify(events)).toSatisfy(rests);
      return { run, log: events, outcome: await readOutcome(bench.pool, bench.blobs, run) };
    },
    /** Resolves when a query answers with what is expected. */
    until: async (sql: string, values: unknown[], expected: object) =>
      expect.poll(async () => (await bench.pool.query(sql, values)).rows[0], patience).toMatchObject(expected),
    wake: (runs: Parameters<typeof wakeRuns>[1]) => wakeRuns(bench.queue, runs),
  };
}
