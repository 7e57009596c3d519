/** Raising the caps of one run: more money, more points. A run that waits for it goes on. */
import type { LogEvent } from "@drover/harness";
import { fold, toUsd } from "@drover/harness/worker";
import { DroverError } from "@drover/protocol";
import { type Blobs, type Pool, type Transaction, transaction } from "@drover/storage";
import { recordAudit } from "../audit/entries.ts";
import { appendLocked } from "../log/append.ts";
import { readLog } from "../log/events.ts";
import type { Moved } from "../moves/moved.ts";
import { resumeRuns } from "../moves/park.ts";
import { isFinal } from "../moves/state.ts";
import { lockRun } from "../people/approvals.ts";

export interface Raise {
  maxCostUsd?: number | undefined;
  actionBudget?: number | undefined;
}

/**
 * Raises a run's caps, whether it waits for that or not. Returns the run when it goes on now: wake it. null: the tenant has no such run.
 * @throws DroverError `conflict` when it is final, `invalid_input` when a value is no raise
 */
export async function raiseRunBudget(
  pool: Pool,
  blobs: Blobs,
  run: { tenant: string; id: string },
  raise: Raise,
  actor: string,
): Promise<{ resumed: Moved | null } | null> {
  const { tenant, id } = run;
  // Large contents are read over a connection of their own, and so before the lock.
  const log = await readLog(pool, blobs, { tenant, runId: id });
  return await transaction(pool, async (tx) => {
    const locked = await lockRun(tx, tenant, id);
    if (!locked) return null;
    if (isFinal(locked.status))
      throw new DroverError("conflict", `The run is ${locked.status}: its budget no longer matters.`);
    const { caps } = fold([...log, ...(await raisesAfter(tx, id, log.at(-1)!.seq))]);
    const errors = [
      ...wrong("max_cost_usd", raise.maxCostUsd, caps.costNanos === undefined ? undefined : toUsd(caps.costNanos)),
      ...wrong("actions", raise.actionBudget, caps.points),
    ];
    if (errors.length > 0) throw new DroverError("invalid_input", "This is no raise.", { errors });
    const data = {
      ...(raise.maxCostUsd !== undefined && { max_cost_usd: raise.maxCostUsd }),
      ...(raise.actionBudget !== undefined && { action_budget: raise.actionBudget }),
    };
    await appendLocked(tx, id, { type: "budget.raised", data: JSON.stringify({ ...data, by: actor }) });
    await tx.query("UPDATE runs SET budget_raises = budget_raises + 1 WHERE tenant = $1 AND id = $2", [tenant, id]);
    await recordAudit(tx, [{ tenant, actor, action: "budget.raised", runId: id, data }]);
    const [resumed] = locked.waitingFor === "budget" ? await resumeRuns(tx, [id]) : [];
    return { resumed: resumed ?? null };
  });
}

/** Raises in the run's log after this seq. */
async function raisesAfter(tx: Transaction, id: string, seq: number): Promise<LogEvent[]> {
  const { rows } = await tx.query<LogEvent>(
    `SELECT seq, type, data, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at
     FROM run_events WHERE run_id = $1 AND seq > $2 AND type = 'budget.raised' ORDER BY seq`,
    [id, seq],
  );
  return rows;
}

function wrong(path: string, wanted: number | undefined, now: number | undefined) {
  if (wanted === undefined) return [];
  if (now === undefined) return [{ path, message: "the run has no such cap, so there is nothing to raise" }];
  return wanted > now ? [] : [{ path, message: `must be more than the cap there is now (${now})` }];
}
