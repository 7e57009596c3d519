/** What a run's move owes besides its commit: its batch is closed, its rollback made, its next wake-up sent. The rescuer does what fails here. */
import type { WakeQueue } from "@drover/queue";
import { createBatcher, type Pool } from "@drover/storage";
import { closeBatches } from "../moves/batch.ts";
import { makeRollbacks } from "../moves/create.ts";
import type { Moved } from "../moves/moved.ts";
import { isFinal } from "../moves/state.ts";
import type { Observe } from "../observe.ts";
import { wakeRuns } from "./wake.ts";

interface ReportOptions {
  pool: Pool;
  queue: WakeQueue;
  observe: Observe;
  /** Messages are owed. */
  onSettled?: (() => void) | undefined;
  /** A run was put off: somebody must look for when it is due. */
  onDelayed(): void;
}

/** Never rejects. */
export type Report = (moved: Moved) => Promise<void>;

export function createReport({ pool, queue, observe, onSettled, onDelayed }: ReportOptions): Report {
  const closeBatch = createBatcher<string, boolean>({
    key: (id) => id,
    execute: async (ids) => {
      const closed = await closeBatches(pool, [...new Set(ids)]);
      return ids.map((id) => closed.includes(id));
    },
  });
  return async (moved) => {
    try {
      if (isFinal(moved.status)) {
        const isBatchClosed = moved.batchId !== null && (await closeBatch(moved.batchId));
        if (moved.rollbackOwed) await wakeRuns(queue, await makeRollbacks(pool, [moved.runId]));
        if (moved.messageOwed || isBatchClosed) onSettled?.();
      } else if (moved.woken) {
        await wakeRuns(queue, [moved]);
      } else if (moved.status === "waiting") {
        if (moved.messageOwed) onSettled?.();
      } else {
        onDelayed();
      }
    } catch (error) {
      observe({ type: "unreported", runId: moved.runId, error });
    }
  };
}
