/**
 * A worker: slots, and the three ways a run comes into one: a wake-up from BullMQ, an idle slot's look into Postgres, and what the
 * rescuer set moving. All three end in the same guarded claim.
 */
import { pause } from "@drover/harness";
import type { Consumer, HandleResult, Signals, WakeQueue } from "@drover/queue";
import { type Blobs, createBatcher, faultOf, type Pool } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { createBudgets } from "./budget.ts";
import { type AgentSource, Executor, type RunObserver } from "./executor.ts";
import { type Liveness, startLiveness } from "./liveness.ts";
import { createLogWriter } from "./log.ts";
import { type ClaimedRun, claimNext, claimRuns, closeBatches, type Left, makeRollbacks, readClaims } from "./moves.ts";
import { type Rescuer, startRescuer } from "./rescuer.ts";
import { isFinal } from "./state.ts";
import { wakeRuns } from "./wake.ts";

export interface WorkerOptions {
  pool: Pool;
  directUrl: string;
  blobs: Blobs;
  queue: WakeQueue;
  signals: Signals;
  logger: Logger;
  agents: AgentSource;
  slots: number;
  leaseMs: number;
  partialEveryMs: number;
  workspaces: string;
  observer?: RunObserver;
  /** Messages are owed: told after every settling commit. */
  onSettled?(): void;
}

export interface RunWorker {
  readonly workerId: string;
  /** False while the liveness connection is down: nothing is claimed. */
  readonly healthy: boolean;
  /** Runs held right now. */
  readonly active: number;
  readonly slots: number;
  /**
   * Stops as a deploy does: claims nothing, hands over runs at their step boundaries, lets steps in flight end within the grace,
   * then aborts them; they run again elsewhere. Resolves when nothing is held any more.
   */
  stop(graceMs: number): Promise<void>;
}

const idle = { pauseMs: 1000, busyPauseMs: 50, overdueMs: 1000, most: 200 };
/** How long aborted steps may take to let go after the grace. */
const lastMs = 2000;

export async function startWorker(options: WorkerOptions): Promise<RunWorker> {
  const { pool, queue, logger, slots } = options;
  const closing = new AbortController();
  const started = new Map<number, number>();
  let executor: Executor | undefined;
  let consumer: Consumer | undefined;
  let stopping = false;
  const direct = new Set<Promise<void>>();
  let emptied: (() => void) | undefined;

  const liveness: Liveness = await startLiveness({
    directUrl: options.directUrl,
    leaseMs: options.leaseMs,
    slots,
    logger,
    onBeat: (sentAt, owned) => {
      const strays = executor?.judge(sentAt, owned) ?? [];
      if (!stopping) for (const stray of strays) void giveBack(stray);
      // The database answers: whatever made a claim fail before is over.
      if (!stopping) consumer?.resumeTaking();
    },
    onCancel: (runIds) => executor?.cancel(runIds),
    onDead: () => executor?.stopAll("lost"),
    onHealth: (healthy) => {
      if (!healthy && !stopping) void consumer?.pauseTaking();
    },
  });

  const runs = new Executor({
    pool,
    blobs: options.blobs,
    signals: options.signals,
    logger,
    append: createLogWriter(pool, options.blobs, closing.signal),
    budgets: createBudgets(pool, closing.signal),
    agents: options.agents,
    liveness,
    workspaces: options.workspaces,
    partialEveryMs: options.partialEveryMs,
    strayAfterMs: options.leaseMs,
    signal: closing.signal,
    ...(options.observer && { observer: options.observer }),
  });
  executor = runs;

  const claim = createBatcher<string, ClaimedRun | null>({
    key: (id) => id,
    execute: async (ids) => pick(ids, await claimRuns(pool, liveness.workerId, ids)),
  });
  const closeBatch = createBatcher<string, boolean>({
    key: (id) => id,
    execute: async (ids) => {
      const closed = await closeBatches(pool, [...new Set(ids)]);
      return ids.map((id) => closed.includes(id));
    },
  });

  /** A claim whose answer was lost may have taken place: look before saying it did not. */
  async function claimOne(runId: string): Promise<ClaimedRun | null> {
    try {
      return await claim(runId);
    } catch (error) {
      if (faultOf(error) !== "unavailable") throw error;
      const [held] = await readClaims(pool, liveness.workerId, [runId]);
      return held ?? null;
    }
  }

  async function handle(runId: string): Promise<HandleResult> {
    // Not ours to do now: the wake-up goes back, for another worker or for later.
    if (stopping || !liveness.healthy) return "postgres_away";
    let run: ClaimedRun | null;
    try {
      run = await claimOne(runId);
    } catch (error) {
      if (faultOf(error) === "unavailable") return "postgres_away";
      throw error;
    }
    if (!run) return "done";
    const left = await carry(run);
    return left?.status === "failed" ? "failed" : "done";
  }

  async function carry(run: ClaimedRun): Promise<Left | null> {
    if (run.tag > (started.get(run.priority) ?? 0)) started.set(run.priority, run.tag);
    const left = await runs.execute(run);
    try {
      if (left) await report(left);
    } catch (error) {
      logger.warn({ err: error, run: run.id }, "after a run left: the rescuer will see to it");
    }
    if (runs.size === 0) emptied?.();
    return left;
  }

  async function giveBack(stray: { runId: string; epoch: number }): Promise<void> {
    try {
      const left = await runs.giveBack(stray);
      if (!left) return;
      logger.warn({ run: stray.runId, epoch: stray.epoch }, "a run nobody here carried was given back");
      await report(left);
    } catch (error) {
      logger.warn({ err: error, run: stray.runId }, "a run nobody here carries could not be given back yet");
    }
  }

  async function report(left: Left): Promise<void> {
    if (isFinal(left.status)) {
      if (left.batchId) await closeBatch(left.batchId);
      if (left.rollbackOwed) await wakeRuns(pool, queue, await makeRollbacks(pool, [left.runId]));
      options.onSettled?.();
    } else if (left.woken) {
      await wakeRuns(pool, queue, [left]);
    } else if (left.status === "waiting") {
      options.onSettled?.();
    } else {
      rescuer.soon(0);
    }
  }

  const free = () => slots - runs.size;

  /** A slot that stayed free for a second takes what is due straight from Postgres. */
  async function lookIdle(): Promise<void> {
    let pauseMs = idle.pauseMs;
    let wasFree = false;
    while (!stopping) {
      await pause(pauseMs, closing.signal);
      const nowFree = free() > 0 && liveness.healthy;
      if (stopping || !nowFree || !wasFree) {
        wasFree = nowFree;
        pauseMs = idle.pauseMs;
        continue;
      }
      try {
        // Redis away says nothing about a pause.
        const paused = await queue.isPaused().catch(() => false);
        const found = paused
          ? []
          : await claimNext(pool, liveness.workerId, Math.min(free(), idle.most), idle.overdueMs);
        if (found.length > 0) logger.debug({ runs: found.length }, "claimed straight from Postgres");
        for (const run of found) carryDirectly(run);
        pauseMs = found.length > 0 ? idle.busyPauseMs : idle.pauseMs;
      } catch (error) {
        logger.warn({ err: error }, "idle claim failed");
        pauseMs = idle.pauseMs;
      }
    }
  }

  function carryDirectly(run: ClaimedRun): void {
    const share = () => consumer?.setConcurrency(Math.max(1, slots - direct.size));
    const carried = carry(run).then(() => {
      direct.delete(carried);
      share();
    });
    direct.add(carried);
    share();
  }

  const rescuer: Rescuer = startRescuer({
    pool,
    blobs: options.blobs,
    queue,
    signals: options.signals,
    logger,
    leaseMs: options.leaseMs,
    agents: options.agents,
    isFull: () => free() <= 0,
    startedTags: () => started,
    ...(options.observer?.ended && { onEnded: options.observer.ended }),
    ...(options.onSettled && { onSettled: options.onSettled }),
  });
  consumer = queue.consume({ concurrency: slots, handle });
  const looking = lookIdle();

  return {
    get workerId() {
      return liveness.workerId;
    },
    get healthy() {
      return liveness.healthy;
    },
    get active() {
      return runs.size;
    },
    slots,
    async stop(graceMs) {
      if (stopping) return;
      stopping = true;
      logger.info({ active: runs.size, graceMs }, "stopping: handing runs over");
      await consumer!.pauseTaking();
      runs.drain();
      const empty = new Promise<void>((resolve) => {
        emptied = resolve;
      });
      const within = (ms: number) =>
        runs.size === 0
          ? Promise.resolve()
          : Promise.race([empty, new Promise<void>((resolve) => setTimeout(resolve, ms).unref())]);
      await within(graceMs);
      runs.stopAll("shutdown");
      await within(lastMs);
      closing.abort();
      await Promise.all([rescuer.close(), looking, consumer!.close()]);
      // What the last look claimed is handed over as well.
      await Promise.all(direct);
      await liveness.close();
    },
  };
}

function pick(ids: string[], claimed: ClaimedRun[]): (ClaimedRun | null)[] {
  const byId = new Map(claimed.map((run) => [run.id, run]));
  // Two wake-ups of one run in one statement: one of them gets it.
  return ids.map((id) => {
    const run = byId.get(id) ?? null;
    byId.delete(id);
    return run;
  });
}
