/** What a torture run measured, and how it is told: figures, violations, and the seed that repeats it. */

import type { Deliveries } from "./check-promises.ts";
import type { Steps } from "./check-steps.ts";
import { atMs, type Evidence, eventsOf, type Violation } from "./evidence.ts";
import { isKiller, isUnsafe } from "./scenario.ts";

interface Ownerless {
  /** Runs whose worker was killed, and the longest time from its death to the next owner's claim, ms. */
  killed: { runs: number; medianMs: number; worstMs: number };
  /** Runs whose worker fell silent: from its last heartbeat. */
  silent: { runs: number; medianMs: number; worstMs: number };
}

export interface Figures {
  runs: Record<string, number>;
  accepted: number;
  refused: number;
  faults: Record<string, number>;
  takeovers: Record<string, number>;
  handedOver: number;
  crashLoops: { deserved: number; unlucky: number };
  ownerless: Ownerless;
  modelRequests: number;
  toolRequests: number;
  steps: Pick<Steps, "repeated" | "late">;
  unsafe: { effects: number; verified: number; asked: number };
  deliveries: Pick<Deliveries, "accepted" | "refused" | "duplicates">;
  drainMs: number;
}

export function figuresOf(evidence: Evidence, steps: Steps, deliveries: Deliveries, drainMs: number): Figures {
  const { runs, books, broken, ledger } = evidence;
  const rescues = runs.flatMap(({ log }) => eventsOf(log, "run.rescued"));
  const loops = runs.filter(({ stop_reason }) => stop_reason === "crash_loop");
  const deserved = loops.filter(({ label }) => {
    const asked = evidence.asked.get(label);
    return asked !== undefined && isKiller(asked.scenario);
  });
  return {
    runs: countBy(runs, ({ status }) => status),
    accepted: books.promised.filter(({ accepted }) => accepted.size > 0).length,
    refused: books.promised.reduce((sum, { refused }) => sum + refused, 0),
    faults: countBy(broken, ({ kind }) => kind),
    takeovers: countBy(rescues, ({ data }) => data.cause ?? "left behind"),
    handedOver: runs.reduce((sum, { log }) => sum + eventsOf(log, "run.handed_over").length, 0),
    crashLoops: { deserved: deserved.length, unlucky: loops.length - deserved.length },
    ownerless: ownerlessOf(evidence),
    modelRequests: ledger.modelRequests.length,
    toolRequests: ledger.toolRequests.length,
    steps: { repeated: steps.repeated, late: steps.late },
    unsafe: {
      effects: ledger.toolRequests.filter(({ tool }) => isUnsafe(tool)).length,
      verified: runs.reduce((sum, { log }) => sum + eventsOf(log, "tool.verified").length, 0),
      asked: runs.reduce(
        (sum, { log }) =>
          sum + eventsOf(log, "approval.requested").filter(({ data }) => data.subject === "uncertain").length,
        0,
      ),
    },
    deliveries: { accepted: deliveries.accepted, refused: deliveries.refused, duplicates: deliveries.duplicates },
    drainMs,
  };
}

function ownerlessOf({ runs, lost, lives }: Evidence): Ownerless {
  const times = { killed: [] as number[], silent: [] as number[] };
  for (const { log } of runs)
    for (const rescued of eventsOf(log, "run.rescued")) {
      const next = log.find(({ type, seq }) => type === "run.started" && seq > rescued.seq);
      const row = lost.get(rescued.data.worker ?? "");
      if (!next || !row?.dead_at) continue;
      const life = lives.find(({ pid, endedAt }) => pid === row.pid && endedAt !== null && endedAt <= atMs(rescued));
      if (life?.signal === "SIGKILL") times.killed.push(atMs(next) - life.endedAt!);
      else if (row.cause === "silent") times.silent.push(atMs(next) - row.heartbeat_at.getTime());
    }
  return { killed: spread(times.killed), silent: spread(times.silent) };
}

function spread(values: number[]): Ownerless["killed"] {
  const sorted = values.toSorted((a, b) => a - b);
  return { runs: sorted.length, medianMs: sorted[sorted.length >> 1] ?? 0, worstMs: sorted.at(-1) ?? 0 };
}

function countBy<T>(items: readonly T[], key: (item: T) => string): Record<string, number> {
  const groups = Map.groupBy(items, key);
  return Object.fromEntries([...groups].map(([name, found]) => [name, found.length]).sort());
}

const listed = (counts: Record<string, number>): string =>
  Object.entries(counts)
    .map(([name, n]) => `${n} ${name}`)
    .join(", ") || "none";
const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;
const waits = ({ runs, medianMs, worstMs }: Ownerless["killed"]): string =>
  runs === 0 ? "none" : `${runs} runs, median ${seconds(medianMs)}, worst ${seconds(worstMs)}`;

export function* figureLines(figures: Figures): Generator<string> {
  const { crashLoops, ownerless, steps, unsafe, deliveries } = figures;
  yield `submissions     ${figures.accepted} accepted, after ${figures.refused} refusals and lost answers`;
  yield `runs            ${listed(figures.runs)}`;
  yield `faults          ${listed(figures.faults)}`;
  yield `takeovers       ${listed(figures.takeovers)}; ${figures.handedOver} handed over`;
  yield `without owner   after a kill: ${waits(ownerless.killed)}; after silence: ${waits(ownerless.silent)}`;
  yield `crash loops     ${crashLoops.deserved} of runs that kill, ${crashLoops.unlucky} of runs whose owners were killed three times in a row`;
  yield `model calls     ${figures.modelRequests}; tool calls ${figures.toolRequests}; ${steps.repeated} cut by a fault and made again, ${steps.late} sent too late by a process that had been stopped`;
  yield `unsafe effects  ${unsafe.effects} calls took effect; ${unsafe.verified} uncertain ones verified, ${unsafe.asked} asked about`;
  yield `deliveries      ${deliveries.accepted} accepted (${deliveries.duplicates} of them duplicates), ${deliveries.refused} refused`;
  yield `drained in      ${seconds(figures.drainMs)}`;
}

export function* violationLines(violations: Violation[], pathOf: (run: string) => string): Generator<string> {
  for (const [rule, found] of Map.groupBy(violations, (violation) => violation.rule)) {
    yield `VIOLATED: ${rule} (${found.length})`;
    for (const { run, text } of found.slice(0, 20))
      yield `  ${run ? `${run}: ` : ""}${text}${run ? ` (${pathOf(run)})` : ""}`;
    if (found.length > 20) yield `  and ${found.length - 20} more`;
  }
}
