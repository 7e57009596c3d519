/** Ends runs that nobody else ends, each with what its log has. */
import type { FinalData, RunInput } from "@drover/harness";
import { early, fold, initialState, latestText, type RunState } from "@drover/harness/worker";
import { uuidv7 } from "@drover/protocol";
import { faultOf } from "@drover/storage";
import { encodeData } from "../log/append.ts";
import { readLog } from "../log/events.ts";
import { closeBatches } from "../moves/batch.ts";
import { workOf } from "../moves/claim.ts";
import { type Leaving, leaveRuns } from "../moves/leave.ts";
import { findOverdue, mostCrashes, type Overdue, type OverdueOptions } from "../moves/rescue.ts";
import type { RescuerOptions } from "./rescuer.ts";
import { rollsBack } from "./settle.ts";

const most = 200;
const graceAfterLimitMs = 15_000;

/** One that cannot be ended now holds up no other. Resolves with whether there are no more: false when another go would find some. */
export async function endOverdue(
  options: RescuerOptions,
  where: Pick<OverdueOptions, "whose" | "lately" | "noWorkerMs">,
): Promise<boolean> {
  const { pool, blobs } = options;
  const overdue = await findOverdue(pool, { ...where, graceMs: graceAfterLimitMs, most });
  const batches = new Set<string>();
  let anyEnded = false;
  for (const run of overdue) {
    try {
      const { kept, ending } = await endingOf(options, run);
      const leaving: Leaving = {
        runId: run.id,
        epoch: run.epoch,
        eventId: uuidv7(),
        status: ending.status,
        stopReason: ending.data.stop_reason,
        eventType: `run.${ending.status}`,
        data: await encodeData(blobs, run.tenant, ending.data),
        cancelledData: await encodeData(blobs, run.tenant, kept),
        delayMs: 0,
        attempt: null,
        rollback: rollsBack(options.agents, run),
        lastSeq: run.lastSeq,
      };
      const [ended] = await leaveRuns(pool, [leaving], "unowned");
      if (!ended) continue;
      anyEnded = true;
      options.observe({ type: "ended", moved: ended });
      options.signals.news(run.id);
      if (run.batchId) batches.add(run.batchId);
    } catch (error) {
      if (faultOf(error) === "unavailable") throw error;
      options.observe({ type: "unended", runId: run.id, error, what: "end" });
    }
  }
  if (batches.size > 0) await closeBatches(pool, [...batches]);
  if (overdue.length > 0) options.onSettled?.();
  return overdue.length < most || !anyEnded;
}

/** How an overdue run ends, and what a cancel keeps. A log that cannot be read ends its run with nothing, and holds up no other. */
async function endingOf(options: RescuerOptions, run: Overdue) {
  let state: RunState;
  try {
    state = fold(await readLog(options.pool, options.blobs, { tenant: run.tenant, runId: run.id }));
  } catch (error) {
    if (faultOf(error) === "unavailable") throw error;
    options.observe({ type: "unended", runId: run.id, error, what: "log" });
    state = initialState({} as RunInput);
  }
  const kept: FinalData = { output: latestText(state), stop_reason: null, error: null };
  if (run.cause === "cancelled") return { kept, ending: { status: "cancelled" as const, data: kept } };
  if (run.cause === "crash_loop") {
    const error = { code: run.cause, message: messages.crash_loop(run) };
    return { kept, ending: { status: "failed" as const, data: { ...kept, stop_reason: run.cause, error } } };
  }
  const { status, data } = early(state, run.cause, messages[run.cause](run));
  return { kept, ending: { status, data } };
}

const messages = {
  deadline: () => "The run reached its deadline.",
  time_limit: () => "The run reached its time limit.",
  no_worker: (run) => `No worker took ${workOf(run)}: is it in the configuration of the workers?`,
  crash_loop: ({ culpritTool }) =>
    culpritTool === null
      ? `The worker that carried this run died ${mostCrashes} times in a row without a step of it being finished.`
      : `Its workers died ${mostCrashes} times in a row without a step being finished, the last one because ${culpritTool} blocked its event loop.`,
} satisfies Record<Exclude<Overdue["cause"], "cancelled">, (run: Overdue) => string>;
