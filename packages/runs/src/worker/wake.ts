/** Waking workers for runs that have just become due. A ring that is lost costs a second: workers with free slots look by themselves. */
import type { WakeQueue } from "@drover/queue";
import type { Moved } from "../moves/moved.ts";

/** Call it after the commit that made them due; those of `runs` that are not are nobody's business. */
export async function wakeRuns(queue: WakeQueue, runs: Moved[]): Promise<void> {
  await queue.wake(runs.filter((run) => run.status === "queued" && run.woken).length);
}
