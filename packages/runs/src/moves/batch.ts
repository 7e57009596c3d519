/** Batches are closed once no item is open. */
import type { Queryable } from "@drover/storage";
import { isForNobody } from "./moved.ts";

/** running -> completed, cancelled -> ... for batches: closed once no child is open, by a guarded statement after the settling commit. */
export async function closeBatches(db: Queryable, ids: string[] | "all"): Promise<string[]> {
  const { rows } = await db.query<{ id: string }>(
    `WITH closed AS (
       UPDATE batches b SET status = CASE WHEN cancel_requested_at IS NULL THEN 'completed' ELSE 'cancelled' END, finished_at = now()
       WHERE b.status = 'running' AND ($1::uuid[] IS NULL OR b.id = ANY($1::uuid[]))
         AND NOT EXISTS (SELECT FROM runs r WHERE r.batch_id = b.id AND r.status IN ('queued', 'running', 'waiting'))
       RETURNING b.id, b.tenant, b.callback_url),
     owed AS (
       INSERT INTO messages (id, tenant, type, batch_id, fanned_out)
       SELECT uuidv7_now(), tenant, 'batch.completed', id, ${isForNobody("closed")} FROM closed)
     SELECT id FROM closed`,
    [ids === "all" ? null : ids],
  );
  return rows.map((row) => row.id);
}
