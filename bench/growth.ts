/**
 * What years of runs do to the daily statements: each is timed over an empty database and again over millions of finished runs with their logs, messages
 * and deliveries, on the same server, in the same process.
 */
import { uuidv7 } from "@drover/protocol";
import { listRuns, readOutcome, readRun, setBudget } from "@drover/runs";
import { postgresBlobs } from "@drover/storage";
import { claimDue } from "../packages/delivery/src/claim.ts";
import { sayAlive } from "../packages/runs/src/liveness/beat.ts";
import { createLogWriter } from "../packages/runs/src/log/append.ts";
import { createBudgets } from "../packages/runs/src/money/budget.ts";
import { claimNext } from "../packages/runs/src/moves/claim.ts";
import { leaveRuns } from "../packages/runs/src/moves/leave.ts";
import { endMany, looks } from "../test/runs/looks.ts";
import { cpuOf } from "./cost.ts";
import { load, percentiles } from "./load.ts";
import { apiKey, type Stack, startApi, startWorker } from "./stack.ts";

/** Medians in ms, of an idle worker and API together ms of processor a second, by what was done. */
export type Growth = Record<string, number>;

/** What is measured is idling, not removing what is old. */
const keepAll = { RETENTION_CONTENTS_DAYS: "3650", RETENTION_TOTALS_DAYS: "3650" };
const times = 300;
const idleMs = 10_000;

/** Finished runs with six events, a message each and a delivery for every tenth, spread over the last 300 days; months have their partitions. */
export async function fill(stack: Stack, upTo: number): Promise<void> {
  const { pool } = stack;
  const have = Number((await pool.query("SELECT count(*) AS n FROM runs")).rows[0].n);
  for (let month = 0; month <= 10; month++)
    await pool.query(
      `DO $$ DECLARE low timestamptz := date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 month' * ${month}; BEGIN
         EXECUTE format('CREATE TABLE IF NOT EXISTS run_events_%s PARTITION OF run_events FOR VALUES FROM (%L) TO (%L)',
           to_char(low, 'YYYY_MM'), uuidv7_floor(low), uuidv7_floor(low + interval '1 month')); END $$`,
    );
  const chunk = 50_000;
  for (let from = have; from < upTo; from += chunk) {
    const ids = `SELECT n, overlay(uuidv7_floor(now() - (300 - 300.0 * n / $3) * interval '1 day')::text
        placing lpad(to_hex(n), 12, '0') from 25)::uuid AS id FROM generate_series($1::int, $2::int) n`;
    const bounds = [from + 1, Math.min(upTo, from + chunk), upTo];
    await pool.query(
      `INSERT INTO runs (id, tenant, agent, status, woken, available_at, soft_ms, hard_ms, created_at, started_at, finished_at, steps, last_seq, tag, metadata, user_id)
       SELECT id, 'default', 'default', 'completed', true, t, 1000, 2000, t, t, t, 3, 6, n, jsonb_build_object('n', n), 'user' || n % 1000
       FROM (${ids}) i, LATERAL (SELECT now() - (300 - 300.0 * n / $3) * interval '1 day' AS t) at ON CONFLICT DO NOTHING`,
      bounds,
    );
    await pool.query(
      `INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, seq, CASE seq WHEN 1 THEN 'run.queued' WHEN 6 THEN 'run.completed' ELSE 'model.call' END,
         CASE seq WHEN 1 THEN $4::json WHEN 6 THEN '{"output":"391","stop_reason":null,"error":null}' ELSE $5::json END, gen_random_uuid()
       FROM (${ids}) i, generate_series(1, 6) seq ON CONFLICT DO NOTHING`,
      [...bounds, queued, called],
    );
    await pool.query(
      `WITH made AS (
         INSERT INTO messages (id, tenant, type, run_id, fanned_out) SELECT id, 'default', 'query.completed', id, true FROM (${ids}) i ON CONFLICT DO NOTHING RETURNING id),
       sent AS (
         INSERT INTO deliveries (id, tenant, message_id, run_id, type, url, destination, status, give_up_at)
         SELECT id, 'default', id, id, 'query.completed', 'http://127.0.0.1:1/', 'default http://127.0.0.1:1', 'delivered', now() FROM made
         WHERE hashtext(id::text) % 10 = 0)
       SELECT`,
      bounds,
    );
    await pool.query("DELETE FROM messages_unnumbered");
    if (Math.floor(from / 500_000) !== Math.floor((from + chunk) / 500_000))
      console.log(`  ${(from + chunk).toLocaleString("en")} runs`);
  }
  await pool.query("VACUUM ANALYZE");
  await pool.query("CHECKPOINT");
}

const queued = JSON.stringify({
  query: "x".repeat(280),
  agent: "default",
  max_iterations: 10,
  limits: { soft_seconds: 25, hard_seconds: 30 },
  retry: { max_attempts: 3, backoff_ms: 1000, max_backoff_ms: 60_000 },
});
const call = {
  iteration: 0,
  model: "demo/demo",
  text: "391",
  tool_calls: [],
  finish_reason: "stop" as const,
  usage: { input: 10, output: 5, cached: 0 },
  cost_usd: 0.001,
  duration_ms: 12,
};
const called = JSON.stringify(call);

export async function growth(stack: Stack, noop: Record<string, string>): Promise<Growth> {
  const { pool } = stack;
  const result: Growth = {};
  const blobs = postgresBlobs(pool);
  const closing = new AbortController();
  const timed = async (name: string, work: (n: number) => Promise<unknown>, count = times) => {
    const ms: number[] = [];
    for (let n = 0; n < count + 20; n++) {
      const began = performance.now();
      await work(n);
      if (n >= 20) ms.push(performance.now() - began);
    }
    result[name] = percentiles(ms).p50;
  };

  const worker = uuidv7();
  await pool.query("INSERT INTO workers (id, host, pid, slots, lease_ms) VALUES ($1, 'bench', 1, 10, 36000000)", [
    worker,
  ]);
  await endMany(pool, worker, 100);
  const { url, process: api } = await startApi(stack, "redis");
  const submitted = await load({
    url,
    body: JSON.stringify({ query: "x".repeat(280) }),
    headers: { "content-type": "application/json", authorization: `Bearer ${apiKey}` },
    path: "/query",
    connections: 1,
    requests: times + 100,
    status: 202,
  });
  result.submit = submitted.p50;
  const claimed: { id: string; epoch: number; tenant: string }[] = [];
  await timed("claim", async () => claimed.push(...(await claimNext(pool, worker, { most: 1 })).runs));
  const write = createLogWriter(pool, blobs, closing.signal);
  await timed("append", (n) => {
    const { id: runId, epoch, tenant } = claimed[n]!;
    return write({ runId, epoch, tenant, event: { type: "model.call", data: call } });
  });
  await setBudget(pool, "default", { dayUsd: 1000, monthUsd: 1000 } as never, "bench");
  const budgets = createBudgets(pool, closing.signal);
  await timed("reservation", async (n) => {
    const { id, epoch, tenant } = claimed[n]!;
    const budget = budgets({ id, epoch, tenant, sessionId: null, capped: true }, closing.signal);
    await budget.reserve(1000, 1);
  });
  const data = '{"output":"done","stop_reason":null,"error":null}';
  await timed("settle", (n) => {
    const { id: runId, epoch } = claimed[n]!;
    const how = {
      status: "completed" as const,
      stopReason: null,
      eventType: "run.completed",
      delayMs: 0,
      attempt: null,
    };
    return leaveRuns(pool, [{ ...how, runId, epoch, eventId: uuidv7(), data, cancelledData: data }]);
  });
  const old = (await pool.query("SELECT id FROM runs WHERE status = 'completed' ORDER BY id OFFSET 50 LIMIT 1")).rows[0]
    .id;
  await timed("status", async () => readOutcome(pool, blobs, (await readRun(pool, "default", old))!));
  await timed("list", () => listRuns(pool, "default", { limit: 50 }));
  await pool.query(
    `INSERT INTO deliveries (id, tenant, message_id, type, url, destination, give_up_at, next_at)
     SELECT gen_random_uuid(), 'default', id, 'query.completed', 'http://127.0.0.1:1/', 'default ' || row_number() OVER (), now() + interval '1 day', now()
     FROM messages LIMIT ${times + 20}`,
  );
  const limits = { most: 1, perDestination: 4, rooms: new Map(), failing: new Set<string>(), mostFailing: 10 };
  await timed("delivery claim", () => claimDue(pool, limits, 3_600_000));
  const held = { runs: [], epochs: [] };
  const { place } = (await sayAlive(pool, worker, held, null))!;
  await timed(
    "rescuer pass",
    async () => {
      for (const look of Object.values(looks(worker, held, place, 2000))) await look(pool);
    },
    50,
  );
  await pool.query("DELETE FROM deliveries WHERE status = 'pending'");

  const running = await startWorker(stack, "redis", { ...noop, ...keepAll });
  await new Promise((resolve) => setTimeout(resolve, 5000));
  const cpu = () => cpuOf(api.pid) + cpuOf(running.pid) + cpuOf(stack.postgresPid, true);
  const before = cpu();
  await new Promise((resolve) => setTimeout(resolve, idleMs));
  result["idle, ms of processor a second"] = ((cpu() - before) / idleMs) * 1000;
  closing.abort();
  await Promise.all([api.stop(), running.stop()]);
  await pool.query(
    "DELETE FROM workers; DELETE FROM budget_reservations; DELETE FROM budgets; DELETE FROM budget_accounts",
  );
  return result;
}
