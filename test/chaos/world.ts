/** What tests that kill workers share: a database, a scripted model, the tools' endpoint, and worker processes that die with the test. */
import { type EventData, type EventType, type LogEvent, ToolRegistry } from "@drover/harness";
import { checkDecision, type WantedDecision } from "@drover/harness/worker";
import { fromWireId } from "@drover/protocol";
import { decideApproval, type Run, readApproval, readLog, readOutcome, readRun, wakeRuns } from "@drover/runs";
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, vi } from "vitest";
import { createBench } from "../runs/bench.ts";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";
import { foundTwice } from "../support/twice.ts";
import { endpointTools, startToolEndpoint } from "./tools.ts";

const entry = new URL("./worker-process.ts", import.meta.url);
const patience = { timeout: 25_000, interval: 25 };

export function dataOf<T extends EventType>(log: LogEvent[], type: T): EventData[T][] {
  return log.flatMap((event) => (event.type === type ? [event.data as EventData[T]] : []));
}

/** A world with more in it. What it has already stays live: its getters are read when somebody asks. */
export function withMore<W extends object, M extends object>(world: W, more: M): W & M {
  return Object.defineProperties(Object.create(world), Object.getOwnPropertyDescriptors(more));
}

/** The id under which a worker process of `start` claims; it may have said other things before. */
export function workerIdOf(worker: SpawnedNode): string {
  return worker.lines.find((line) => line.startsWith("ready "))!.slice("ready ".length);
}

/** Call it once at the top of a test file. */
export function chaos() {
  let bench: Awaited<ReturnType<typeof createBench>>;
  let models: ModelServer;
  let endpoint: Awaited<ReturnType<typeof startToolEndpoint>>;
  const workers: SpawnedNode[] = [];
  // Several processes and a lease or two each, on a machine that may be busy.
  vi.setConfig({ testTimeout: 60_000 });

  beforeAll(async () => {
    bench = await createBench();
  });
  afterAll(() => bench.close());
  beforeEach(async () => {
    models = await startModelServer();
    endpoint = await startToolEndpoint();
  });
  afterEach(async () => {
    await Promise.all(workers.splice(0).map((worker) => worker.kill("SIGKILL")));
    await Promise.all([models.close(), endpoint.close()]);
    expect(await foundTwice(bench.pool)).toEqual([]);
    // What a test left waiting is no business of the next one.
    await bench.pool.query("DELETE FROM runs WHERE of_run IS NOT NULL");
    await bench.pool.query("DELETE FROM runs");
  });

  const readRunLog = (id: string) => readLog(bench.pool, bench.blobs, { tenant: "default", runId: id });

  async function rested(id: string, statuses: Run["status"][]) {
    await expect
      .poll(async () => (await readRun(bench.pool, "default", id))!.status, patience)
      .toSatisfy((status) => statuses.includes(status));
    const run = (await readRun(bench.pool, "default", id))!;
    const log = await readRunLog(id);
    expect(log.map((event) => event.seq)).toEqual(log.map((_, index) => index + 1));
    return { run, log };
  }

  return {
    get bench() {
      return bench;
    },
    get models() {
      return models;
    },
    get endpoint() {
      return endpoint;
    },
    log: readRunLog,
    /** A worker process, ready to claim. One that is to take over is started before the other is killed: it condemns nobody before one lease. */
    async start(more: Record<string, string> = {}): Promise<SpawnedNode> {
      const worker = spawnNode(entry, {
        env: {
          ...models.env(),
          DATABASE_URL: bench.url,
          REDIS_URL: inject("redisUrl"),
          DROVER_QUEUE_PREFIX: `{${new URL(bench.url).pathname.slice(1)}}`,
          DROVER_MODEL: "anthropic/claude-sonnet-4-5",
          TOOL_URL: endpoint.url,
          LEASE_SECONDS: "2",
          PARTIAL_EVERY_SECONDS: "0.05",
          ...more,
        },
      });
      workers.push(worker);
      await worker.waitForLine(/^ready/);
      return worker;
    },
    /** The run once it is final. */
    async ended(id: string) {
      const { run, log } = await rested(id, ["completed", "partial", "failed", "cancelled"]);
      return { run, log, outcome: (await readOutcome(bench.pool, bench.blobs, run))! };
    },
    /** The run once it waits. */
    waiting: (id: string) => rested(id, ["waiting"]),
    /** Decides a run's latest question. The wake-up that should follow the commit is only sent if asked for. */
    async decide(id: string, wanted: Omit<WantedDecision, "by">, { wake }: { wake: boolean }): Promise<void> {
      const question = dataOf(await readRunLog(id), "approval.requested").at(-1)!;
      const asked = (await readApproval(bench.pool, "default", fromWireId("approval", question.approval_id)!))!;
      const tool = new ToolRegistry(endpointTools(endpoint.url)).get(asked.toolName ?? "");
      const checked = await checkDecision(question, { ...wanted, by: "key_person" }, tool);
      if ("problem" in checked) throw new Error(checked.problem.message);
      const { resumed } = await decideApproval(bench.pool, bench.blobs, asked, checked.decision);
      if (wake) await wakeRuns(bench.queue, resumed ? [resumed] : []);
    },
    /** Resolves when the log has an event of this type. */
    logged: (id: string, type: EventType) =>
      expect.poll(async () => (await readRunLog(id)).map((event) => event.type), patience).toContain(type),
  };
}
