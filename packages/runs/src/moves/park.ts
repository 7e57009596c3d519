/** running -> waiting -> queued: runs that stand still for a person or for money. */
import { type Pool, type Queryable, transaction } from "@drover/storage";
import {
  closeQuestions,
  inLine,
  isForNobody,
  type Moved,
  type MovedRow,
  messageOwed,
  movedColumns,
  toMoved,
} from "./moved.ts";
import { type Lately, since } from "./wake.ts";

/** How an owner parks a run. */
export interface Parking {
  runId: string;
  /** The fence: see `Leaving`. */
  epoch: number;
  worker?: string;
  lastSeq?: number;
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
 * Late comes at most its COMMIT; until then it holds the run's lock, and whoever repeats it waits.
 */
export async function parkRun(pool: Pool, op: Parking): Promise<Moved | null> {
  return await transaction(pool, async (tx) => {
    const { rowCount } = await tx.query(
      `SELECT FROM runs WHERE id = $1 AND epoch = $2 AND status = 'running' AND worker = coalesce($3, worker) AND last_seq >= $4 FOR UPDATE`,
      [op.runId, op.epoch, op.worker ?? null, op.lastSeq ?? 0],
    );
    if (rowCount === 0) return null;
    // Whoever changes a cap finds the runs that wait for it after this lock, or this run finds the change.
    if (op.waitingFor === "budget")
      await tx.query("SELECT FROM budgets WHERE tenant = (SELECT tenant FROM runs WHERE id = $1) FOR SHARE", [
        op.runId,
      ]);
    const { rows } = await tx.query<MovedRow>(
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
           tag = CASE WHEN t.to = 'queued' THEN ${inLine} ELSE r.tag END,
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
         INSERT INTO messages (id, tenant, type, run_id, seq, fanned_out)
         SELECT uuidv7_now(), tenant, 'query.' || status, id, CASE status WHEN 'waiting' THEN last_seq END, ${isForNobody("moved")}
         FROM moved WHERE status <> 'queued'
         RETURNING run_id, fanned_out),
       ${closeQuestions}
       SELECT ${movedColumns("moved")}, ${messageOwed} FROM moved`,
      [op.runId, op.eventId, op.waitingFor, op.raises, op.level, op.data, op.cancelledData],
    );
    return rows[0] ? toMoved(rows[0]) : null;
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
export async function resumeRuns(db: Queryable, ids: string[]): Promise<Moved[]> {
  const { rows } = await db.query<MovedRow>(
    `WITH moved AS (
       UPDATE runs r SET status = 'queued', waiting_for = NULL, waiting_level = NULL, available_at = now(), woken = true,
         tag = ${inLine}, wake = r.wake + 1, last_seq = r.last_seq + 1
       FROM (SELECT id, waiting_for AS waited_for FROM runs r
             WHERE id = ANY($1::uuid[]) AND status = 'waiting'
               AND (waiting_for <> 'approval' OR NOT EXISTS (SELECT FROM approvals a WHERE a.run_id = r.id AND a.status = 'pending'))
             ORDER BY id FOR UPDATE) due
       WHERE r.id = due.id
       RETURNING r.*, due.waited_for),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, last_seq, 'run.resumed', json_build_object('waited_for', waited_for), gen_random_uuid() FROM moved)
     SELECT ${movedColumns("moved")} FROM moved`,
    [ids],
  );
  return rows.map(toMoved);
}

/** Caps around a run, which change without its doing. */
const outer = "r.waiting_level IN ('session', 'tenant_day', 'tenant_month')";

/** The day or month is over at whose cap the run `r` waits. */
const isOver = `((r.waiting_level = 'tenant_day' AND date_trunc('day', now() AT TIME ZONE 'UTC') > r.waiting_since AT TIME ZONE 'UTC')
  OR (r.waiting_level = 'tenant_month' AND date_trunc('month', now() AT TIME ZONE 'UTC') > r.waiting_since AT TIME ZONE 'UTC'))`;

/**
 * Waiting runs that nothing holds any more although nobody moved them: the cap they stood at was changed lately, or belongs to a day or month
 * that is over since. With `null`, whenever it was, and also those whose questions are all decided: then it reads everything that waits.
 */
export async function findResumable(db: Queryable, most: number, lately: Lately = null): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    lately === null
      ? `SELECT r.id FROM runs r WHERE r.status = 'waiting' AND r.waiting_for = 'approval'
           AND NOT EXISTS (SELECT FROM approvals a WHERE a.run_id = r.id AND a.status = 'pending')
         UNION ALL
         SELECT r.id FROM runs r LEFT JOIN budgets b ON b.tenant = r.tenant
         WHERE r.status = 'waiting' AND r.waiting_for = 'budget' AND ${outer} AND (b.tenant IS NULL OR b.changed_at >= r.waiting_since OR ${isOver})
         LIMIT $1`
      : `SELECT r.id FROM budgets b JOIN runs r ON r.tenant = b.tenant AND r.status = 'waiting'
         WHERE ${since("b.changed_at", "$2")} AND r.waiting_for = 'budget' AND ${outer} AND b.changed_at >= r.waiting_since
         UNION ALL
         SELECT r.id FROM runs r WHERE r.status = 'waiting' AND r.waiting_for = 'budget' AND ${outer} AND ${isOver}
           AND date_trunc('day', now() AT TIME ZONE 'UTC') > date_trunc('day', (now() - $2::float8 * interval '1 ms') AT TIME ZONE 'UTC')
         LIMIT $1`,
    lately === null ? [most] : [most, lately],
  );
  return rows.map((row) => row.id);
}
