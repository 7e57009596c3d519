/**
 * What tests that break the queue share, on top of `world.ts`: runs of three steps with a query of their own each, an API process, and what
 * must hold in the end: every run final exactly once, its log without a gap, and no step asked for twice.
 */
import { fromWireId, loadConfig } from "@drover/protocol";
import { openQueue, queueConfig, type WakeQueue } from "@drover/queue";
import { createSubmitter } from "@drover/runs";
import { afterEach, expect, vi } from "vitest";
import { input, logger, submission } from "../runs/bench.ts";
import type { Gate } from "../support/model-server.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";
import { chaos, withMore } from "./world.ts";

/** Outages in their full length and all of the load; otherwise a tenth and a fifth. */
export const full = process.env.DROVER_CHAOS === "full";
/** Figures, printed by full runs. */
export function tell(what: string, since?: number): void {
  if (full) console.log(since === undefined ? what : `${what}: ${Math.round(performance.now() - since)} ms`);
}
const apiMain = new URL("../../apps/api/src/main.ts", import.meta.url);
const apiKey = "chaos-0123456789abcdef";
const finals = "('completed', 'partial', 'failed', 'cancelled')";

/** Where the queue is, as a process reads it; none: on the test's Postgres. */
interface QueueEnv {
  REDIS_URL?: string;
  DROVER_QUEUE_PREFIX?: string;
}

/** A run as it ended. */
interface Ended {
  id: string;
  epoch: number;
  wake: number;
  /** How often it was taken over from a dead worker. */
  rescues: number;
  /** The workers that claimed it, in order. */
  workers: string[];
}

/** Call it once at the top of a test file. */
export function queueChaos() {
  const world = chaos();
  const queues: WakeQueue[] = [];
  const apis: SpawnedNode[] = [];
  vi.setConfig({ testTimeout: 120_000 });
  let submitted = 0;
  afterEach(async () => {
    await Promise.all([...queues.splice(0).map((queue) => queue.close()), ...apis.splice(0).map((api) => api.kill())]);
  });

  const environment = (at: QueueEnv) => ({ REDIS_URL: "", DROVER_QUEUE_PREFIX: "{drover}", ...at });
  const query = () => `q${submitted++}`;
  // On a busy machine a step may take long: no run here is to end for its time.
  const limits = { soft_seconds: 500, hard_seconds: 600 };
  const one = () => submission({ input: input({ query: query(), limits }) });

  async function open(at: QueueEnv): Promise<WakeQueue> {
    const config = loadConfig(queueConfig, environment(at));
    const queue = await openQueue(config, { logger, postgresUrl: world.bench.url });
    queues.push(queue);
    return queue;
  }

  /** Waits until these runs are final, and holds them against what was promised. `steps` of the run at this index (default 3). */
  async function ended(
    ids: string[],
    expected: { steps?: (index: number) => number; timeout?: number } = {},
  ): Promise<Ended[]> {
    const { pool } = world.bench;
    const left = async () =>
      (await pool.query(`SELECT id FROM runs WHERE id = ANY($1) AND status NOT IN ${finals}`, [ids])).rowCount;
    await expect.poll(left, { timeout: expected.timeout ?? 60_000, interval: 50 }).toBe(0);
    const { rows } = await pool.query<Ended & { status: string; last_seq: number; seqs: number[]; types: string[] }>(
      `SELECT r.id, r.status, r.epoch, r.wake, r.last_seq, array_agg(e.seq ORDER BY e.seq)::int[] AS seqs,
              array_agg(e.type ORDER BY e.seq) AS types, count(*) FILTER (WHERE e.type = 'run.rescued')::int AS rescues,
              array_agg(e.data->>'worker' ORDER BY e.seq) FILTER (WHERE e.type = 'run.started') AS workers
       FROM runs r JOIN run_events e ON e.run_id = r.id WHERE r.id = ANY($1) GROUP BY r.id ORDER BY r.id`,
      [ids],
    );
    expect(rows.map((run) => run.id)).toEqual(ids.toSorted());
    const indexOf = new Map(ids.map((id, index) => [id, index]));
    for (const run of rows) {
      expect(run.seqs).toEqual(Array.from({ length: run.last_seq }, (_, index) => index + 1));
      expect(run.types.filter((type) => /^run\.(completed|partial|failed|cancelled)$/.test(type))).toHaveLength(1);
      expect(run.types.at(-1)).toBe("run.completed");
      expect(run.types.filter((type) => type === "model.call" || type === "tool.result")).toHaveLength(
        expected.steps?.(indexOf.get(run.id)!) ?? 3,
      );
    }
    const { rows: owed } = await pool.query("SELECT run_id FROM messages WHERE run_id = ANY($1)", [ids]);
    expect(owed.map((message) => message.run_id).toSorted()).toEqual(ids.toSorted());
    return rows;
  }

  return withMore(world, {
    open,
    /** A worker process on this queue, ready to claim. Where none dies the lease is long: on a busy machine nobody is to be taken for dead. */
    worker: (at: QueueEnv, more: Record<string, string> = {}) =>
      world.start({ WORKER_CONCURRENCY: "40", LEASE_SECONDS: "10", ...environment(at), ...more }),
    /** A model call, a call of a pure tool, a model call. The text of the second waits at `gate`. */
    threeSteps(gate?: Gate): void {
      world.models.script(({ turn, query }) =>
        turn === 0
          ? { toolCalls: [{ name: "pure_call", input: { note: query } }] }
          : { text: "done", ...(gate && { gate }) },
      );
    },
    /** Submits this many and returns their ids once they are committed. */
    async submit(queue: WakeQueue, count: number): Promise<string[]> {
      const { submit } = createSubmitter({ ...world.bench, queue, logger });
      const runs = Array.from({ length: count }, () => submit(one()));
      return (await Promise.all(runs)).map((run) => run.id);
    },
    ended,
    /** The model calls that were asked for more than once, as "<query> <turn>". */
    askedAgain(): string[] {
      const steps = world.models.calls.map(({ query, turn }) => `${query} ${turn}`);
      return [...new Set(steps.filter((step, index) => steps.indexOf(step) !== index))];
    },
    /** Resolves when each of these workers has heard a ring from now on, and carried what it was for. */
    async ringsReach(at: QueueEnv, workers: SpawnedNode[], { withRun = true } = {}): Promise<void> {
      const queue = await open(at);
      const rings = (worker: SpawnedNode) => worker.lines.filter((line) => line === "rung").length;
      const before = new Map(workers.map((worker) => [worker, rings(worker)]));
      const silent = async () => {
        // Eight at once, so that one quick worker does not hear them all before another has asked.
        await queue.wake(1000).catch(() => {});
        const left = workers.filter((worker) => rings(worker) <= before.get(worker)!);
        // Should one never be reached, what it wrote last says why.
        return left.map((worker) => worker.lines.slice(-5));
      };
      await expect.poll(silent, { timeout: 60_000, interval: 100 }).toEqual([]);
      if (!withRun) return;
      const { submit } = createSubmitter({ ...world.bench, queue, logger });
      await ended([(await submit(one())).id]);
    },
    /** An API process on this queue. */
    async api(at: QueueEnv) {
      const api = spawnNode(apiMain, {
        env: {
          DATABASE_URL: world.bench.url,
          DROVER_BOOTSTRAP_KEY: apiKey,
          PORT: "0",
          HOST: "127.0.0.1",
          ...environment(at),
        },
      });
      apis.push(api);
      const submitOne = async () => {
        const answer = await fetch(`${url}/query`, {
          method: "POST",
          headers: { authorization: `Bearer ${apiKey}`, "content-type": "application/json" },
          body: JSON.stringify({ query: query(), agent: "default" }),
        });
        const body = (await answer.json()) as { task_id: string };
        expect(answer.status, JSON.stringify(body)).toBe(202);
        return fromWireId("run", body.task_id)!;
      };
      const { url } = JSON.parse(await api.waitForLine(/"url":"http/)) as { url: string };
      return {
        /** Submits this many over HTTP, ten at a time, and returns their ids. Anything but 202 fails the test. */
        async submit(count: number): Promise<string[]> {
          const ids: string[] = [];
          while (ids.length < count)
            ids.push(...(await Promise.all(Array.from({ length: Math.min(10, count - ids.length) }, submitOne))));
          return ids;
        },
        /** What `/ready` answers. */
        async ready(): Promise<{ code: number; degraded: string[] }> {
          const answer = await fetch(`${url}/ready`);
          const { degraded = [] } = (await answer.json()) as { degraded?: string[] };
          return { code: answer.status, degraded };
        },
      };
    },
  });
}
