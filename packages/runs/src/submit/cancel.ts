/** Cancelling: one guarded statement for runs; batches are their runs, and closed when none is open. */
import type { Pool, Queryable } from "@drover/storage";
import { closeBatches } from "../moves/batch.ts";
import { type CancelAnswer, cancelRuns } from "../moves/cancel.ts";

/** Cancels one run. null: the tenant has none of that id. Harmless when repeated, and when it is final already. */
export async function cancelRun(
  db: Queryable,
  tenant: string,
  id: string,
  actor: string,
): Promise<CancelAnswer | null> {
  const [answer] = await cancelRuns(db, tenant, [id], actor);
  if (answer?.batchId && answer.status === "cancelled") await closeBatches(db, [answer.batchId]);
  return answer ?? null;
}

const chunk = 1000;

/**
 * Cancels every open run of a batch; one that is over stays as it is. False: the tenant has no batch of that id. A crash in between leaves the
 * flag, and the call can be repeated.
 */
export async function cancelBatch(pool: Pool, tenant: string, batchId: string, actor: string): Promise<boolean> {
  const { rowCount } = await pool.query(
    `UPDATE batches SET cancel_requested_at = CASE status WHEN 'running' THEN coalesce(cancel_requested_at, now()) ELSE cancel_requested_at END
     WHERE tenant = $1 AND id = $2`,
    [tenant, batchId],
  );
  if (rowCount === 0) return false;
  for (let after = -1; ; ) {
    const { rows } = await pool.query<{ id: string; batch_index: number }>(
      `SELECT id, batch_index FROM runs WHERE tenant = $1 AND batch_id = $2 AND batch_index > $3
         AND status IN ('queued', 'running', 'waiting') ORDER BY batch_index LIMIT $4`,
      [tenant, batchId, after, chunk],
    );
    if (rows.length === 0) break;
    await cancelRuns(
      pool,
      tenant,
      rows.map((row) => row.id),
      actor,
    );
    after = rows.at(-1)!.batch_index;
  }
  await closeBatches(pool, [batchId]);
  return true;
}
