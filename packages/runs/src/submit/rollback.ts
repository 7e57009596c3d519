/** Asking for the effects of a run to be undone: a run of its own does it, once. */
import { DroverError, toWireId } from "@drover/protocol";
import { type Pool, type Transaction, transaction } from "@drover/storage";
import { recordAudit } from "../audit/entries.ts";
import { requireContents } from "../log/read.ts";
import { makeRollbacks } from "../moves/create.ts";
import type { Moved } from "../moves/moved.ts";
import { isFinal } from "../moves/state.ts";
import { lockRun } from "../people/approvals.ts";

/** `made` is the new run, to be woken; null when there is one already, whose id is `id`. */
export interface RollbackAnswer {
  id: string;
  made: Moved | null;
}

/**
 * Undoes what a final run did. Asking again gives the same rollback, unless that failed. null: the tenant has no such run.
 * @throws DroverError `conflict` while the run is not final, or is a rollback itself; `contents_expired`
 */
export async function rollBack(
  pool: Pool,
  tenant: string,
  runId: string,
  actor: string,
): Promise<RollbackAnswer | null> {
  return await transaction(pool, async (tx) => {
    const run = await lockRun(tx, tenant, runId);
    if (!run) return null;
    if (!isFinal(run.status))
      throw new DroverError(
        "conflict",
        `The run is ${run.status}: cancel it, or wait for its end, before it is undone.`,
      );
    const kind = await tx.query<{ kind: string }>("SELECT kind FROM runs WHERE tenant = $1 AND id = $2", [
      tenant,
      runId,
    ]);
    if (kind.rows[0]?.kind === "rollback") throw new DroverError("conflict", "This run is a rollback itself.");
    const existing = await tx.query<{ id: string }>(
      "SELECT id FROM runs WHERE tenant = $1 AND of_run = $2 AND kind = 'rollback' AND status NOT IN ('failed', 'cancelled')",
      [tenant, runId],
    );
    if (existing.rows[0]) return { id: existing.rows[0].id, made: null };
    await requireContents(tx, { id: runId, status: run.status });
    await requireNoRetry(tx, tenant, runId);
    await tx.query("UPDATE runs SET rollback = 'owed' WHERE tenant = $1 AND id = $2", [tenant, runId]);
    const [made] = await makeRollbacks(tx, [runId]);
    if (!made) throw new DroverError("conflict", "The run is being undone at this moment.");
    await recordAudit(tx, [
      { tenant, actor, action: "rollback.requested", runId, data: { rollback: toWireId("run", made.runId) } },
    ]);
    return { id: made.runId, made };
  });
}

/** What a retry under way takes for true must stay true. */
async function requireNoRetry(tx: Transaction, tenant: string, runId: string): Promise<void> {
  const { rows } = await tx.query<{ id: string }>(
    `WITH RECURSIVE later AS (
       SELECT id, status FROM runs WHERE tenant = $1 AND retry_of = $2
       UNION ALL SELECT r.id, r.status FROM runs r JOIN later l ON r.retry_of = l.id)
     SELECT id FROM later WHERE status IN ('queued', 'running', 'waiting') LIMIT 1`,
    [tenant, runId],
  );
  if (rows[0])
    throw new DroverError(
      "conflict",
      `${toWireId("run", rows[0].id)} goes on with what this run did: cancel it first.`,
    );
}
