/**
 * How runs come into a worker's slots: one look at a time into Postgres, which claims what is next in order and due, and then carries and reports
 * it. A look is made when somebody rings, when a slot comes free while there was more to do than slots, and once a second whatever happens.
 */

import { setImmediate as nextTurn } from "node:timers/promises";
import { pause } from "@drover/harness/worker";
import { toWireId } from "@drover/protocol";
import { type Consumer, runsPerRing, type WakeQueue } from "@drover/queue";
import { faultOf, type Pool } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import type { Liveness } from "../liveness/liveness.ts";
import { type ClaimedRun, claimNext, type Known, readClaims, suspectCrashes } from "../moves/claim.ts";
import type { Observe } from "../observe.ts";
import type { Executor } from "./executor.ts";
import type { Ownership } from "./ownership.ts";
import type { Report } from "./report.ts";

interface IntakeOptions {
  pool: Pool;
  queue: WakeQueue;
  logger: Logger;
  liveness: Pick<Liveness, "workerId" | "healthy">;
  ownership: Ownership;
  executor: Executor;
  report: Report;
  slots: number;
  agentHashes: Record<string, string>;
  known: Known | undefined;
  observe: Observe;
  /** See `ClaimOptions`. */
  guarded: string[];
}

export interface Intake {
  /** The highest tag started per class. */
  readonly started: ReadonlyMap<number, number>;
  /** When a claim last ended without an answer (`performance.now`, -infinity: never): it may have taken place. */
  readonly claimFailedAt: number;
  /** Under pressure nothing is claimed. */
  setPressure(high: boolean): void;
  /** The database answers: whatever made a claim fail before is over. */
  resume(): void;
  /** Rings go to others meanwhile. */
  pause(): void;
  /** Claims nothing from now on. */
  stop(): void;
  /** Resolves when nothing is held any more. Call it after `stop`. */
  emptied(): Promise<void>;
  close(): Promise<void>;
}

/** Between two looks that nobody asked for, ms; `away`: while nobody can ring. */
const idleMs = { usual: 1000, away: 50 };
/** For so long an answer about the queue's pause is good enough, ms. */
const pauseKnownMs = 200;

export function startIntake(options: IntakeOptions): Intake {
  const { pool, queue, logger, liveness, ownership, executor, report, observe, slots, agentHashes, known, guarded } =
    options;
  const closing = new AbortController();
  const started = new Map<number, number>();
  const carried = new Set<Promise<void>>();
  const empty = Promise.withResolvers<void>();
  let claimFailedAt = Number.NEGATIVE_INFINITY;
  let stopping = false;
  let pressed = false;
  /** A look is asked for. */
  let wanted = false;
  let looking: Promise<void> | undefined;
  /** The last look ended for want of slots: a slot that comes free looks by itself, and rings are for others. */
  let full = false;
  /** Nobody can ring. */
  let away = false;
  let pauseAskedAt = Number.NEGATIVE_INFINITY;
  const mayClaim = () => !stopping && !pressed && liveness.healthy;
  const free = () => slots - carried.size;

  /**
   * Runs suspected of killing workers: held here, and how many may be taken next. A group has to clear itself before there is another, twice as
   * large, until none are left. Should a group kill this process, the next one begins at 1.
   */
  const suspects = { held: 0, group: 1 };
  const isSuspect = (run: ClaimedRun) => run.crashes >= suspectCrashes;
  const unsuspected = () => {
    if (--suspects.held > 0) return;
    suspects.group *= 2;
    look();
  };

  function hear(): boolean {
    if (!mayClaim() || free() <= 0) return false;
    // Nobody hears a ring while the queue is paused.
    pauseAskedAt = performance.now();
    look();
    return true;
  }

  function look(): void {
    wanted = true;
    looking ??= lookAll();
  }

  async function lookAll(): Promise<void> {
    try {
      // Slots that come free in one turn are filled by one claim.
      for (await nextTurn(); wanted && mayClaim() && free() > 0; await nextTurn()) {
        wanted = false;
        if ((await isPaused()) || !mayClaim()) break;
        await claim();
      }
    } catch (error) {
      claimFailedAt = performance.now();
      consumer.pauseTaking();
      logger.warn({ err: error }, "runs cannot be claimed for now");
      if (faultOf(error) === "unavailable") await takeBack().catch(() => {});
    } finally {
      // In the same turn as the last check: whoever asks from now on begins a new look.
      looking = undefined;
    }
  }

  async function claim(): Promise<void> {
    const most = Math.min(free(), Math.max(runsPerRing, suspects.group));
    const group = suspects.held === 0 ? Math.min(suspects.group, most) : 0;
    const { runs, seen, aside } = await claimNext(pool, liveness.workerId, {
      most,
      suspects: group,
      agentHashes,
      guarded,
      known,
    });
    // No others wait: those that come next are not known to be innocent.
    if (runs.filter(isSuspect).length < group) suspects.group = 1;
    for (const run of runs) carry(run);
    if (aside.length > 0) observe({ type: "set_aside", agents: aside });
    const more = seen === most;
    const wasFull = full;
    full = free() <= 0;
    if (more && !full && runs.length < seen) wanted = true;
    // Whoever holds less may be quicker.
    else if (more && !(full && wasFull)) void queue.wake(1).catch(look);
    if (full) consumer.pauseTaking();
    else consumer.resumeTaking();
  }

  /** A claim whose answer was lost may have taken place: what is ours and not carried. Should it take place later, it is found as a stray. */
  async function takeBack(): Promise<void> {
    for (const run of await readClaims(pool, liveness.workerId)) if (!ownership.has(run.id)) carry(run);
  }

  /** Not asked when it was known a moment ago. Redis away says nothing about a pause. */
  async function isPaused(): Promise<boolean> {
    if (performance.now() - pauseAskedAt < pauseKnownMs) return false;
    const paused = await queue.isPaused().catch(() => null);
    away = paused === null;
    if (paused === false) pauseAskedAt = performance.now();
    return paused ?? false;
  }

  function carry(run: ClaimedRun): void {
    if (run.tag > (started.get(run.priority) ?? 0)) started.set(run.priority, run.tag);
    let suspected = isSuspect(run);
    if (suspected) suspects.held++;
    const proven = () => {
      if (suspected) unsuspected();
      suspected = false;
    };
    const work = executor
      .execute(run, proven)
      .then(async (moved) => {
        proven();
        if (moved) await report(moved);
      })
      .catch((error) => logger.error({ err: error, task_id: toWireId("run", run.id) }, "carrying a run threw"))
      .finally(() => {
        carried.delete(work);
        if (full) look();
        if (stopping && ownership.size === 0) empty.resolve();
      });
    carried.add(work);
  }

  async function lookIdle(): Promise<void> {
    while (!stopping) {
      await pause((away ? idleMs.away : idleMs.usual) * (0.8 + Math.random() * 0.4), closing.signal);
      if (mayClaim() && free() > 0) look();
      await looking;
    }
  }

  const consumer: Consumer = queue.consume({ hear });
  const idle = lookIdle();

  return {
    started,
    get claimFailedAt() {
      return claimFailedAt;
    },
    setPressure(high) {
      pressed = high;
      // The next heartbeat lets it take rings again.
      if (high) consumer.pauseTaking();
    },
    resume() {
      if (stopping || pressed || free() <= 0) return;
      if (full) look();
      else consumer.resumeTaking();
    },
    pause: () => consumer.pauseTaking(),
    stop() {
      stopping = true;
      consumer.pauseTaking();
    },
    async emptied() {
      if (ownership.size > 0) await empty.promise;
    },
    async close() {
      closing.abort();
      await Promise.all([idle, looking, consumer.close()]);
      // What the last look claimed is handed over as well.
      await Promise.all(carried);
    },
  };
}
