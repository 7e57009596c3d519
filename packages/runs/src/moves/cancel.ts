/** queued, waiting -> cancelled; a running run gets its flag. */
import type { Queryable } from "@drover/storage";
import { nothingLeft } from "./leave.ts";
import { closeQuestions, isForNobody } from "./moved.ts";
import type { Status } from "./state.ts";

export interface CancelAnswer {
  runId: string;
  status: Status;
  cancelRequested: boolean;
  batchId: string | null;
}

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
       RETURNING r.id, r.tenant, r.status, r.last_seq, r.callback_url),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, last_seq, CASE status WHEN 'running' THEN 'run.cancel_requested' ELSE 'run.cancelled' END,
              CASE status WHEN 'running' THEN '{}'::json ELSE $3::json END, gen_random_uuid() FROM moved),
     owed AS (
       INSERT INTO messages (id, tenant, type, run_id, fanned_out)
       SELECT uuidv7_now(), tenant, 'query.cancelled', id, ${isForNobody("moved")} FROM moved WHERE status = 'cancelled'),
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
