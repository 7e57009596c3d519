/**
 * One torture run: sets the stage, lets clients work while things break, mends everything, waits until nothing moves any more, stops all processes
 * in order, and judges.
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { checkLogs } from "./check-logs.ts";
import { checkDeliveries, checkSubmissions } from "./check-promises.ts";
import { checkSteps } from "./check-steps.ts";
import { checkSystem } from "./check-system.ts";
import { Clients, newBooks } from "./clients.ts";
import { type Evidence, readLost, readRuns, type Violation } from "./evidence.ts";
import { type Broken, breakThings } from "./faults.ts";
import { type Figures, figuresOf } from "./figures.ts";
import { openLedger } from "./ledger.ts";
import { makePlan, type PlanOptions } from "./plan.ts";
import { openReceivers } from "./receivers.ts";
import { type Stage, setStage } from "./stage.ts";
import type { Life } from "./supervised.ts";

export interface TortureOptions extends PlanOptions {
  /** How long nothing at all may change, once nothing is broken any more, before everything is at rest, ms; ten times as long in all. */
  patienceMs: number;
  /** Keep the folder of the processes' output also when all is well. */
  keep?: boolean;
  /** Ends the run early, in order. */
  signal: AbortSignal;
  /** How it stands, once a second. */
  onProgress?(line: string): void;
}

export interface Verdict {
  figures: Figures;
  violations: Violation[];
  /** Output of the processes and logs of the runs concerned; null: nothing is kept. */
  folder: string | null;
}

/** Null when it was ended early. */
export async function torture(options: TortureOptions): Promise<Verdict | null> {
  const { signal } = options;
  const plan = makePlan(options);
  const lives: Life[] = [];
  const broken: Broken[] = [];
  const books = newBooks();
  const ledger = await openLedger();
  const receivers = await openReceivers();
  let stage: Stage | undefined;
  let keepFolder = options.keep ?? false;
  try {
    stage = await setStage(options, ledger, (life) => {
      if (!lives.includes(life)) lives.push(life);
    });
    const clients = new Clients({ stage, receivers, ledger, books, signal });
    await clients.prepare();
    const startedAt = performance.now();
    const { pool } = stage;
    const done = new AbortController();
    const told = tellProgress(options, () => {
      const seconds = Math.round((performance.now() - startedAt) / 1000);
      return `${seconds} s: ${books.promised.length} of ${plan.submissions.length} submitted, ${broken.length} of ${plan.faults.length} faults, ${lives.length} processes so far, ${ledger.modelRequests.length} model calls, ${receivers.arrivals.steady.length} webhooks`;
    });
    const deciding = clients.decide(done.signal);
    try {
      await Promise.all([clients.submit(plan), breakThings(stage, plan.faults, broken, signal)]);
      if (signal.aborted) return null;
      receivers.behave();
      const drainAt = performance.now();
      const left = await drain(stage, options, () => ledger.modelRequests.length + ledger.toolRequests.length);
      const drainMs = performance.now() - drainAt;
      done.abort();
      await deciding;
      if (signal.aborted) return null;
      const ended = await stage.stopProcesses();

      const evidence: Evidence = {
        runs: await readRuns(pool),
        lost: await readLost(pool),
        asked: new Map(
          books.promised.flatMap((promised) =>
            promised.submission.items.map((scenario) => [scenario.label, { scenario, promised }] as const),
          ),
        ),
        books,
        ledger,
        receivers,
        lives,
        broken,
      };
      const steps = checkSteps(evidence);
      const deliveries = await checkDeliveries(pool, evidence);
      const violations = [...checkSubmissions(evidence), ...checkLogs(evidence), ...steps.violations];
      // What is still under way owes nothing yet.
      if (left === null) violations.push(...deliveries.violations, ...(await checkSystem(pool, evidence, ended)));
      else violations.push({ rule: "everything comes to rest", text: `nothing moves any more, and there are ${left}` });
      if (violations.length > 0) {
        keepFolder = true;
        await keepLogs(stage.folder, evidence, violations);
      }
      const figures = figuresOf(evidence, steps, deliveries, drainMs);
      return { figures, violations, folder: keepFolder ? stage.folder : null };
    } finally {
      done.abort();
      clearInterval(told);
      await deciding;
    }
  } finally {
    await stage?.close({ keepFolder });
    await Promise.all([ledger.close(), receivers.close()]);
  }
}

/** Deliveries are tried again after minutes: brought forward so often, once their receivers are well. */
const bringForwardMs = 8000;

/** Waits until nothing is left to do and everybody is there. Gives up when nothing changes any more: what is left then, in words. */
async function drain(stage: Stage, { patienceMs, workers, signal }: TortureOptions, moves: () => number) {
  const { pool } = stage;
  let seen = "";
  const startedAt = performance.now();
  let changedAt = startedAt;
  let forwardAt = startedAt + 2000;
  for (;;) {
    // What is busy may not answer in time: then it is not at rest.
    const left = await readOpen(pool).catch(() => null);
    const unrest = left
      ? Object.entries(left).filter(([what, n]) => n !== (what === "live workers" ? workers : 0))
      : null;
    if (unrest?.length === 0) return null;
    const now = performance.now();
    const state = JSON.stringify([left, moves()]);
    if (state !== seen) changedAt = now;
    seen = state;
    if (signal.aborted || now - changedAt > patienceMs || now - startedAt > 10 * patienceMs)
      return unrest?.map(([what, n]) => `${n} ${what}`).join(", ") ?? "no answers";
    if (now >= forwardAt) {
      await pool.query("UPDATE deliveries SET next_at = now() WHERE status = 'pending'").catch(() => {});
      forwardAt = now + bringForwardMs;
    }
    await delay(250, undefined, { signal }).catch(() => {});
  }
}

async function readOpen(pool: Stage["pool"]) {
  const { rows } = await pool.query<
    Record<"runs" | "batches" | "messages" | "deliveries" | "entries" | "reservations" | "workers", number>
  >(
    `SELECT (SELECT count(*) FROM runs WHERE finished_at IS NULL) AS runs,
            (SELECT count(*) FROM batches WHERE status = 'running') AS batches,
            (SELECT count(*) FROM messages WHERE NOT fanned_out) AS messages,
            (SELECT count(*) FROM deliveries WHERE status = 'pending') AS deliveries,
            (SELECT count(*) FROM audit_unchained) + (SELECT count(*) FROM messages_unnumbered) AS entries,
            (SELECT count(*) FROM budget_reservations) AS reservations,
            (SELECT count(*) FROM workers WHERE dead_at IS NULL) AS workers`,
  );
  const { runs, batches, messages, deliveries, entries, reservations, workers } = rows[0]!;
  return {
    "open runs": runs,
    "open batches": batches,
    "messages not sent on": messages,
    "pending deliveries": deliveries,
    "entries without a number": entries,
    // Of dead owners: the rescuer gives them back.
    "reservations of money": reservations,
    "live workers": workers,
  };
}

export const logPath = (folder: string, run: string): string => join(folder, `${run}.json`);

async function keepLogs(folder: string, { runs, broken, lives }: Evidence, violations: Violation[]): Promise<void> {
  const concerned = new Set(violations.flatMap(({ run }) => run ?? []));
  const write = (name: string, content: unknown) => writeFile(name, `${JSON.stringify(content, null, 1)}\n`);
  await write(join(folder, "faults.json"), { broken, lives });
  for (const run of runs) if (concerned.has(run.id)) await write(logPath(folder, run.id), run);
}

function tellProgress({ onProgress }: TortureOptions, line: () => string): NodeJS.Timeout {
  return setInterval(() => onProgress?.(line()), 1000);
}
