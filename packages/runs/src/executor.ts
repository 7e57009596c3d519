/**
 * One ownership of a run, as a pipeline: resume -> turns -> settle -> report. The claim came before (`worker.ts`). Everything
 * it writes is fenced by its epoch; when the fence says no, it aborts what is in flight, writes nothing, and is silent.
 */
import { join } from "node:path";
import {
  type AgentDefinition,
  backoffMs,
  early,
  type FinalData,
  fold,
  type LogEvent,
  type LoopOutcome,
  latestText,
  type NewEvent,
  RunControl,
  type RunFailure,
  type RunState,
  runLoop,
  type StopCause,
  type ToolRegistry,
} from "@drover/harness";
import { uuidv7 } from "@drover/protocol";
import type { Signals } from "@drover/queue";
import { type Blobs, createBatcher, type Pool } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import type { Liveness } from "./liveness.ts";
import { encodeData, LostOwnershipError, type RunLogWriter, readLogs } from "./log.ts";
import { type ClaimedRun, type Leaving, type Left, leaveRuns, readLeft } from "./moves.ts";

/** The agents and models of this process. */
export interface AgentSource {
  agent(name: string): AgentDefinition | undefined;
  model(id: string | undefined): Parameters<typeof runLoop>[0]["model"];
  tools: ToolRegistry;
}

/** What happens, for metrics; must not throw. */
export interface RunObserver {
  claimed?(run: ClaimedRun): void;
  logged?(run: ClaimedRun, event: NewEvent): void;
  /** `left` is null when the ownership was lost and the outcome dropped. */
  left?(run: ClaimedRun, left: Left | null, ownedMs: number): void;
  /** A run that the rescuer ended. */
  ended?(left: Left): void;
}

export interface ExecutorOptions {
  pool: Pool;
  blobs: Blobs;
  signals: Signals;
  logger: Logger;
  append: RunLogWriter;
  agents: AgentSource;
  liveness: Pick<Liveness, "workerId" | "assertFresh">;
  /** Folder of the runs' workspaces. */
  workspaces: string;
  partialEveryMs: number;
  observer?: RunObserver;
  /** Ends the waiting for a database that is away. */
  signal: AbortSignal;
}

interface Owned {
  run: ClaimedRun;
  control: RunControl;
  /** When the claim was known here; a heartbeat sent before it cannot judge it. */
  since: bigint;
}

export class Executor {
  readonly #options: ExecutorOptions;
  readonly #owned = new Map<string, Owned>();
  readonly #load: (run: ClaimedRun) => Promise<LogEvent[]>;
  readonly #leave: (op: Leaving) => Promise<Left | null>;
  #draining = false;

  constructor(options: ExecutorOptions) {
    this.#options = options;
    const { pool, blobs, signal } = options;
    this.#load = createBatcher<ClaimedRun, LogEvent[]>({
      key: (run) => run.id,
      execute: async (runs) => {
        const logs = new Map<string, LogEvent[]>();
        for (const [tenant, own] of Map.groupBy(runs, (run) => run.tenant))
          for (const [id, log] of await readLogs(pool, blobs, { tenant, runIds: own.map((run) => run.id) }))
            logs.set(id, log);
        return runs.map((run) => logs.get(run.id) ?? []);
      },
      recover: async (runs) => runs.map(() => undefined),
      lanes: 2,
      signal,
    });
    this.#leave = createBatcher<Leaving, Left | null>({
      key: (op) => op.runId,
      execute: async (ops) => inOrder(ops, await leaveRuns(pool, ops)),
      recover: async (ops) => inOrder(ops, await readLeft(pool, ops)).map((left) => left ?? undefined),
      signal,
    });
  }

  /** Runs held right now. */
  get size(): number {
    return this.#owned.size;
  }

  /** Carries a claimed run as far as it gets. Resolves with what became of it; null when the ownership was lost. */
  async execute(run: ClaimedRun): Promise<Left | null> {
    const control = new RunControl({
      softMs: run.softInMs,
      hardMs: run.hardInMs,
      ...(run.deadlineInMs !== null && { deadlineMs: run.deadlineInMs }),
    });
    this.#owned.set(run.id, { run, control, since: process.hrtime.bigint() });
    if (this.#draining) control.drain();
    const startedAt = performance.now();
    const { observer, logger } = this.#options;
    observer?.claimed?.(run);
    let left: Left | null = null;
    try {
      left = await this.#carry(run, control);
    } catch (error) {
      if (!(error instanceof LostOwnershipError))
        logger.error({ err: error, run: run.id }, "a run could not be carried on");
      control.stop("lost");
    } finally {
      control.close();
      this.#owned.delete(run.id);
    }
    if (!left) logger.info({ run: run.id, epoch: run.epoch }, "ownership lost, outcome dropped");
    observer?.left?.(run, left, performance.now() - startedAt);
    return left;
  }

  /** Hands every run over at its next step boundary. */
  drain(): void {
    this.#draining = true;
    for (const { control } of this.#owned.values()) control.drain();
  }

  stopAll(cause: StopCause): void {
    for (const { control } of this.#owned.values()) control.stop(cause);
  }

  cancel(runIds: string[]): void {
    for (const id of runIds) this.#owned.get(id)?.control.stop("cancelled");
  }

  /** A heartbeat's answer: whatever the database does not say is ours, and was ours before it was asked, is lost. */
  judge(sentAt: bigint, owned: Set<string>): void {
    for (const { run, control, since } of this.#owned.values())
      if (since < sentAt && !owned.has(`${run.id} ${run.epoch}`)) control.stop("lost");
  }

  async #carry(run: ClaimedRun, control: RunControl): Promise<Left | null> {
    const state = fold(await this.#load(run));
    const stepsBefore = state.steps;
    let outcome: LoopOutcome;
    try {
      outcome = await this.#turns(run, state, control);
    } catch (error) {
      if (error instanceof LostOwnershipError) throw error;
      // A bug, or data that even its own statement refuses: the run ends here rather than at its hard limit.
      this.#options.logger.error({ err: error, run: run.id }, "a run ended by an internal error");
      outcome = early(
        state,
        "internal_error",
        "An internal error ended the run; the service's logs have it under the run's id.",
      );
    }
    const attempt = state.steps > stepsBefore ? 1 : run.attempt;
    return await this.#settle(run, state, outcome, attempt, control);
  }

  async #turns(run: ClaimedRun, state: RunState, control: RunControl): Promise<LoopOutcome> {
    const { agents, append, signals, liveness, observer, workspaces, partialEveryMs } = this.#options;
    const agent = agents.agent(run.agent);
    if (!agent)
      return early(
        state,
        "invalid_input",
        `This worker has no agent "${run.agent}"; is its configuration older than the API's?`,
      );
    let model: ReturnType<AgentSource["model"]>;
    try {
      model = agents.model(state.input.model ?? agent.model);
    } catch (error) {
      return early(state, "invalid_input", (error as Error).message);
    }
    return await runLoop({
      runId: run.id,
      tenant: run.tenant,
      workspace: join(workspaces, run.tenant, run.id),
      agent,
      model,
      toolbox: agents.tools.boxFor(agent),
      state,
      control,
      partialEveryMs,
      append: async (event) => {
        const { cancelRequested } = await append({ runId: run.id, epoch: run.epoch, tenant: run.tenant, event });
        if (cancelRequested) control.stop("cancelled");
        signals.news(run.id);
        observer?.logged?.(run, event);
      },
      assertOwned: () => liveness.assertFresh(run.id),
      onText: (text) => signals.delta(run.id, run.epoch, text),
    });
  }

  async #settle(
    run: ClaimedRun,
    state: RunState,
    outcome: LoopOutcome,
    attempt: number,
    control: RunControl,
  ): Promise<Left | null> {
    if (control.cause === "lost") return null;
    const { blobs, liveness, signals } = this.#options;
    const leaving = leavingOf(outcome, state, attempt, liveness.workerId);
    const kept: FinalData = { output: latestText(state), stop_reason: null, error: null };
    const left = await this.#leave({
      runId: run.id,
      epoch: run.epoch,
      eventId: uuidv7(),
      status: leaving.status,
      stopReason: leaving.stopReason,
      eventType: leaving.event.type,
      data: await encodeData(blobs, run.tenant, leaving.event.data),
      cancelledData: await encodeData(blobs, run.tenant, kept),
      delayMs: leaving.delayMs,
      attempt: leaving.attempt,
    });
    if (left) signals.news(run.id);
    return left;
  }
}

/** How an outcome of the loop leaves the worker. */
function leavingOf(
  outcome: LoopOutcome,
  state: RunState,
  attempt: number,
  worker: string,
): Pick<Leaving, "status" | "stopReason" | "delayMs" | "attempt"> & { event: NewEvent } {
  switch (outcome.kind) {
    case "final":
      return {
        status: outcome.status,
        stopReason: outcome.data.stop_reason,
        event: { type: `run.${outcome.status}`, data: outcome.data },
        delayMs: 0,
        attempt: null,
      };
    case "handover":
      return {
        status: "queued",
        stopReason: null,
        event: { type: "run.handed_over", data: { worker } },
        delayMs: 0,
        attempt: null,
      };
    case "retry": {
      const { failure } = outcome;
      const code: RunFailure["code"] = failure.code === "aborted" ? "internal_error" : failure.code;
      const { retry } = state.input;
      if (attempt >= retry.max_attempts) return leavingOf(early(state, code, failure.message), state, attempt, worker);
      const delayMs = backoffMs(retry, attempt, failure.retryAfterMs);
      const error: RunFailure = { code, message: failure.message };
      return {
        status: "queued",
        stopReason: null,
        event: { type: "run.retrying", data: { attempt: attempt + 1, delay_ms: delayMs, error } },
        delayMs: Math.max(1, delayMs),
        attempt: attempt + 1,
      };
    }
  }
}

function inOrder(ops: Leaving[], found: Left[]): (Left | null)[] {
  const byRun = new Map(found.map((left) => [left.runId, left]));
  return ops.map((op) => byRun.get(op.runId) ?? null);
}
