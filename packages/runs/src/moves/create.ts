/** nothing -> queued: what a submission, a retry and a rollback make. Run, first event and what is owed with them stand in one statement. */
import { uuidv7 } from "@drover/protocol";
import type { Queryable, Transaction } from "@drover/storage";
import { logVersion } from "../log/append.ts";
import { inLine, type Moved, type MovedRow, movedColumns, toMoved } from "./moved.ts";

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
  /** The model it asks for; null: its agent's. */
  model: string | null;
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
         $18::text[], $19::bytea[], $20::uuid[], $21::text[], $22::text[], $23::text[])
       AS i(id, tenant, agent, user_id, batch_id, batch_index, priority, tag, delay_ms, soft_ms, hard_ms, deadline, callback_url,
            callback_events, metadata, data, event_id, key, body_hash, session_id, submitted_by, hash, model)),
     won AS (
       INSERT INTO idempotency_keys AS k (tenant, key, body_hash, run_id)
       SELECT tenant, key, body_hash, id FROM input WHERE key IS NOT NULL ORDER BY tenant, key
       ON CONFLICT (tenant, key) DO UPDATE
         SET body_hash = excluded.body_hash, run_id = excluded.run_id, batch_id = NULL, created_at = now()
         WHERE k.created_at < now() - interval '24 hours'
       RETURNING run_id),
     made AS (
       INSERT INTO runs (id, tenant, agent, user_id, batch_id, batch_index, priority, tag, woken, available_at, soft_ms, hard_ms,
                         deadline, callback_url, callback_events, metadata, log_version, session_id, submitted_by, model)
       SELECT id, tenant, agent, user_id, batch_id, batch_index, priority, greatest(tag, floor_tag), delay_ms = 0,
              now() + delay_ms * interval '1 ms', soft_ms, hard_ms, deadline, callback_url, callback_events::text[], metadata::jsonb,
              ${logVersion}, session_id, submitted_by, model
       FROM input JOIN fair_classes USING (priority) WHERE key IS NULL OR id IN (SELECT run_id FROM won)
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
      runs.map((r) => r.model),
    ],
  );
  return new Set(rows.map((row) => row.id));
}

/** A rollback has time of its own, however little its run had. */
const rollbackLimitsMs = { soft: 1_500_000, hard: 1_800_000 };

/**
 * nothing -> queued for the rollbacks that are owed: a run of its own for each, once. `ids`: only of these runs. Returns the new runs by the
 * id of the run they undo.
 */
export async function makeRollbacks(db: Queryable, ids: string[] | "all"): Promise<(Moved & { ofRun: string })[]> {
  const { rows } = await db.query<MovedRow & { of_run: string }>(
    `WITH owed AS (
       SELECT * FROM runs WHERE rollback = 'owed' AND ($1::uuid[] IS NULL OR id = ANY($1::uuid[]))
       ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED),
     settled AS (UPDATE runs r SET rollback = 'made' FROM owed WHERE r.id = owed.id),
     made AS (
       INSERT INTO runs (id, tenant, agent, user_id, kind, of_run, priority, tag, woken, available_at, soft_ms, hard_ms, callback_url,
                         callback_events, metadata, log_version, submitted_by)
       SELECT uuidv7_now(), tenant, agent, user_id, 'rollback', id, priority, ${inLine}, true, now(), $2, $3, callback_url, callback_events,
              metadata, ${logVersion}, submitted_by
       FROM owed r ON CONFLICT DO NOTHING
       RETURNING *),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, 1, 'run.queued', json_build_object(
           'query', 'Undo what run_' || replace(of_run::text, '-', '') || ' did.', 'agent', agent, 'max_iterations', 1000,
           'limits', json_build_object('soft_seconds', $2 / 1000, 'hard_seconds', $3 / 1000),
           'retry', json_build_object('max_attempts', 3, 'backoff_ms', 1000, 'max_backoff_ms', 60000),
           'of_run', 'run_' || replace(of_run::text, '-', '')), gen_random_uuid()
       FROM made)
     SELECT ${movedColumns("made")}, of_run FROM made`,
    [ids === "all" ? null : ids, rollbackLimitsMs.soft, rollbackLimitsMs.hard],
  );
  return rows.map(({ of_run, ...row }) => ({ ...toMoved(row), ofRun: of_run }));
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
  model: string | null;
  /** Encoded data of `run.queued`. */
  data: string;
  /** Which events of the other run's log stand in its own, by their seq; and the encoded data of `steps.copied` after them. */
  seqs: number[];
  copied: string;
  /** Hashes of large contents that they name. */
  artifacts: string[];
}

/** nothing -> queued for a run that takes up another one: what that one had finished is copied as it is stored. The caller holds that one's lock. */
export async function insertRetry(tx: Transaction, retry: NewRetry): Promise<Moved> {
  const { rows } = await tx.query<MovedRow>(
    `WITH made AS (
       INSERT INTO runs (id, tenant, agent, user_id, session_id, retry_of, priority, tag, woken, available_at, soft_ms, hard_ms, deadline,
                         callback_url, callback_events, metadata, log_version, submitted_by, model, last_seq)
       SELECT $1, tenant, agent, user_id, session_id, id, priority, greatest($4, floor_tag), true, now(), $5, $6, $7, callback_url, callback_events, metadata,
              ${logVersion}, $8, $12, CASE cardinality($10::int[]) WHEN 0 THEN 1 ELSE cardinality($10::int[]) + 2 END
       FROM runs JOIN fair_classes USING (priority) WHERE tenant = $2 AND id = $3
       RETURNING *),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, 1, 'run.queued', $9::json, gen_random_uuid() FROM made
       UNION ALL
       SELECT m.id, c.place + 1, e.type, e.data, gen_random_uuid()
       FROM made m, unnest($10::int[]) WITH ORDINALITY AS c(seq, place) JOIN run_events e ON e.run_id = $3 AND e.seq = c.seq
       UNION ALL
       SELECT id, last_seq, 'steps.copied', $11::json, gen_random_uuid() FROM made WHERE last_seq > 1),
     kept AS (
       UPDATE blobs b SET created_at = now() FROM (
         SELECT e.data ->> '$blob' AS hash FROM unnest($10::int[]) AS c(seq) JOIN run_events e ON e.run_id = $3 AND e.seq = c.seq
         UNION SELECT unnest($13::text[])) named
       WHERE b.tenant = $2 AND b.hash = named.hash)
     SELECT ${movedColumns("made")} FROM made`,
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
      retry.model,
      retry.artifacts,
    ],
  );
  return toMoved(rows[0]!);
}
