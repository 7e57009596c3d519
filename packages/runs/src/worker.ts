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
import {
  type ClaimedRun,
  type ClaimOptions,
  claimNext,
  claimRuns,
  closeBatches,
  type Left,
  makeRollbacks,
  readClaims,
  suspectCrashes,
} from "./moves.ts";
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
  /** End the process when its event loop is stuck (default false: the process may be somebody else's too). */
  watchdog?: boolean;
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
  /** Under pressure it claims nothing; what it holds goes on. */
  setPressure(high: boolean): void;
  /**
   * Stops as a deploy does: claims nothing, hands over runs at their step boundaries, lets steps in flight end within the grace,
   * then aborts them; they run again elsewhere. Resolves when nothing is held any more.
   */
  stop(graceMs: number): Promise<void>;
}

const idle = { pauseMs: 1000, busyPauseMs: 50, overdueMs: 1000, most: 200 };
/** How much of the grace aborted steps have to let go. */
const lastMs = 2000;

export async function startWorker(options: WorkerOptions): Promise<RunWorker> {
  const { pool, queue, logger, slots } = options;
  const closing = new AbortController();
  const started = new Map<number, number>();
  let executor: Executor | undefined;
  let consumer: Consumer | undefined;
  let rescuer: Rescuer | undefined;
  let stopping = false;
  let pressed = false;
  const mayClaim = () => !stopping && !pressed && liveness.healthy;
  const direct = new Set<Promise<void>>();
  /** Ends the idle look's pause. */
  let nudge = new AbortController();
  let emptied: (() => void) | undefined;

  const liveness: Liveness = await startLiveness({
    directUrl: options.directUrl,
    pool,
    leaseMs: options.leaseMs,
    watchdog: options.watchdog ?? false,
    slots,
    logger,
    onDeaths: (deaths) => {
      for (const { cause } of deaths) options.observer?.condemned?.(cause);
      rescuer?.soon(0);
    },
    onBeat: (sentAt, owned) => {
      const strays = executor?.judge(sentAt, owned) ?? [];
      if (!stopping) for (const stray of strays) void giveBack(stray);
      // The database answers: whatever made a claim fail before is over.
      if (!stopping && !pressed) consumer?.resumeTaking();
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

  /** While a claim that may bring a run suspected of killing workers is under way, and while such a run is here, no other is taken. */
  let suspects = 0;
  async function claiming(claimThem: (how: ClaimOptions) => Promise<ClaimedRun[]>): Promise<ClaimedRun[]> {
    const takesSuspect = suspects === 0;
    if (takesSuspect) suspects++;
    let found = 0;
    try {
      const claimed = await claimThem({ takesSuspect, agentHashes: options.agents.hashes ?? {} });
      found = claimed.filter((run) => run.crashes >= suspectCrashes).length;
      return claimed;
    } finally {
      suspects += found - (takesSuspect ? 1 : 0);
    }
  }
  const unsuspected = () => {
    suspects--;
    nudge.abort();
  };

  const claim = createBatcher<string, ClaimedRun | null>({
    key: (id) => id,
    execute: async (ids) => pick(ids, await claiming((how) => claimRuns(pool, liveness.workerId, ids, how))),
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
      if (held && held.crashes >= suspectCrashes) suspects++;
      return held ?? null;
    }
  }

  async function handle(runId: string): Promise<HandleResult> {
    // Not ours to do now: the wake-up goes back, for another worker or for later.
    if (!mayClaim()) return "postgres_away";
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
    let suspected = run.crashes >= suspectCrashes;
    const proven = () => {
      if (suspected) unsuspected();
      suspected = false;
    };
    const left = await runs.execute(run, proven);
    proven();
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
      rescuer?.soon(0);
    }
  }

  const free = () => slots - runs.size;

  /** A slot that stayed free for a second takes what is due straight from Postgres. */
  async function lookIdle(): Promise<void> {
    let pauseMs = idle.pauseMs;
    let wasFree = false;
    /** Wake-ups cannot come: a free slot waits for none. */
    let away = false;
    while (!stopping) {
      nudge = new AbortController();
      await pause(pauseMs, AbortSignal.any([closing.signal, nudge.signal]));
      const nowFree = free() > 0 && mayClaim();
      if (!nowFree || !(wasFree || away)) {
        wasFree = nowFree;
        pauseMs = away ? idle.busyPauseMs : idle.pauseMs;
        continue;
      }
      try {
        // Redis away says nothing about a pause.
        const paused = await queue.isPaused().catch(() => null);
        away = paused === null;
        const found = paused
          ? []
          : await claiming((how) =>
              claimNext(pool, liveness.workerId, Math.min(free(), idle.most), away ? 0 : idle.overdueMs, how),
            );
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

  rescuer = startRescuer({
    pool,
    blobs: options.blobs,
    queue,
    signals: options.signals,
    logger,
    leaseMs: options.leaseMs,
    agents: options.agents,
    isFull: () => free() <= 0,
    startedTags: () => started,
    ...(options.observer && { observer: options.observer }),
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
    setPressure(high) {
      pressed = high;
      // The next heartbeat lets it take jobs again.
      if (high) void consumer!.pauseTaking();
    },
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
      const letGoMs = Math.min(lastMs, graceMs / 2);
      await within(graceMs - letGoMs);
      runs.stopAll("shutdown");
      await within(letGoMs);
      closing.abort();
      await Promise.all([rescuer!.close(), looking, consumer!.close()]);
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
