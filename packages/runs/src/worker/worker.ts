/** A worker: slots, what fills them (`intake.ts`), who carries a run (`executor.ts`), and its share of the rescue (`rescuer.ts`). */
import { toWireId } from "@drover/protocol";
import type { Signals, WakeQueue } from "@drover/queue";
import type { Blobs, Pool } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { type Liveness, startLiveness } from "../liveness/liveness.ts";
import { createLogWriter } from "../log/append.ts";
import { createBudgets } from "../money/budget.ts";
import { readHeld } from "../moves/claim.ts";
import { logsOf, type Observe, tellAll } from "../observe.ts";
import { ringingForOrder } from "../order/ring.ts";
import { type Retention, retentionConfig, retentionOf } from "../retention/config.ts";
import { type AgentSource, Executor, policiesOf } from "./executor.ts";
import { type Intake, startIntake } from "./intake.ts";
import { Ownership } from "./ownership.ts";
import { createReport } from "./report.ts";
import { type Rescuer, startRescuer } from "./rescuer.ts";

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
  /** How long a run may wait for a worker that knows its agent and model before it ends, ms (default for ever). */
  noWorkerMs?: number;
  workspaces: string;
  /** What is kept for how long (default: what `retentionConfig` says). */
  retention?: Retention;
  /** Hears what happens to runs, besides the log. */
  observe?: Observe;
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

/** Between two looks for runs that are this worker's and that it does not carry, when nothing hints at one, ms. */
const strayLookMs = 600_000;

/** How much of the grace aborted steps have to let go. */
const lastMs = 2000;

export async function startWorker(options: WorkerOptions): Promise<RunWorker> {
  const { pool, blobs, queue, logger, agents, slots, leaseMs, onSettled } = options;
  const signals = ringingForOrder(options.signals);
  const closing = new AbortController();
  const observe = tellAll(logsOf(logger), options.observe);
  const ownership = new Ownership(leaseMs);
  let intake: Intake | undefined;
  let rescuer: Rescuer | undefined;
  let stopping = false;

  const liveness: Liveness = await startLiveness({
    directUrl: options.directUrl,
    pool,
    leaseMs,
    watchdog: options.watchdog ?? false,
    slots,
    logger,
    known: agents.known,
    onDeaths: (deaths) => {
      for (const { id, cause } of deaths) observe({ type: "condemned", worker: id, cause });
      rescuer?.deaths();
    },
    onBeat: (lost) => {
      ownership.lose(lost);
      if (intake && !stopping) void lookForStrays(intake);
      intake?.resume();
      return ownership.held();
    },
    onCancel: (runIds) => ownership.cancel(runIds),
    onDead: () => ownership.stopAll("lost"),
    onHealth: (healthy) => {
      if (!healthy) intake?.pause();
    },
  });

  const report = createReport({ pool, queue, observe, onSettled, onDelayed: () => rescuer?.delayed() });
  const executor = new Executor({
    pool,
    blobs,
    signals,
    append: createLogWriter(pool, blobs, closing.signal),
    budgets: createBudgets(pool, closing.signal),
    agents,
    ownership,
    liveness,
    workspaces: options.workspaces,
    partialEveryMs: options.partialEveryMs,
    observe,
    signal: closing.signal,
  });

  let lookedAt = performance.now();
  /** After a claim that failed it may have taken place all the same, and be nobody's: then the look is at the next heartbeats. */
  async function lookForStrays({ claimFailedAt }: Intake): Promise<void> {
    const now = performance.now();
    const isSuspicious = ownership.suspicious || now - claimFailedAt < 3 * leaseMs;
    if (now - lookedAt < (isSuspicious ? leaseMs / 4 : strayLookMs)) return;
    lookedAt = now;
    const held = await readHeld(pool, liveness.workerId).catch(() => []);
    for (const stray of ownership.findStrays(held)) await giveBack(stray);
  }

  async function giveBack(stray: { runId: string; epoch: number }): Promise<void> {
    try {
      const moved = await executor.giveBack(stray);
      if (moved) await report(moved);
    } catch (error) {
      logger.warn(
        { err: error, task_id: toWireId("run", stray.runId) },
        "a run nobody here carries could not be given back yet",
      );
    }
  }

  rescuer = startRescuer({
    pool,
    directUrl: options.directUrl,
    blobs,
    queue,
    signals,
    logger,
    leaseMs,
    noWorkerMs: options.noWorkerMs,
    agents,
    retention: options.retention ?? retentionOf(retentionConfig.parse({})),
    workspaces: options.workspaces,
    startedTags: () => intake?.started ?? new Map(),
    observe,
    ...(onSettled && { onSettled }),
  });
  intake = startIntake({
    pool,
    queue,
    logger,
    liveness,
    ownership,
    executor,
    report,
    slots,
    agentHashes: agents.hashes ?? {},
    known: agents.known,
    observe,
    guarded: Object.keys(agents.hashes ?? {}).filter((name) => policiesOf(agents, agents.agent(name)).length > 0),
  });

  return {
    get workerId() {
      return liveness.workerId;
    },
    get healthy() {
      return liveness.healthy;
    },
    get active() {
      return ownership.size;
    },
    slots,
    setPressure: (high) => intake.setPressure(high),
    async stop(graceMs) {
      if (stopping) return;
      stopping = true;
      logger.info({ active: ownership.size, graceMs }, "stopping: handing runs over");
      intake.stop();
      ownership.drain();
      const within = (ms: number) =>
        Promise.race([intake.emptied(), new Promise<void>((resolve) => setTimeout(resolve, ms).unref())]);
      const letGoMs = Math.min(lastMs, graceMs / 2);
      await within(graceMs - letGoMs);
      ownership.stopAll("shutdown");
      await within(letGoMs);
      closing.abort();
      await Promise.all([rescuer.close(), intake.close()]);
      await liveness.close();
    },
  };
}
