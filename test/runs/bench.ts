/** What tests of `@drover/runs` share: a database, the writer's parts, and shorthands for submitting and owning runs. */
import { randomBytes } from "node:crypto";
import type { RunInput } from "@drover/harness";
import { uuidv7 } from "@drover/protocol";
import { openQueue, type WakeQueue } from "@drover/queue";
import { createSubmitter, type Submission } from "@drover/runs";
import { openPool, type Pool, postgresBlobs } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { inject } from "vitest";
import { encodeData } from "../../packages/runs/src/log/append.ts";
import type { ClaimedRun } from "../../packages/runs/src/moves/claim.ts";
import type { Leaving } from "../../packages/runs/src/moves/leave.ts";
import { claimRuns } from "../support/claim.ts";
import { createDatabase } from "../support/database.ts";

export const logger = createLogger({ name: "test", level: process.env.TEST_LOG ?? "silent" });

export const input = (more: Partial<RunInput> = {}): RunInput => ({
  query: "What is it?",
  agent: "default",
  max_iterations: 10,
  limits: { soft_seconds: 25, hard_seconds: 30 },
  retry: { max_attempts: 3, backoff_ms: 1000, max_backoff_ms: 60_000 },
  ...more,
});

export const submission = (more: Partial<Submission> = {}): Submission => ({
  tenant: "default",
  input: input(),
  userId: null,
  priority: 0,
  delayMs: 0,
  callbackUrl: null,
  callbackEvents: null,
  metadata: {},
  ...more,
});

/** `url`: of a migrated database on a server of the test's own; it is left as it is. */
export async function createBench(url?: string) {
  const database = url === undefined ? await createDatabase() : { url, name: new URL(url).port, drop: async () => {} };
  const pool: Pool = openPool({ url: database.url, logger, max: 20 });
  await addTenant(pool, "default");
  const blobs = postgresBlobs(pool);
  const queue: WakeQueue = await openQueue(
    { REDIS_URL: inject("redisUrl"), DROVER_QUEUE_PREFIX: `{${database.name}}` } as Parameters<typeof openQueue>[0],
    { logger, postgresUrl: database.url },
  );
  const submitter = createSubmitter({ pool, blobs, queue, logger });
  return {
    url: database.url,
    pool,
    blobs,
    queue,
    submitter,
    /** Submits and returns the run's id. */
    submit: async (more: Partial<Submission> = {}) => (await submitter.submit(submission(more))).id,
    /** A live worker's row. */
    addWorker: async (leaseMs = 10_000) => {
      const id = uuidv7();
      await pool.query("INSERT INTO workers (id, host, pid, slots, lease_ms) VALUES ($1, 'test', 1, 10, $2)", [
        id,
        leaseMs,
      ]);
      return id;
    },
    /** The worker is declared dead. `culprit`: the run whose tool blocked it. */
    endWorker: (id: string, cause: "crashed" | "silent" | "blocked" = "crashed", culprit: string | null = null) =>
      pool.query("UPDATE workers SET dead_at = now(), cause = $2, culprit = $3, culprit_tool = $4 WHERE id = $1", [
        id,
        cause,
        culprit,
        culprit && "spin",
      ]),
    claim: async (worker: string, id: string): Promise<ClaimedRun> => {
      const [run] = await claimRuns(pool, worker, [id]);
      if (!run) throw new Error(`run ${id} could not be claimed`);
      return run;
    },
    leaving: async (run: { id: string; epoch: number }, more: Partial<Leaving> = {}): Promise<Leaving> => {
      const status = more.status ?? "completed";
      return {
        runId: run.id,
        epoch: run.epoch,
        eventId: uuidv7(),
        status,
        stopReason: status === "failed" || status === "partial" ? "model_error" : null,
        eventType: `run.${status}`,
        data: await encodeData(blobs, "default", { output: "done", stop_reason: null, error: null }),
        cancelledData: '{"output":"kept","stop_reason":null,"error":null}',
        delayMs: 0,
        attempt: null,
        ...more,
      };
    },
    row: async (id: string) => (await pool.query("SELECT * FROM runs WHERE id = $1", [id])).rows[0],
    close: async () => {
      await queue.close();
      await pool.end();
      await database.drop();
    },
  };
}

export async function addTenant(pool: Pool, tenant: string): Promise<void> {
  await pool.query("INSERT INTO tenants (id, webhook_secret) VALUES ($1, $2) ON CONFLICT DO NOTHING", [
    tenant,
    `whsec_${randomBytes(32).toString("base64")}`,
  ]);
}
