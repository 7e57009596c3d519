/** What tests of `@drover/delivery` share: a database with tenants, runs that have ended, and workers that deliver. */
import {
  createDelivery,
  type Delivery,
  type DeliveryMetrics,
  type DeliveryOptions,
  type DeliveryRecord,
  listDeliveries,
  newWebhookSecret,
} from "@drover/delivery";
import { createEgress, type Egress } from "@drover/egress";
import type { RunInput } from "@drover/harness";
import { uuidv7 } from "@drover/protocol";
import { type Blobs, openPool, type Pool, postgresBlobs } from "@drover/storage";
import { createLogger, type Logger } from "@drover/telemetry";
import { createLogWriter } from "../../packages/runs/src/log/append.ts";
import { cancelRuns } from "../../packages/runs/src/moves/cancel.ts";
import { insertRuns, type NewRun } from "../../packages/runs/src/moves/create.ts";
import { leaveRuns } from "../../packages/runs/src/moves/leave.ts";
import { claimRuns } from "../support/claim.ts";
import { createDatabase } from "../support/database.ts";
import { type Receiver, startReceiver } from "../support/receiver.ts";

export interface RunSpec {
  tenant?: string;
  callbackUrl?: string;
  callbackEvents?: string[];
  userId?: string;
  batchId?: string;
  batchIndex?: number;
  metadata?: Record<string, string>;
  /** How it ends (default completed). */
  status?: "completed" | "partial" | "failed";
  output?: string;
}

type AttemptEnd = Parameters<DeliveryMetrics["delivered"]>[1];

interface TestWorker extends Delivery {
  /** What became of each try that was written down, in order. */
  ends: AttemptEnd[];
  /** Resolves once `count` of them were. */
  settled(count: number): Promise<AttemptEnd[]>;
}

export interface World {
  url: string;
  logger: Logger;
  pool: Pool;
  blobs: Blobs;
  /** Reaches loopback. */
  egress: Egress;
  addTenant(id: string): Promise<string>;
  /** A run that was claimed, called its model once, and ended. Returns its id. */
  endRun(spec?: RunSpec): Promise<string>;
  /** Many runs that were cancelled while queued: as many messages, quickly. */
  cancelledRuns(count: number, spec?: RunSpec): Promise<string[]>;
  addBatch(total: number, spec: { callbackUrl?: string; callbackEvents?: string[] }): Promise<string>;
  /** A started worker, closed at the end of the test. */
  work(options?: Partial<DeliveryOptions>): TestWorker;
  receiver(...reply: Parameters<typeof startReceiver>): Promise<Receiver>;
  /** Makes everything pending due, as if the time had passed. */
  passTime(): Promise<void>;
  secretOf(tenant: string): Promise<string>;
  /** Closes what the test started. */
  cleanUp(): Promise<void>;
  close(): Promise<void>;
}

const logger = createLogger({ name: "test", level: process.env.TEST_LOG ?? "silent" });

export const runInput: RunInput = {
  query: "What is it?",
  agent: "default",
  max_iterations: 10,
  limits: { soft_seconds: 25, hard_seconds: 30 },
  retry: { max_attempts: 3, backoff_ms: 1000, max_backoff_ms: 60_000 },
};

export function newRun(spec: RunSpec): NewRun {
  return {
    id: uuidv7(),
    tenant: spec.tenant ?? "default",
    agent: "default",
    userId: spec.userId ?? null,
    batchId: spec.batchId ?? null,
    batchIndex: spec.batchIndex ?? null,
    priority: 0,
    tag: 0,
    delayMs: 0,
    softMs: 25_000,
    hardMs: 30_000,
    deadline: null,
    callbackUrl: spec.callbackUrl ?? null,
    callbackEvents: spec.callbackEvents ?? null,
    metadata: spec.metadata ?? {},
    data: JSON.stringify(runInput),
    idempotency: null,
    sessionId: null,
    submittedBy: null,
    model: null,
    hash: null,
  };
}

export async function createWorld(): Promise<World> {
  const database = await createDatabase();
  const pool = openPool({ url: database.url, logger, max: 20 });
  const blobs = postgresBlobs(pool);
  const egress = createEgress({ allow: ["127.0.0.0/8"] });
  const append = createLogWriter(pool, blobs, new AbortController().signal);
  const workerId = uuidv7();
  await pool.query("INSERT INTO workers (id, host, pid, slots, lease_ms) VALUES ($1, 'test', 1, 10, 3600000)", [
    workerId,
  ]);
  let undo: (() => Promise<unknown>)[] = [];

  const world: World = {
    url: database.url,
    logger,
    pool,
    blobs,
    egress,
    async addTenant(id) {
      const secret = newWebhookSecret();
      await pool.query("INSERT INTO tenants (id, webhook_secret) VALUES ($1, $2)", [id, secret]);
      return secret;
    },
    async endRun(spec = {}) {
      const run = newRun(spec);
      const status = spec.status ?? "completed";
      await insertRuns(pool, [run]);
      const [claim] = await claimRuns(pool, workerId, [run.id]);
      await append({
        runId: run.id,
        epoch: claim!.epoch,
        tenant: run.tenant,
        event: {
          type: "model.call",
          data: {
            iteration: 1,
            model: "demo/demo",
            text: spec.output ?? "It is this.",
            tool_calls: [],
            finish_reason: "stop",
            usage: { input: 120, output: 30, cached: 20 },
            cost_usd: 0.0021,
            duration_ms: 5,
          },
        },
      });
      const stopReason = status === "completed" ? null : "model_error";
      const error = stopReason && { code: stopReason, message: "The model's provider is away." };
      await leaveRuns(pool, [
        {
          runId: run.id,
          epoch: claim!.epoch,
          eventId: uuidv7(),
          status,
          stopReason,
          eventType: `run.${status}`,
          data: JSON.stringify({ output: spec.output ?? "It is this.", stop_reason: stopReason, error }),
          cancelledData: "{}",
          delayMs: 0,
          attempt: null,
        },
      ]);
      return run.id;
    },
    async cancelledRuns(count, spec = {}) {
      const runs = Array.from({ length: count }, () => newRun(spec));
      const ids = runs.map((run) => run.id);
      await insertRuns(pool, runs);
      await cancelRuns(pool, spec.tenant ?? "default", ids, "test");
      return ids;
    },
    async addBatch(total, spec) {
      const id = uuidv7();
      await pool.query(
        "INSERT INTO batches (id, tenant, total, callback_url, callback_events) VALUES ($1, 'default', $2, $3, $4)",
        [id, total, spec.callbackUrl ?? null, spec.callbackEvents ?? null],
      );
      return id;
    },
    work(options = {}) {
      const ends: AttemptEnd[] = [];
      const waiting = new Set<() => void>();
      const delivery = createDelivery({
        pool,
        blobs,
        egress,
        logger,
        metrics: {
          delivered: (_ms, result) => {
            ends.push(result);
            for (const check of [...waiting]) check();
          },
        },
        ...options,
      });
      undo.push(() => delivery.close(0));
      delivery.start();
      return {
        ...delivery,
        ends,
        settled: (count) =>
          new Promise((resolve) => {
            const check = () => {
              if (ends.length < count) return;
              waiting.delete(check);
              resolve(ends.slice(0, count));
            };
            waiting.add(check);
            check();
          }),
      };
    },
    async receiver(...reply) {
      const receiver = await startReceiver(...reply);
      undo.push(() => receiver.close());
      return receiver;
    },
    async passTime() {
      await pool.query("UPDATE deliveries SET next_at = now() - interval '1 ms' WHERE status = 'pending'");
    },
    async secretOf(tenant) {
      return (await pool.query("SELECT webhook_secret FROM tenants WHERE id = $1", [tenant])).rows[0].webhook_secret;
    },
    async cleanUp() {
      // Workers first: they were started last.
      for (const step of undo.reverse()) await step();
      undo = [];
      await pool.query("TRUNCATE messages, deliveries, delivery_attempts, endpoints");
    },
    async close() {
      await world.cleanUp();
      await egress.close();
      await pool.end();
      await database.drop();
    },
  };
  await world.addTenant("default");
  return world;
}

/** A run's deliveries as its tenant sees them. */
export async function deliveriesOf(world: World, runId: string, tenant = "default"): Promise<DeliveryRecord[]> {
  return await listDeliveries(world.pool, tenant, runId, { limit: 100 });
}
