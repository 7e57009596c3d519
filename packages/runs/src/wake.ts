/** Sending the wake-ups of runs that have just become due. A lost one is the rescuer's business. */
import type { WakeQueue } from "@drover/queue";
import type { Queryable } from "@drover/storage";
import { queuePriority, readBases } from "./fair.ts";
import type { Left } from "./moves.ts";

/** Wakes those of `runs` that are due now. Call it after the commit that made them so. */
export async function wakeRuns(db: Queryable, queue: WakeQueue, runs: Left[]): Promise<void> {
  const due = runs.filter((run) => run.status === "queued" && run.woken);
  if (due.length === 0) return;
  const bases = await readBases(db);
  await queue.wake(
    due.map((run) => ({
      runId: run.runId,
      wake: run.wake,
      priority: queuePriority(run.priority, run.tag, bases[run.priority]!),
    })),
  );
}
