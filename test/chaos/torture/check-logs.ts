/** What every log must look like by itself: no gap, one end, one owner at a time, and the end that was asked for. */
import type { LogEvent } from "@drover/harness";
import { isFinal, type Status } from "@drover/runs";
import { atMs, type Evidence, eventsOf, type RunRow, type Violation } from "./evidence.ts";
import { isKiller } from "./scenario.ts";

/** From which status an event may come, and what the run is afterwards. Everything else is a step: its run is running before and after. */
const moves: Record<string, { from: Status[]; to?: Status }> = {
  "run.started": { from: ["queued"], to: "running" },
  "run.handed_over": { from: ["running"], to: "queued" },
  "run.rescued": { from: ["running"], to: "queued" },
  "run.retrying": { from: ["running"], to: "queued" },
  "run.waiting": { from: ["running"], to: "waiting" },
  // Running: what it was about to wait for was decided already.
  "run.resumed": { from: ["waiting", "running"], to: "queued" },
  "approval.decided": { from: ["waiting", "queued", "running"] },
  "run.completed": { from: ["running"], to: "completed" },
  "run.partial": { from: ["running", "queued", "waiting"], to: "partial" },
  "run.failed": { from: ["running", "queued", "waiting"], to: "failed" },
  "run.cancelled": { from: ["running", "queued", "waiting"], to: "cancelled" },
};
/** Between a process's clock of durations and the database's clock of times. */
const clocksMs = 50;

export function* checkLogs(evidence: Evidence): Generator<Violation> {
  for (const run of evidence.runs) {
    if (!isFinal(run.status as Status)) {
      yield { rule: "everything comes to rest", run: run.id, text: `it is ${run.status} in the end` };
      continue;
    }
    yield* checkShape(run);
    yield* checkOwners(run);
    yield* checkEnd(run, evidence);
  }
}

function* checkShape({ id: run, status, last_seq, log }: RunRow): Generator<Violation> {
  const rule = "logs are gap-free and end once";
  if (log.some(({ seq }, index) => seq !== index + 1) || log.length !== last_seq)
    yield {
      rule,
      run,
      text: `its log has the numbers ${log.map(({ seq }) => seq).join(" ")}, and ${last_seq} is its last`,
    };
  const ends = log.filter(({ type }) => isFinal(moves[type]?.to ?? "queued"));
  if (ends.length !== 1 || ends[0] !== log.at(-1) || ends[0]?.type !== `run.${status}`)
    yield {
      rule,
      run,
      text: `it is ${status}, and its log ends ${ends.length} times, at last with ${log.at(-1)?.type}`,
    };
}

function* checkOwners({ id: run, epoch, log }: RunRow): Generator<Violation> {
  const rule = "one owner at a time";
  let status: Status = "queued";
  let owner: { epoch: number; at: number } = { epoch: 0, at: 0 };
  for (const event of log.slice(1)) {
    const move = moves[event.type] ?? { from: ["running"] };
    if (!move.from.includes(status)) yield { rule, run, text: `${event.type} (${event.seq}) while it is ${status}` };
    status = move.to ?? status;
    if (event.type === "run.started") {
      if (event.data.epoch <= owner.epoch)
        yield { rule, run, text: `epoch ${event.data.epoch} (${event.seq}) after epoch ${owner.epoch}` };
      owner = { epoch: event.data.epoch, at: atMs(event) };
    }
    const began = beganAt(event);
    if (began !== undefined && began < owner.at - clocksMs)
      yield { rule, run, text: `${event.type} (${event.seq}) began ${owner.at - began} ms before its owner's claim` };
  }
  if (owner.epoch !== epoch) yield { rule, run, text: `its epoch is ${epoch}, the last one in its log ${owner.epoch}` };
}

/** When the step began whose end is recorded, by the clock of the database. */
function beganAt(event: LogEvent): number | undefined {
  return event.type === "model.call" ? atMs(event) - event.data.duration_ms : undefined;
}

function* checkEnd(run: RunRow, evidence: Evidence): Generator<Violation> {
  const rule = "every run ends as it should";
  const asked = evidence.asked.get(run.label);
  if (!asked) {
    yield { rule, run: run.id, text: `nobody submitted ${run.label}` };
    return;
  }
  const { cancel } = asked.promised;
  const batch = asked.promised.submission.items.length > 1;
  const ended = `it is ${run.status}${run.stop_reason ? ` (${run.stop_reason})` : ""}`;
  // A client whose cancel was never answered does not know whether it was heard.
  const mayBeCancelled = asked.promised.submission.cancelAfterMs !== null;
  if (cancel && !batch && cancel.requested && run.status !== "cancelled")
    yield { rule, run: run.id, text: `${ended}, and its cancel was accepted` };
  if (cancel && !batch && !cancel.requested && run.status !== cancel.status)
    yield { rule, run: run.id, text: `${ended}, and who cancelled it was told ${cancel.status}` };
  if (run.status === "cancelled" && mayBeCancelled) return;
  if (isKiller(asked.scenario)) {
    if (run.stop_reason !== "crash_loop") yield { rule, run: run.id, text: `${ended}, and it kills its workers` };
  } else if (run.stop_reason === "crash_loop") {
    const innocent = lostOwners(run).find((worker) => !wasHit(evidence, worker));
    if (innocent) yield { rule, run: run.id, text: `${ended}, and nothing was done to its worker ${innocent}` };
  } else if (run.status !== "completed") yield { rule, run: run.id, text: ended };
}

/** The last three owners. */
const lostOwners = ({ log }: RunRow): string[] =>
  eventsOf(log, "run.started")
    .slice(-3)
    .map(({ data }) => data.worker);

/** Between what is done to a worker and its being declared dead. */
const noticedWithinMs = 20_000;

/** Whether the worker was killed, stopped or cut off, by the plan or by a run that kills. */
function wasHit({ lost, lives, broken }: Evidence, worker: string): boolean {
  const row = lost.get(worker);
  if (!row?.dead_at) return false;
  const life = lives.findLast(({ pid, startedAt }) => pid === row.pid && startedAt <= row.dead_at!.getTime());
  if (!life) return false;
  const deadAt = row.dead_at.getTime();
  return (
    life.signal === "SIGKILL" ||
    broken.some(
      ({ target, from, to }) =>
        (target === null || life.name.startsWith(`${target}.`)) && from <= deadAt && to >= deadAt - noticedWithinMs,
    )
  );
}
