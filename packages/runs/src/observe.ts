/**
 * The one seam for telling: whatever moves a run says so here, and what is logged, counted or traced is derived from it. No module
 * logs or counts a move by itself.
 */
import type { NewEvent } from "@drover/harness";
import { toWireId } from "@drover/protocol";
import { everyLine, type Logger } from "@drover/telemetry";
import { type ClaimedRun, workOf } from "./moves/claim.ts";
import type { Moved } from "./moves/moved.ts";
import { isFinal } from "./moves/state.ts";

/** Something that has happened, after its commit. Errors are `unknown`: what was thrown. */
export type Observation =
  /** nothing -> queued, for a client. */
  | { type: "submitted"; agents: string[]; kind: "single" | "batch" | "retry" }
  /** queued -> running, here. */
  | { type: "claimed"; run: ClaimedRun }
  | { type: "logged"; run: ClaimedRun; event: NewEvent }
  /** running -> whatever `moved` says; it was held here for `ownedMs`. */
  | { type: "left"; run: ClaimedRun; moved: Moved; ownedMs: number }
  /** The ownership was lost, and the outcome dropped. */
  | { type: "lost"; run: ClaimedRun }
  /** A bug, or data that cannot be read or written. `ends`: the run ends by it; otherwise it goes back to the queue. */
  | { type: "broke"; run: ClaimedRun; error: unknown; ends: boolean }
  /** What the move of a run owes could not be done now; the rescuer will. */
  | { type: "unreported"; runId: string; error: unknown }
  /** running -> queued for a run that was ours and that nobody here carried. */
  | { type: "given_back"; runId: string; epoch: number }
  /** A call answered after it was given up, and its answer was dropped. */
  | { type: "late"; what: "tool" | "model" }
  /** Another worker was declared dead here. */
  | { type: "condemned"; worker: string; cause: "crashed" | "silent" }
  /** running -> queued for runs of dead workers. */
  | { type: "rescued"; runs: Moved[] }
  /** Wake-ups for runs nobody else would have woken. */
  | { type: "woken"; runs: Moved[]; why: string }
  /** This worker does not know these agents, or the models asked for: their runs are left to others. */
  | { type: "set_aside"; agents: string[] }
  /** No living worker does. */
  | { type: "unclaimed"; agent: string; model: string | null; runs: number; since: Date }
  /** A run that the rescuer ended. */
  | { type: "ended"; moved: Moved }
  /** A run that the rescuer cannot end now, or whose log it cannot read. */
  | { type: "unended"; runId: string; error: unknown; what: "end" | "log" };

/** Must not throw. */
export type Observe = (observation: Observation) => void;

/** What of it stands in the process's log: a line when a run starts and when it leaves, with its totals, and what goes wrong. Ids as clients see them. */
export function logsOf(logger: Logger): Observe {
  const each = everyLine(logger);
  return (told) => {
    switch (told.type) {
      case "claimed": {
        const { tenant, agent, epoch, attempt, waitedMs } = told.run;
        const line = { task_id: taskId(told.run.id), tenant, agent, epoch, attempt, waited_ms: Math.round(waitedMs) };
        each.info(line, epoch === 1 ? "run started" : "run goes on");
        break;
      }
      case "left":
      case "ended":
        tellLeft(each, told.moved);
        break;
      case "lost":
        logger.info({ task_id: taskId(told.run.id), epoch: told.run.epoch }, "ownership lost, outcome dropped");
        break;
      case "broke":
        logger.error(
          { err: told.error, task_id: taskId(told.run.id) },
          told.ends ? "a run ended by an internal error" : "a run could not be carried on; it goes back to the queue",
        );
        break;
      case "unreported":
        logger.warn({ err: told.error, task_id: taskId(told.runId) }, "after a run left: the rescuer will see to it");
        break;
      case "given_back":
        logger.warn({ task_id: taskId(told.runId), epoch: told.epoch }, "a run nobody here carried was given back");
        break;
      case "rescued":
        for (const { runId, agent } of told.runs)
          each.info({ task_id: taskId(runId), agent }, "run taken over from a dead worker");
        break;
      case "woken":
        logger.info({ runs: told.runs.length }, `waking runs: ${told.why}`);
        break;
      case "set_aside":
        logger.info(
          { agents: told.agents },
          "runs of agents or models that this worker does not know are left to others",
        );
        break;
      case "unclaimed": {
        const { agent, model, runs, since } = told;
        logger.warn({ agent, ...(model !== null && { model }), runs, since }, `no worker takes ${workOf(told)}`);
        break;
      }
      case "unended":
        logger.error(
          { err: told.error, task_id: taskId(told.runId) },
          told.what === "end" ? "an overdue run could not be ended" : "the log of an overdue run cannot be read",
        );
        break;
    }
  };
}

const taskId = (id: string): string => toWireId("run", id);

function tellLeft(logger: Logger, { runId, agent, batchId, status, stopReason, woken, totals }: Moved): void {
  const line = {
    task_id: taskId(runId),
    ...(batchId !== null && { batch_id: toWireId("batch", batchId) }),
    agent,
    status,
    ...(stopReason !== null && { stop_reason: stopReason }),
    ...totals,
  };
  if (status === "failed") logger.warn(line, "run failed");
  else if (isFinal(status)) logger.info(line, `run ${status}`);
  else if (status === "waiting") logger.info(line, "run waits");
  else logger.info(line, woken ? "run handed over" : "run will be tried again");
}

/** Tells each of them. */
export const tellAll =
  (...all: (Observe | undefined)[]): Observe =>
  (told) => {
    for (const observe of all) observe?.(told);
  };
