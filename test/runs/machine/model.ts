/**
 * What one run ought to do, told without a database: a value, and for everything that anybody may do the value after it. It knows the
 * guarantees, not the statements; where the two differ, one of them is wrong.
 */
import { finalStatuses, type Status } from "../../../packages/runs/src/moves/state.ts";
import type { ApiCall, WorkerStep } from "./actors.ts";
import type { Pass } from "./rescue.ts";

/** One thing that somebody does. Workers are two seats, 0 and 1; who sits there anew is another worker. */
export type Deed =
  | { by: "worker"; seat: number; does: WorkerStep | { do: "claim"; next: boolean } | { do: "sit down anew" } }
  | { by: "api"; does: ApiCall }
  | { by: "rescuer"; does: Pass };

interface Worker {
  death?: Extract<Pass, { do: "declare dead" }>["death"];
}

interface Seat {
  worker: Worker;
  /** The last run in its hands, as the claim told it: it may be lost since. */
  held?: { epoch: number; attempt: number; raises: number };
}

export interface Model {
  status: Status;
  stopReason: string | null;
  epoch: number;
  attempt: number;
  crashes: number;
  steps: number;
  log: string[];
  messages: string[];
  cancelRequested: boolean;
  /** Open questions, oldest first. */
  questions: { late: boolean }[];
  raises: number;
  waitingFor: "approval" | "budget" | null;
  level: string | null;
  due: boolean;
  woken: boolean;
  wake: number;
  late: boolean;
  rollback: "owed" | "made" | null;
  owner: Worker | null;
  /** The dead worker whose loss counts. */
  lost: Worker | null;
  /** The tenant's cap was changed since the claim. */
  capChanged: boolean;
  seats: Seat[];
  /** What the one who acted last was told; undefined: nothing that matters. */
  answer?: "yes" | "no" | undefined;
}

export const newModel = (): Model => ({
  status: "queued",
  stopReason: null,
  epoch: 0,
  attempt: 1,
  crashes: 0,
  steps: 0,
  log: ["run.queued"],
  messages: [],
  cancelRequested: false,
  questions: [],
  raises: 0,
  waitingFor: null,
  level: null,
  due: true,
  woken: true,
  wake: 1,
  late: false,
  rollback: null,
  owner: null,
  lost: null,
  capChanged: true,
  seats: [{ worker: {} }, { worker: {} }],
});

/** Changes `run` as the deed ought to. */
export function foresee(run: Model, deed: Deed): void {
  run.answer = undefined;
  if (deed.by === "worker") work(run, run.seats[deed.seat]!, deed.does);
  else if (deed.by === "api") askFor(run, deed.does);
  else pass(run, deed.does);
}

const isOver = ({ status }: Model) => (finalStatuses as readonly Status[]).includes(status);

function move(run: Model, to: Status, event: string): void {
  run.status = to;
  run.log.push(event);
  run.owner = null;
  run.waitingFor = null;
  run.level = null;
}

function end(run: Model, to: "completed" | "partial" | "failed" | "cancelled", reason: string | null): void {
  const status = run.cancelRequested ? "cancelled" : to;
  move(run, status, `run.${status}`);
  run.stopReason = run.cancelRequested ? null : reason;
  run.messages.push(`query.${status}`);
  run.questions = [];
}

function requeue(run: Model, event: string): void {
  move(run, "queued", event);
  run.due = true;
  run.woken = true;
  run.wake++;
}

function work(run: Model, seat: Seat, does: Extract<Deed, { by: "worker" }>["does"]): void {
  if (does.do === "sit down anew") {
    seat.worker = {};
    return;
  }
  if (does.do === "claim") {
    if (run.status !== "queued" || !run.due || !run.woken || seat.worker.death) return;
    move(run, "running", "run.started");
    run.epoch++;
    run.owner = seat.worker;
    run.late = false;
    run.capChanged = false;
    seat.held = { epoch: run.epoch, attempt: run.attempt, raises: run.raises };
    return;
  }
  const { epoch, attempt, raises } = seat.held!;
  const owns = run.status === "running" && epoch === run.epoch;
  run.answer = owns ? "yes" : "no";
  if (!owns) return;
  if (does.do === "step") {
    run.log.push("model.call");
    run.steps++;
    run.attempt = 1;
    run.crashes = 0;
  } else if (does.do === "ask") {
    run.log.push("approval.requested");
    run.questions.push({ late: false });
  } else if (does.do === "park") {
    park(run, raises, does.for);
  } else if (does.status === "queued" && !run.cancelRequested) {
    requeue(run, does.delayMs > 0 ? "run.retrying" : "run.handed_over");
    if (does.delayMs === 0) return;
    run.attempt = attempt + 1;
    run.due = false;
    run.woken = false;
    run.wake--;
  } else {
    end(run, does.status as "completed", ["failed", "partial"].includes(does.status) ? "model_error" : null);
    // Made at once by the worker that left.
    if (does.rollback && run.steps > 0 && ["failed", "partial"].includes(run.status)) run.rollback = "made";
  }
}

function park(run: Model, knownRaises: number, what: "approval" | "run" | "tenant_day"): void {
  const open =
    what === "approval"
      ? run.questions.length > 0
      : run.raises === knownRaises && !(what === "tenant_day" && run.capChanged);
  if (run.cancelRequested) end(run, "cancelled", null);
  else if (!open) requeue(run, "run.resumed");
  else {
    move(run, "waiting", "run.waiting");
    run.messages.push("query.waiting");
    run.waitingFor = what === "approval" ? "approval" : "budget";
    run.level = what === "approval" ? null : what;
  }
}

function decided(run: Model): void {
  run.log.push("approval.decided");
  // One that stands at a cap looks again as well, whatever it was asked.
  if (run.waitingFor === "budget" || (run.waitingFor === "approval" && run.questions.length === 0))
    requeue(run, "run.resumed");
}

function askFor(run: Model, does: ApiCall): void {
  if (does.do === "cancel") {
    if (run.status === "queued" || run.status === "waiting") end(run, "cancelled", null);
    else if (run.status === "running" && !run.cancelRequested) {
      run.cancelRequested = true;
      run.log.push("run.cancel_requested");
    }
  } else if (does.do === "decide") {
    const newest = run.questions.at(-1);
    if (!newest) return;
    run.answer = newest.late ? "no" : "yes";
    if (newest.late) return;
    run.questions.pop();
    decided(run);
  } else if (does.do === "raise") {
    run.answer = isOver(run) ? "no" : "yes";
    if (isOver(run)) return;
    run.raises++;
    run.log.push("budget.raised");
    if (run.waitingFor === "budget") requeue(run, "run.resumed");
  } else if (does.do === "cap") {
    run.capChanged = true;
    if (run.level === "tenant_day") requeue(run, "run.resumed");
  } else if (isOver(run)) run.rollback = "made";
}

/** A death that counts against the run: unexplained, or by its own fault. */
const isCrash = ({ death }: Worker) =>
  death?.cause === "crashed" || (death?.cause === "blocked" && (death.culprit === null || death.culprit === 0));

function pass(run: Model, does: Pass): void {
  const orphaned = run.owner?.death !== undefined;
  const crashed = run.owner !== null && isCrash(run.owner);
  const crashes = run.crashes + (crashed ? 1 : 0);
  switch (does.do) {
    case "declare dead":
      run.seats[does.worker]!.worker.death ??= does.death;
      return;
    case "come back":
      if (run.lost !== run.seats[does.worker]!.worker) return;
      run.crashes = Math.max(0, run.crashes - 1);
      run.lost = null;
      return;
    case "take over":
      if (!orphaned || run.cancelRequested || run.late || crashes === 3) return;
      run.lost = crashed ? run.owner : null;
      run.crashes = crashes;
      requeue(run, "run.rescued");
      if (!crashed || crashes < 2) return;
      // Suspected: it comes back after a while.
      run.due = false;
      run.woken = false;
      run.wake--;
      return;
    case "end overdue":
      if (run.status !== "running") return;
      if (run.late || (orphaned && run.cancelRequested)) end(run, "failed", "time_limit");
      else if (orphaned && crashes === 3) end(run, "failed", "crash_loop");
      return;
    case "expire":
      for (const late of run.questions.filter((question) => question.late)) {
        run.questions.splice(run.questions.indexOf(late), 1);
        decided(run);
      }
      return;
    case "wake due":
      if (run.status !== "queued" || run.woken || !run.due) return;
      run.woken = true;
      run.wake++;
      return;
    case "make rollbacks":
      if (run.rollback === "owed") run.rollback = "made";
      return;
    case "time passes":
      if (does.over === "delays") run.due = true;
      else if (does.over === "questions") for (const question of run.questions) question.late = true;
      else if (run.status === "running") run.late = true;
      return;
    case "resume stuck":
    case "close batches":
      // Nothing is ever stuck while nobody dies halfway.
      return;
  }
}
