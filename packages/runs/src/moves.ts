/**
 * Every statement that changes a run's status, and no other file has one. Each is guarded by the status (and by the epoch, for
 * an owner), appends the event and the message owed in the same statement, and reads the cancel flag in it. Statements over
 * many runs take their rows in the order of their ids. It is longer than other files because there is only one of it.
 */
import type { FinalData } from "@drover/harness";
import { uuidv7 } from "@drover/protocol";
import { type Pool, type Queryable, type Transaction, transaction } from "@drover/storage";
import { isCapped } from "./budget-sql.ts";
import { logVersion, waitForWriters } from "./log.ts";
import type { Status } from "./state.ts";

const finals = "('completed', 'partial', 'failed', 'cancelled')";

export interface NewRun {
  id: string;
  tenant: string;
  agent: string;
  userId: string | null;
  batchId: string | null;
  batchIndex: number | null;
  priority: number;
  tag: number;
  delayMs: number;
  softMs: number;
  hardMs: number;
  deadline: string | null;
  callbackUrl: string | null;
  callbackEvents: string[] | null;
  metadata: Record<string, string>;
  sessionId: string | null;
  /** Who submitted it: the id of an API key. */
  submittedBy: string | null;
  /** Encoded data of `run.queued`. */
  data: string;
  /** Names what was asked in the audit trail; null: its batch stands there. */
  hash: string | null;
  idempotency: { key: string; bodyHash: Buffer } | null;
}

/**
 * nothing -> queued. One statement for many: idempotency keys first, sorted, and only the winners' runs are inserted. Returns the
 * ids inserted; a missing one lost its key to another submission. A key older than 24 h is taken over.
 */
export async function insertRuns(db: Queryable, runs: NewRun[]): Promise<Set<string>> {
  const { rows } = await db.query<{ id: string }>(
    `WITH input AS (
       SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::int[], $7::smallint[], $8::bigint[],
         $9::bigint[], $10::int[], $11::int[], $12::timestamptz[], $13::text[], $14::text[], $15::text[], $16::text[], $17::uuid[],
         $18::text[], $19::bytea[], $20::uuid[], $21::text[], $22::text[])
       AS i(id, tenant, agent, user_id, batch_id, batch_index, priority, tag, delay_ms, soft_ms, hard_ms, deadline, callback_url,
            callback_events, metadata, data, event_id, key, body_hash, session_id, submitted_by, hash)),
     won AS (
       INSERT INTO idempotency_keys AS k (tenant, key, body_hash, run_id)
       SELECT tenant, key, body_hash, id FROM input WHERE key IS NOT NULL ORDER BY tenant, key
       ON CONFLICT (tenant, key) DO UPDATE
         SET body_hash = excluded.body_hash, run_id = excluded.run_id, batch_id = NULL, created_at = now()
         WHERE k.created_at < now() - interval '24 hours'
       RETURNING run_id),
     made AS (
       INSERT INTO runs (id, tenant, agent, user_id, batch_id, batch_index, priority, tag, woken, available_at, soft_ms, hard_ms,
                         deadline, callback_url, callback_events, metadata, log_version, session_id, submitted_by)
       SELECT id, tenant, agent, user_id, batch_id, batch_index, priority, tag, delay_ms = 0, now() + delay_ms * interval '1 ms',
              soft_ms, hard_ms, deadline, callback_url, callback_events::text[], metadata::jsonb, ${logVersion}, session_id,
              submitted_by
       FROM input WHERE key IS NULL OR id IN (SELECT run_id FROM won)
       RETURNING id),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, 1, 'run.queued', data::json, event_id FROM input WHERE id IN (SELECT id FROM made)),
     audited AS (
       INSERT INTO audit_entries (tenant, actor, action, run_id, data)
       SELECT tenant, coalesce(submitted_by, 'system'), 'query.submitted', id, json_build_object('agent', agent, 'input', hash)
       FROM input WHERE hash IS NOT NULL AND id IN (SELECT id FROM made))
     SELECT id FROM made`,
    [
      runs.map((r) => r.id),
      runs.map((r) => r.tenant),
      runs.map((r) => r.agent),
      runs.map((r) => r.userId),
      runs.map((r) => r.batchId),
      runs.map((r) => r.batchIndex),
      runs.map((r) => r.priority),
      runs.map((r) => r.tag),
      runs.map((r) => r.delayMs),
      runs.map((r) => r.softMs),
      runs.map((r) => r.hardMs),
      runs.map((r) => r.deadline),
      runs.map((r) => r.callbackUrl),
      runs.map((r) => (r.callbackEvents ? `{${r.callbackEvents.join(",")}}` : null)),
      runs.map((r) => JSON.stringify(r.metadata)),
      runs.map((r) => r.data),
      runs.map(() => uuidv7()),
      runs.map((r) => r.idempotency?.key ?? null),
      runs.map((r) => r.idempotency?.bodyHash ?? null),
      runs.map((r) => r.sessionId),
      runs.map((r) => r.submittedBy),
      runs.map((r) => r.hash),
    ],
  );
  return new Set(rows.map((row) => row.id));
}

/** What a claim tells the new owner. Durations are ms from the claim, by the database's clock. */
export interface ClaimedRun {
  id: string;
  tenant: string;
  agent: string;
  epoch: number;
  attempt: number;
  priority: number;
  tag: number;
  wake: number;
  lastSeq: number;
  softInMs: number;
  hardInMs: number;
  deadlineInMs: number | null;
  kind: "query" | "rollback";
  ofRun: string | null;
  sessionId: string | null;
  /** Owners lost in a row; from `suspectCrashes` on it is claimed as the only such run of a worker. */
  crashes: number;
  /** Its tenant or session has a cap of money. */
  capped: boolean;
  /** The database's clock at the claim, ms since 1970. */
  claimedAtMs: number;
  /** How long it had been due. */
  waitedMs: number;
  /** How long ago it was accepted. */
  ageMs: number;
}

interface ClaimRow {
  id: string;
  tenant: string;
  agent: string;
  epoch: number;
  attempt: number;
  priority: number;
  tag: number;
  wake: number;
  last_seq: number;
  soft_in: number;
  hard_in: number;
  deadline_in: number | null;
  kind: "query" | "rollback";
  of_run: string | null;
  session_id: string | null;
  crashes: number;
  capped: boolean;
  claimed_at_ms: number;
  waited: number;
  age: number;
}

const claimColumns = `r.id, r.tenant, r.agent, r.epoch, r.attempt, r.priority, r.tag, r.wake, r.last_seq, r.kind, r.of_run, r.session_id, r.crashes,
  ${isCapped} AS capped, (extract(epoch FROM r.claimed_at) * 1000)::float8 AS claimed_at_ms,
  (extract(epoch FROM r.soft_at - r.claimed_at) * 1000)::float8 AS soft_in,
  (extract(epoch FROM r.hard_at - r.claimed_at) * 1000)::float8 AS hard_in,
  (extract(epoch FROM r.deadline - r.claimed_at) * 1000)::float8 AS deadline_in,
  (extract(epoch FROM r.claimed_at - r.available_at) * 1000)::float8 AS waited,
  (extract(epoch FROM r.claimed_at - r.created_at) * 1000)::float8 AS age`;

const claimSet = `status = 'running', worker = me.id, epoch = r.epoch + 1, claimed_at = now(),
  soft_at = now() + greatest(0, r.soft_ms - r.active_ms) * interval '1 ms',
  hard_at = now() + greatest(0, r.hard_ms - r.active_ms) * interval '1 ms',
  started_at = coalesce(r.started_at, now()), last_seq = r.last_seq + 1`;

const claimGuard = `r.status = 'queued' AND r.available_at <= now() AND r.cancel_requested_at IS NULL AND r.log_version <= ${logVersion}`;

const liveWorker = `SELECT id FROM workers WHERE id = $1 AND dead_at IS NULL AND heartbeat_at > clock_timestamp() - lease_ms * interval '1 ms'`;

const logClaim = `INSERT INTO run_events (run_id, seq, type, data, event_id)
  SELECT id, last_seq, 'run.started', json_strip_nulls(json_build_object('epoch', epoch, 'attempt', attempt, 'worker', $1::uuid,
    'agent_hash', $3::jsonb ->> agent)), gen_random_uuid() FROM claimed r`;

export interface ClaimOptions {
  /** May it take a run that is suspected of killing workers (default yes)? The worker must hold no other, and gets one at most. */
  takesSuspect?: boolean;
  /** Hashes of the agents' definitions as this worker has them, by name. */
  agentHashes?: Record<string, string>;
}

/** A run whose owner was lost so often in a row, unexplained or by its own fault, is suspected: see `ClaimOptions`. */
export const suspectCrashes = 2;
/** So many end it. */
export const mostCrashes = 3;
/** A suspect is not claimed before, ms. */
const suspectBackoffMs = 2000;

/**
 * queued -> running for those of `ids` that are due; the claimer's live row is required in the same statement. What is missing
 * from the answer was somebody else's, not due, cancelled, suspected, or final: nothing to do.
 */
export async function claimRuns(
  db: Queryable,
  worker: string,
  ids: string[],
  { takesSuspect = true, agentHashes = {} }: ClaimOptions = {},
): Promise<ClaimedRun[]> {
  const { rows } = await db.query<ClaimRow>(
    `WITH me AS (${liveWorker}),
     claimed AS (
       UPDATE runs r SET ${claimSet} FROM me, unnest($2::uuid[]) AS i(id)
       WHERE r.id = i.id AND ${claimGuard} AND (r.crashes < ${suspectCrashes} OR ($4 AND NOT EXISTS (
         SELECT FROM runs s WHERE s.id = ANY($2::uuid[]) AND s.id < r.id AND s.crashes >= ${suspectCrashes} AND s.status = 'queued')))
       RETURNING ${claimColumns}),
     logged AS (${logClaim})
     SELECT * FROM claimed`,
    [worker, ids, JSON.stringify(agentHashes), takesSuspect],
  );
  return rows.map(claimedRun);
}

/** queued -> running for the runs next in order that have been due for `overdueMs`: what an idle worker does without BullMQ. */
export async function claimNext(
  db: Queryable,
  worker: string,
  most: number,
  overdueMs: number,
  { takesSuspect = true, agentHashes = {} }: ClaimOptions = {},
): Promise<ClaimedRun[]> {
  const next = (crashes: string, limit: string) => `(SELECT r.id FROM runs r
       WHERE ${claimGuard} AND r.woken AND r.available_at <= now() - $5 * interval '1 ms' AND r.crashes ${crashes}
       ORDER BY r.priority DESC, r.tag, r.id LIMIT ${limit} FOR UPDATE SKIP LOCKED)`;
  const { rows } = await db.query<ClaimRow>(
    `WITH me AS (${liveWorker}),
     next AS (SELECT * FROM ${next(`>= ${suspectCrashes} AND $4`, "1")} s UNION ALL SELECT * FROM ${next(`< ${suspectCrashes}`, "$2")} n LIMIT $2),
     claimed AS (
       UPDATE runs r SET ${claimSet} FROM me, next WHERE r.id = next.id RETURNING ${claimColumns}),
     logged AS (${logClaim})
     SELECT * FROM claimed ORDER BY priority DESC, tag, id`,
    [worker, most, JSON.stringify(agentHashes), takesSuspect, overdueMs],
  );
  return rows.map(claimedRun);
}

/** Those of `ids` this worker holds, read after a claim whose answer was lost. */
export async function readClaims(db: Queryable, worker: string, ids: string[]): Promise<ClaimedRun[]> {
  await waitForWriters(db, ids);
  const { rows } = await db.query<ClaimRow>(
    `SELECT ${claimColumns} FROM runs r WHERE r.id = ANY($2::uuid[]) AND r.worker = $1 AND r.status = 'running'`,
    [worker, ids],
  );
  return rows.map(claimedRun);
}

function claimedRun(row: ClaimRow): ClaimedRun {
  const { last_seq, soft_in, hard_in, deadline_in, waited, age, of_run, session_id, claimed_at_ms, ...same } = row;
  return {
    ...same,
    ofRun: of_run,
    sessionId: session_id,
    claimedAtMs: claimed_at_ms,
    lastSeq: last_seq,
    softInMs: soft_in,
    hardInMs: hard_in,
    deadlineInMs: deadline_in,
    waitedMs: waited,
    ageMs: age,
  };
}

/** How an owner lets go of a run. `queued` with a delay is a retry, without one a hand-over. */
export interface Leaving {
  runId: string;
  /** The fence: the owner's epoch. */
  epoch: number;
  eventId: string;
  status: Exclude<Status, "running" | "waiting">;
  stopReason: string | null;
  eventType: string;
  /** Encoded data of the event. */
  data: string;
  /** Encoded data of `run.cancelled`, should the cancel flag be set. */
  cancelledData: string;
  delayMs: number;
  /** The attempt clients see from now on; null leaves it. */
  attempt: number | null;
  /** What it did is to be undone, should it end as `failed` or `partial`. */
  rollback?: boolean;
  /** The log must still end there: nobody has written since it was read. */
  lastSeq?: number;
}

/** What became of a run that was let go of. */
export interface Left {
  runId: string;
  agent: string;
  status: Status;
  stopReason: string | null;
  seq: number;
  batchId: string | null;
  priority: number;
  tag: number;
  wake: number;
  woken: boolean;
  /** A rollback is to be made. */
  rollbackOwed: boolean;
}

interface LeftRow {
  id: string;
  agent: string;
  status: Status;
  stop_reason: string | null;
  last_seq: number;
  batch_id: string | null;
  priority: number;
  tag: number;
  wake: number;
  woken: boolean;
  rollback: "owed" | "made" | null;
}

const leftColumns = "id, agent, status, stop_reason, last_seq, batch_id, priority, tag, wake, woken, rollback";

function left(row: LeftRow): Left {
  const { id, last_seq, batch_id, stop_reason, rollback, ...same } = row;
  return {
    ...same,
    runId: id,
    seq: last_seq,
    batchId: batch_id,
    stopReason: stop_reason,
    rollbackOwed: rollback === "owed",
  };
}

/** Questions of runs that end are closed with them. `moved` is the CTE that ends them. */
const closeQuestions = `closed AS (
       UPDATE approvals a SET status = 'expired', decided_at = now(), decided_by = 'system',
         decision = '{"decision":"expire","by":"system","note":"the run ended"}'
       FROM moved m WHERE a.run_id = m.id AND a.status = 'pending' AND m.status IN ${finals})`;

/** The status a run gets: what its owner says, unless somebody has asked for its cancel. */
const leavingStatus = "CASE WHEN r.cancel_requested_at IS NULL THEN i.status ELSE 'cancelled' END";

/**
 * running -> queued, completed, partial, failed or cancelled: one statement for everything an owner or, for runs past all
 * limits, the rescuer ends. A final status owes its message in the same commit. A run missing from the answer was not its any more.
 */
export async function leaveRuns(db: Queryable, ops: Leaving[], from: "owned" | "unowned" = "owned"): Promise<Left[]> {
  // The rescuer settles queued runs as well; the epoch it read is its guard against a claim in between.
  // `coalesce` keeps the planner off the index of running runs: the rows are found by their key.
  const guard =
    from === "owned" ? "coalesce(r.status, '') = 'running'" : "r.status IN ('running', 'queued', 'waiting')";
  const { rows } = await db.query<LeftRow>(
    `WITH input AS (
       SELECT * FROM unnest($1::uuid[], $2::int[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
         $9::bigint[], $10::int[], $11::uuid[], $12::boolean[], $13::int[])
       AS i(id, epoch, event_id, status, stop_reason, type, data, cancelled_data, delay_ms, attempt, message_id, rollback, last_seq)),
     moved AS (
       UPDATE runs r SET
         status = ${leavingStatus},
         stop_reason = CASE WHEN r.cancel_requested_at IS NULL THEN i.stop_reason END,
         waiting_for = NULL,
         waiting_level = NULL,
         rollback = CASE WHEN i.rollback AND r.steps > 0 AND ${leavingStatus} IN ('failed', 'partial') THEN 'owed' ELSE r.rollback END,
         worker = NULL,
         finished_at = CASE WHEN ${leavingStatus} <> 'queued' THEN now() END,
         available_at = CASE WHEN i.status = 'queued' THEN now() + i.delay_ms * interval '1 ms' ELSE r.available_at END,
         woken = i.delay_ms = 0,
         wake = r.wake + CASE WHEN i.status = 'queued' AND i.delay_ms = 0 THEN 1 ELSE 0 END,
         attempt = coalesce(i.attempt, r.attempt),
         active_ms = r.active_ms + CASE WHEN r.status = 'running' THEN (extract(epoch FROM now() - r.claimed_at) * 1000)::bigint ELSE 0 END,
         last_seq = r.last_seq + 1
       FROM input i WHERE r.id = i.id AND r.epoch = i.epoch AND r.last_seq = coalesce(i.last_seq, r.last_seq) AND ${guard}
       RETURNING r.id, r.agent, r.tenant, r.status, r.stop_reason, r.last_seq, r.batch_id, r.priority, r.tag, r.wake, r.woken, r.rollback,
                 r.status = 'cancelled' AND i.status <> 'cancelled' AS overruled,
                 i.type, i.data, i.cancelled_data, i.event_id, i.message_id),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, last_seq, CASE WHEN overruled THEN 'run.cancelled' ELSE type END,
              (CASE WHEN overruled THEN cancelled_data ELSE data END)::json, event_id FROM moved),
     owed AS (
       INSERT INTO messages (id, tenant, type, run_id)
       SELECT message_id, tenant, 'query.' || status, id FROM moved WHERE status IN ${finals}),
     ${closeQuestions}
     SELECT ${leftColumns} FROM moved`,
    [
      ops.map((op) => op.runId),
      ops.map((op) => op.epoch),
      ops.map((op) => op.eventId),
      ops.map((op) => op.status),
      ops.map((op) => op.stopReason),
      ops.map((op) => op.eventType),
      ops.map((op) => op.data),
      ops.map((op) => op.cancelledData),
      ops.map((op) => op.delayMs),
      ops.map((op) => op.attempt),
      ops.map(() => uuidv7()),
      ops.map((op) => op.rollback ?? false),
      ops.map((op) => op.lastSeq ?? null),
    ],
  );
  return rows.map(left);
}

/** Those of `ops` whose leaving is committed although its answer was lost: found by event id. */
export async function readLeft(db: Queryable, ops: Pick<Leaving, "runId" | "eventId">[]): Promise<Left[]> {
  await waitForWriters(
    db,
    ops.map((op) => op.runId),
  );
  const { rows } = await db.query<LeftRow>(
    `SELECT ${leftColumns
      .split(", ")
      .map((column) => `r.${column}`)
      .join(", ")}
     FROM unnest($1::uuid[], $2::uuid[]) AS i(run_id, event_id)
     JOIN run_events e ON e.run_id = i.run_id AND e.event_id = i.event_id JOIN runs r ON r.id = e.run_id`,
    [ops.map((op) => op.runId), ops.map((op) => op.eventId)],
  );
  return rows.map(left);
}

/** How an owner parks a run. */
export interface Parking {
  runId: string;
  epoch: number;
  eventId: string;
  waitingFor: "approval" | "budget";
  level: string | null;
  /** Raises of its caps that the owner knew of. */
  raises: number;
  /** Encoded data of `run.waiting`. */
  data: string;
  cancelledData: string;
}

/**
 * running -> waiting; or queued, when what it would wait for has been decided meanwhile; or cancelled. Two statements of one transaction:
 * whoever decides locks the run first, so what the second one sees open stays open until the run waits for it. null: it was not its any more.
 */
export async function parkRun(pool: Pool, op: Parking): Promise<Left | null> {
  return await transaction(pool, async (tx) => {
    const { rowCount } = await tx.query(
      "SELECT FROM runs WHERE id = $1 AND epoch = $2 AND status = 'running' FOR UPDATE",
      [op.runId, op.epoch],
    );
    if (rowCount === 0) return null;
    // Whoever changes a cap finds the runs that wait for it after this lock, or this run finds the change.
    if (op.waitingFor === "budget")
      await tx.query("SELECT FROM budgets WHERE tenant = (SELECT tenant FROM runs WHERE id = $1) FOR SHARE", [
        op.runId,
      ]);
    const { rows } = await tx.query<LeftRow>(
      `WITH target AS (
         SELECT r.id, CASE WHEN r.cancel_requested_at IS NOT NULL THEN 'cancelled' WHEN ${stillOpen} THEN 'waiting' ELSE 'queued' END AS to
         FROM runs r WHERE r.id = $1),
       moved AS (
         UPDATE runs r SET
           status = t.to,
           waiting_for = CASE WHEN t.to = 'waiting' THEN $3 END,
           waiting_level = CASE WHEN t.to = 'waiting' THEN $5 END,
           waiting_since = CASE WHEN t.to = 'waiting' THEN now() ELSE r.waiting_since END,
           worker = NULL,
           finished_at = CASE WHEN t.to = 'cancelled' THEN now() END,
           available_at = CASE WHEN t.to = 'queued' THEN now() ELSE r.available_at END,
           woken = t.to = 'queued',
           wake = r.wake + CASE WHEN t.to = 'queued' THEN 1 ELSE 0 END,
           active_ms = r.active_ms + (extract(epoch FROM now() - r.claimed_at) * 1000)::bigint,
           last_seq = r.last_seq + 1
         FROM target t WHERE r.id = t.id
         RETURNING r.*),
       logged AS (
         INSERT INTO run_events (run_id, seq, type, data, event_id)
         SELECT id, last_seq, CASE status WHEN 'waiting' THEN 'run.waiting' WHEN 'queued' THEN 'run.resumed' ELSE 'run.cancelled' END,
                CASE status WHEN 'waiting' THEN $6::json WHEN 'queued' THEN json_build_object('waited_for', $3::text) ELSE $7::json END, $2
         FROM moved),
       owed AS (
         INSERT INTO messages (id, tenant, type, run_id, seq)
         SELECT uuidv7_now(), tenant, 'query.' || status, id, CASE status WHEN 'waiting' THEN last_seq END FROM moved WHERE status <> 'queued'),
       ${closeQuestions}
       SELECT ${leftColumns} FROM moved`,
      [op.runId, op.eventId, op.waitingFor, op.raises, op.level, op.data, op.cancelledData],
    );
    return rows[0] ? left(rows[0]) : null;
  });
}

/**
 * Whether what the run `r` parks for ($3, its owner knowing of $4 raises) is still open. Caps around the run ($5) that were changed since the
 * claim may have been changed after the owner was refused: it looks again.
 */
const stillOpen = `CASE $3::text
  WHEN 'approval' THEN EXISTS (SELECT FROM approvals a WHERE a.run_id = r.id AND a.status = 'pending')
  ELSE r.budget_raises <= $4::int AND NOT EXISTS (SELECT FROM budgets b WHERE b.tenant = r.tenant AND b.changed_at >= r.claimed_at
    AND $5::text IN ('session', 'tenant_day', 'tenant_month')) END`;

/**
 * waiting -> queued for those of `ids` that have nothing open any more (`approval`), or whose cap was raised (`budget`). Lock the runs
 * first, in a statement of its own, and close what they wait for in the same transaction.
 */
export async function resumeRuns(db: Queryable, ids: string[]): Promise<Left[]> {
  const { rows } = await db.query<LeftRow>(
    `WITH moved AS (
       UPDATE runs r SET status = 'queued', waiting_for = NULL, waiting_level = NULL, available_at = now(), woken = true,
         wake = r.wake + 1, last_seq = r.last_seq + 1
       FROM (SELECT id, waiting_for AS waited_for FROM runs r
             WHERE id = ANY($1::uuid[]) AND status = 'waiting'
               AND (waiting_for <> 'approval' OR NOT EXISTS (SELECT FROM approvals a WHERE a.run_id = r.id AND a.status = 'pending'))
             ORDER BY id FOR UPDATE) due
       WHERE r.id = due.id
       RETURNING r.*, due.waited_for),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, last_seq, 'run.resumed', json_build_object('waited_for', waited_for), gen_random_uuid() FROM moved)
     SELECT ${leftColumns} FROM moved`,
    [ids],
  );
  return rows.map(left);
}

/**
 * Waiting runs that nothing holds any more although nobody moved them: every question is decided; or the cap they stood at was
 * changed, or belongs to a day or month that is over.
 */
export async function findResumable(db: Queryable, most: number): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `SELECT r.id FROM runs r WHERE r.status = 'waiting' AND r.waiting_for = 'approval'
       AND NOT EXISTS (SELECT FROM approvals a WHERE a.run_id = r.id AND a.status = 'pending')
     UNION ALL
     SELECT r.id FROM runs r LEFT JOIN budgets b ON b.tenant = r.tenant
     WHERE r.status = 'waiting' AND r.waiting_for = 'budget' AND r.waiting_level IN ('session', 'tenant_day', 'tenant_month')
       AND (b.tenant IS NULL OR b.changed_at >= r.waiting_since
         OR (r.waiting_level = 'tenant_day' AND date_trunc('day', now() AT TIME ZONE 'UTC') > r.waiting_since AT TIME ZONE 'UTC')
         OR (r.waiting_level = 'tenant_month' AND date_trunc('month', now() AT TIME ZONE 'UTC') > r.waiting_since AT TIME ZONE 'UTC'))
     LIMIT $1`,
    [most],
  );
  return rows.map((row) => row.id);
}

/** A rollback has time of its own, however little its run had. */
const rollbackLimitsMs = { soft: 1_500_000, hard: 1_800_000 };

/**
 * nothing -> queued for the rollbacks that are owed: a run of its own for each, once. `ids`: only of these runs. Returns the new runs by the
 * id of the run they undo.
 */
export async function makeRollbacks(db: Queryable, ids: string[] | "all"): Promise<(Left & { ofRun: string })[]> {
  const { rows } = await db.query<LeftRow & { of_run: string }>(
    `WITH owed AS (
       SELECT * FROM runs WHERE rollback = 'owed' AND ($1::uuid[] IS NULL OR id = ANY($1::uuid[]))
       ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED),
     settled AS (UPDATE runs r SET rollback = 'made' FROM owed WHERE r.id = owed.id),
     made AS (
       INSERT INTO runs (id, tenant, agent, user_id, kind, of_run, priority, tag, woken, available_at, soft_ms, hard_ms, callback_url,
                         callback_events, metadata, log_version, submitted_by)
       SELECT uuidv7_now(), tenant, agent, user_id, 'rollback', id, priority, tag, true, now(), $2, $3, callback_url, callback_events,
              metadata, ${logVersion}, submitted_by
       FROM owed ON CONFLICT DO NOTHING
       RETURNING *),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, 1, 'run.queued', json_build_object(
           'query', 'Undo what run_' || replace(of_run::text, '-', '') || ' did.', 'agent', agent, 'max_iterations', 1000,
           'limits', json_build_object('soft_seconds', $2 / 1000, 'hard_seconds', $3 / 1000),
           'retry', json_build_object('max_attempts', 3, 'backoff_ms', 1000, 'max_backoff_ms', 60000),
           'of_run', 'run_' || replace(of_run::text, '-', '')), gen_random_uuid()
       FROM made)
     SELECT ${leftColumns}, of_run FROM made`,
    [ids === "all" ? null : ids, rollbackLimitsMs.soft, rollbackLimitsMs.hard],
  );
  return rows.map(({ of_run, ...row }) => ({ ...left(row), ofRun: of_run }));
}

export interface CancelAnswer {
  runId: string;
  status: Status;
  cancelRequested: boolean;
  batchId: string | null;
}

/** The end of a run that nobody is carrying: what it had is folded from its log. */
export const nothingLeft: FinalData = { output: null, stop_reason: null, error: null };

/**
 * queued/waiting -> cancelled; running gets its flag, an event, and its worker is told (NOTIFY `drover_control`). Final runs
 * answer with what won. Repeating is harmless. Runs of another tenant are not in the answer.
 */
export async function cancelRuns(db: Queryable, tenant: string, ids: string[], actor: string): Promise<CancelAnswer[]> {
  const { rows } = await db.query<{ id: string; status: Status; cancel: boolean; batch_id: string | null }>(
    `WITH target AS (
       SELECT id, status, cancel_requested_at, batch_id FROM runs WHERE tenant = $1 AND id = ANY($2::uuid[]) ORDER BY id FOR UPDATE),
     moved AS (
       UPDATE runs r SET
         status = CASE WHEN r.status = 'running' THEN 'running' ELSE 'cancelled' END,
         waiting_for = NULL,
         waiting_level = NULL,
         cancel_requested_at = now(),
         finished_at = CASE WHEN r.status = 'running' THEN NULL ELSE now() END,
         last_seq = r.last_seq + 1
       FROM target t
       WHERE r.id = t.id AND (t.status IN ('queued', 'waiting') OR (t.status = 'running' AND t.cancel_requested_at IS NULL))
       RETURNING r.id, r.tenant, r.status, r.last_seq),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, last_seq, CASE status WHEN 'running' THEN 'run.cancel_requested' ELSE 'run.cancelled' END,
              CASE status WHEN 'running' THEN '{}'::json ELSE $3::json END, gen_random_uuid() FROM moved),
     owed AS (
       INSERT INTO messages (id, tenant, type, run_id)
       SELECT uuidv7_now(), tenant, 'query.cancelled', id FROM moved WHERE status = 'cancelled'),
     ${closeQuestions},
     audited AS (
       INSERT INTO audit_entries (tenant, actor, action, run_id, data)
       SELECT tenant, $4, 'query.cancelled', id, json_build_object('while', status) FROM moved),
     told AS MATERIALIZED (SELECT pg_notify('drover_control', id::text) FROM moved WHERE status = 'running')
     SELECT t.id, coalesce(m.status, t.status) AS status, t.batch_id, t.status = 'running' AS cancel, (SELECT count(*) FROM told)
     FROM target t LEFT JOIN moved m USING (id)`,
    [tenant, ids, JSON.stringify(nothingLeft), actor],
  );
  return rows.map((row) => ({ runId: row.id, status: row.status, cancelRequested: row.cancel, batchId: row.batch_id }));
}

/** The run `r` has no living owner; `w` is the row of its worker, if there is one. */
const orphaned = "(w.id IS NULL OR w.dead_at IS NOT NULL)";

/**
 * Whether the death of `w` counts against the run `r`. A culprit who is known is the only one; a worker that fell silent, or left runs behind
 * in good order, has not crashed.
 */
const isCrash = "coalesce(w.cause = 'crashed' OR (w.cause = 'blocked' AND coalesce(w.culprit = r.id, true)), false)";

/**
 * running -> queued for runs whose worker has no live row: it was declared dead, or ended. Cancelled and overdue ones, and those that have
 * lost their last owner, are left to `findOverdue`, which ends them with what they had.
 */
export async function takeOver(db: Queryable, most: number): Promise<Left[]> {
  const { rows } = await db.query<LeftRow>(
    `WITH lost AS (
       SELECT r.id, r.worker, w.cause, (${isCrash})::int AS crash, w.heartbeat_at + w.lease_ms * interval '1 ms' AS quiet_at,
              CASE WHEN w.culprit = r.id THEN w.culprit_tool END AS tool
       FROM runs r LEFT JOIN workers w ON w.id = r.worker
       WHERE r.status = 'running' AND r.cancel_requested_at IS NULL AND r.hard_at > now() AND ${orphaned}
         AND r.crashes + (${isCrash})::int < ${mostCrashes}
       ORDER BY r.id LIMIT $1 FOR UPDATE OF r SKIP LOCKED),
     judged AS (
       SELECT lost.*, crash = 1 AND r.crashes + crash >= ${suspectCrashes} AS suspect FROM lost JOIN runs r USING (id)),
     moved AS (
       UPDATE runs r SET status = 'queued', worker = NULL, woken = NOT suspect, wake = r.wake + (NOT suspect)::int,
         available_at = now() + CASE WHEN suspect THEN ${suspectBackoffMs} ELSE 0 END * interval '1 ms',
         crashes = r.crashes + lost.crash, lost_worker = CASE WHEN lost.crash = 1 THEN lost.worker END,
         active_ms = r.active_ms + (extract(epoch FROM now() - r.claimed_at) * 1000)::bigint, last_seq = r.last_seq + 1
       FROM judged lost WHERE r.id = lost.id
       RETURNING r.id, r.agent, r.status, r.stop_reason, r.last_seq, r.batch_id, r.priority, r.tag, r.wake, r.woken, r.rollback,
                 r.crashes, lost.worker AS lost_worker, lost.cause, lost.quiet_at, lost.tool),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, last_seq, 'run.rescued', json_strip_nulls(json_build_object('worker', lost_worker, 'cause', cause, 'crashes', nullif(crashes, 0),
         'tool_name', tool, 'quiet_at', to_char(quiet_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))), gen_random_uuid()
       FROM moved)
     SELECT ${leftColumns} FROM moved`,
    [most],
  );
  return rows.map(left);
}

/** A run that somebody must end, since nobody else will. */
export interface Overdue {
  id: string;
  tenant: string;
  agent: string;
  kind: "query" | "rollback";
  epoch: number;
  lastSeq: number;
  batchId: string | null;
  cause: "cancelled" | "deadline" | "time_limit" | "crash_loop";
  /** The tool in which its last worker was stuck, where it was this run's. */
  culpritTool: string | null;
}

/**
 * Runs past their hard limit or an unheeded cancel by `graceMs`, at once when they have no owner; queued or waiting past their deadline; and
 * those that have lost their last owner.
 */
export async function findOverdue(db: Queryable, graceMs: number, most: number): Promise<Overdue[]> {
  const { rows } = await db.query<
    Omit<Overdue, "batchId" | "culpritTool" | "lastSeq"> & {
      batch_id: string | null;
      tool: string | null;
      last_seq: number;
    }
  >(
    `SELECT r.id, r.tenant, r.agent, r.kind, r.epoch, r.last_seq, r.batch_id, CASE WHEN w.culprit = r.id THEN w.culprit_tool END AS tool,
            CASE WHEN r.cancel_requested_at IS NOT NULL THEN 'cancelled'
                 WHEN r.deadline <= now() THEN 'deadline'
                 WHEN r.hard_at <= now() THEN 'time_limit' ELSE 'crash_loop' END AS cause
     FROM runs r LEFT JOIN workers w ON w.id = r.worker
     WHERE r.status = 'running' AND (
       least(r.hard_at, r.deadline, r.cancel_requested_at) < now() - CASE WHEN ${orphaned} THEN 0 ELSE $1 END * interval '1 ms'
       OR (${orphaned} AND r.crashes + (${isCrash})::int >= ${mostCrashes}))
     UNION ALL
     SELECT id, tenant, agent, kind, epoch, last_seq, batch_id, NULL, 'deadline' FROM runs WHERE status IN ('queued', 'waiting') AND deadline < now()
     ORDER BY id LIMIT $2`,
    [graceMs, most],
  );
  return rows.map(({ batch_id, tool, last_seq, ...run }) => ({
    ...run,
    lastSeq: last_seq,
    batchId: batch_id,
    culpritTool: tool,
  }));
}

/** queued and not yet woken -> queued and woken: delays and back-offs whose time has come. Raises `wake`, which names the job. */
export async function wakeDue(
  db: Queryable,
  most: number,
): Promise<(Left & { tenant: string; neverStarted: boolean })[]> {
  const { rows } = await db.query<LeftRow & { tenant: string; never_started: boolean }>(
    `UPDATE runs r SET woken = true, wake = r.wake + 1
     FROM (SELECT id FROM runs WHERE status = 'queued' AND NOT woken AND available_at <= now()
           ORDER BY available_at LIMIT $1 FOR UPDATE SKIP LOCKED) due
     WHERE r.id = due.id
     RETURNING r.id, r.agent, r.status, r.stop_reason, r.last_seq, r.batch_id, r.priority, r.tag, r.wake, r.woken, r.rollback, r.tenant, r.started_at IS NULL AS never_started`,
    [most],
  );
  return rows.map(({ tenant, never_started, ...row }) => ({ ...left(row), tenant, neverStarted: never_started }));
}

/** Raises `wake` of runs whose wake-up BullMQ has lost, or must get anew under another priority; the guard is the old `wake`. */
export async function rewake(db: Queryable, lost: { runId: string; wake: number }[]): Promise<Left[]> {
  const runs = lost.toSorted((a, b) => (a.runId < b.runId ? -1 : 1));
  const { rows } = await db.query<LeftRow>(
    `UPDATE runs r SET wake = r.wake + 1 FROM unnest($1::uuid[], $2::int[]) AS i(id, wake)
     WHERE r.id = i.id AND r.wake = i.wake AND r.status = 'queued' AND r.woken
     RETURNING r.id, r.agent, r.status, r.stop_reason, r.last_seq, r.batch_id, r.priority, r.tag, r.wake, r.woken, r.rollback`,
    [runs.map((run) => run.runId), runs.map((run) => run.wake)],
  );
  return rows.map(left);
}

/** running -> completed, cancelled -> ... for batches: closed once no child is open, by a guarded statement after the settling commit. */
export async function closeBatches(db: Queryable, ids: string[] | "all"): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `WITH closed AS (
       UPDATE batches b SET status = CASE WHEN cancel_requested_at IS NULL THEN 'completed' ELSE 'cancelled' END, finished_at = now()
       WHERE b.status = 'running' AND ($1::uuid[] IS NULL OR b.id = ANY($1::uuid[]))
         AND NOT EXISTS (SELECT FROM runs r WHERE r.batch_id = b.id AND r.status IN ('queued', 'running', 'waiting'))
       RETURNING b.id, b.tenant),
     owed AS (
       INSERT INTO messages (id, tenant, type, batch_id) SELECT uuidv7_now(), tenant, 'batch.completed', id FROM closed)
     SELECT id FROM closed`,
    [ids === "all" ? null : ids],
  );
  return rows.map((row) => row.id);
}

export interface NewRetry {
  id: string;
  tenant: string;
  retryOf: string;
  tag: number;
  softMs: number;
  hardMs: number;
  deadline: string | null;
  submittedBy: string;
  /** Encoded data of `run.queued`. */
  data: string;
  /** Which events of the other run's log stand in its own, by their seq; and the encoded data of `steps.copied` after them. */
  seqs: number[];
  copied: string;
}

/** nothing -> queued for a run that takes up another one: what that one had finished is copied as it is stored. The caller holds that one's lock. */
export async function insertRetry(tx: Transaction, retry: NewRetry): Promise<Left> {
  const { rows } = await tx.query<LeftRow>(
    `WITH made AS (
       INSERT INTO runs (id, tenant, agent, user_id, session_id, retry_of, priority, tag, woken, available_at, soft_ms, hard_ms, deadline,
                         callback_url, callback_events, metadata, log_version, submitted_by, last_seq)
       SELECT $1, tenant, agent, user_id, session_id, id, priority, $4, true, now(), $5, $6, $7, callback_url, callback_events, metadata,
              ${logVersion}, $8, CASE cardinality($10::int[]) WHEN 0 THEN 1 ELSE cardinality($10::int[]) + 2 END
       FROM runs WHERE tenant = $2 AND id = $3
       RETURNING *),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, 1, 'run.queued', $9::json, gen_random_uuid() FROM made
       UNION ALL
       SELECT m.id, c.place + 1, e.type, e.data, gen_random_uuid()
       FROM made m, unnest($10::int[]) WITH ORDINALITY AS c(seq, place) JOIN run_events e ON e.run_id = $3 AND e.seq = c.seq
       UNION ALL
       SELECT id, last_seq, 'steps.copied', $11::json, gen_random_uuid() FROM made WHERE last_seq > 1)
     SELECT ${leftColumns} FROM made`,
    [
      retry.id,
      retry.tenant,
      retry.retryOf,
      retry.tag,
      retry.softMs,
      retry.hardMs,
      retry.deadline,
      retry.submittedBy,
      retry.data,
      retry.seqs,
      retry.copied,
    ],
  );
  return left(rows[0]!);
}
