/**
 * One ownership of a run, as a pipeline: resume -> turns -> settle -> report. The claim came before (`worker.ts`). Everything
 * it writes is fenced by its epoch; when the fence says no, it aborts what is in flight, writes nothing, and is silent.
 */
import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import {
  type AgentDefinition,
  approvalsOf,
  backoffMs,
  early,
  type FinalData,
  fold,
  type LogEvent,
  type LoopOptions,
  type LoopOutcome,
  latestText,
  modelProblem,
  type NewEvent,
  type Policy,
  planRollback,
  RunControl,
  type RunFailure,
  type RunState,
  runLoop,
  type StopCause,
  type ToolRegistry,
  waitingOf,
} from "@drover/harness";
import { uuidv7 } from "@drover/protocol";
import type { Signals } from "@drover/queue";
import { type Blobs, createBatcher, faultOf, type Pool, storableText, throughOutages } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import type { BudgetOf } from "./budget.ts";
import type { Liveness } from "./liveness.ts";
import { encodeData, LostOwnershipError, type RunLogWriter, readLogs } from "./log.ts";
import {
  type ClaimedRun,
  type Leaving,
  type Left,
  leaveRuns,
  nothingLeft,
  type Parking,
  parkRun,
  readLeft,
} from "./moves.ts";

/** The agents and models of this process. */
export interface AgentSource {
  agent(name: string): AgentDefinition | undefined;
  model(id: string | undefined): Parameters<typeof runLoop>[0]["model"];
  tools: ToolRegistry;
  /** Of the agents' definitions, by name: see `ToolRegistry.hashOf`. Without them nobody notices that one has changed. */
  hashes?: Record<string, string>;
  /** Of the whole configuration; an agent may have more. */
  policies: readonly Policy[];
}

/** What happens, for metrics; must not throw. */
export interface RunObserver {
  claimed?(run: ClaimedRun): void;
  logged?(run: ClaimedRun, event: NewEvent): void;
  /** `left` is null when the ownership was lost and the outcome dropped. */
  left?(run: ClaimedRun, left: Left | null, ownedMs: number): void;
  /** A call answered after it was given up, and its answer was dropped. */
  late?(what: "tool" | "model"): void;
  /** A run that the rescuer ended. */
  ended?(left: Left): void;
  /** Another worker was declared dead here. */
  condemned?(cause: "crashed" | "silent"): void;
  /** So many runs of dead workers were taken over here. */
  rescued?(runs: number): void;
}

export interface ExecutorOptions {
  pool: Pool;
  blobs: Blobs;
  signals: Signals;
  logger: Logger;
  append: RunLogWriter;
  budgets: BudgetOf;
  agents: AgentSource;
  liveness: Pick<Liveness, "workerId" | "whenFresh" | "inside">;
  /** Folder of the runs' workspaces. */
  workspaces: string;
  partialEveryMs: number;
  /** Beats go on about a run that nobody here carries: for this long its claim's answer may still be on its way, ms. */
  strayAfterMs: number;
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

const putBack = { most: 5, firstMs: 1000 };

export class Executor {
  readonly #options: ExecutorOptions;
  readonly #owned = new Map<string, Owned>();
  /** "<run id> <epoch>" of what the database says is ours and nobody here carries, and when that was first noticed. */
  readonly #strays = new Map<string, bigint>();
  readonly #load: (run: ClaimedRun) => Promise<LogEvent[]>;
  readonly #leave: (op: Leaving) => Promise<Left | null>;
  readonly #park: (op: Parking) => Promise<Left | null>;
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
    this.#park = createBatcher<Parking, Left | null>({
      key: (op) => op.runId,
      execute: async ([op]) => [await parkRun(pool, op!)],
      recover: async (ops) => inOrder(ops, await readLeft(pool, ops)).map((left) => left ?? undefined),
      // Each is a transaction of its own: one that fails must not have another, which was committed, tried again.
      max: 1,
      lanes: 5,
      signal,
    });
  }

  /** Runs held right now. */
  get size(): number {
    return this.#owned.size;
  }

  /**
   * Carries a claimed run as far as it gets. Resolves with what became of it; null when the ownership was lost, or when the same
   * ownership is being carried here already (a claim read back after its answer was lost). `onStep`: a step of it is finished.
   */
  async execute(run: ClaimedRun, onStep?: () => void): Promise<Left | null> {
    const other = this.#owned.get(run.id);
    if (other && other.run.epoch >= run.epoch) return null;
    other?.control.stop("lost");
    const control = new RunControl({
      softMs: run.softInMs,
      hardMs: run.hardInMs,
      ...(run.deadlineInMs !== null && { deadlineMs: run.deadlineInMs }),
    });
    const owned: Owned = { run, control, since: process.hrtime.bigint() };
    this.#owned.set(run.id, owned);
    if (this.#draining) control.drain();
    const startedAt = performance.now();
    const { observer, logger } = this.#options;
    observer?.claimed?.(run);
    let left: Left | null = null;
    try {
      left = await this.#carry(run, control, onStep);
    } catch (error) {
      control.stop("lost");
      if (!(error instanceof LostOwnershipError)) {
        logger.error({ err: error, run: run.id }, "a run could not be carried on; it goes back to the queue");
        left = await this.#putBack(run).catch(() => null);
      }
    } finally {
      control.close();
      if (this.#owned.get(run.id) === owned) this.#owned.delete(run.id);
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

  /**
   * A heartbeat's answer: whatever the database does not say is ours, and was ours before it was asked, is lost. Returns what it
   * has been saying is ours for a while and nobody here carries: claims whose answer was lost. Give them back.
   */
  judge(sentAt: bigint, owned: Set<string>): { runId: string; epoch: number }[] {
    for (const { run, control, since } of this.#owned.values())
      if (since < sentAt && !owned.has(`${run.id} ${run.epoch}`)) control.stop("lost");
    for (const key of this.#strays.keys()) if (!owned.has(key)) this.#strays.delete(key);
    const now = process.hrtime.bigint();
    const found: { runId: string; epoch: number }[] = [];
    for (const key of owned) {
      const [runId, epoch] = [key.slice(0, 36), Number(key.slice(37))];
      const noticedAt = this.#strays.get(key);
      if (this.#owned.get(runId)?.run.epoch === epoch) this.#strays.delete(key);
      else if (noticedAt === undefined) this.#strays.set(key, now);
      else if (sentAt - noticedAt > BigInt(Math.round(this.#options.strayAfterMs * 1e6))) {
        this.#strays.set(key, now);
        found.push({ runId, epoch });
      }
    }
    return found;
  }

  /** Hands over a run that is ours and that nobody here carries; null when it is not ours any more. */
  async giveBack({ runId, epoch }: { runId: string; epoch: number }): Promise<Left | null> {
    // After a pause of this loop, the claim's answer may be the next thing it reads.
    await nextTurn();
    if (this.#owned.has(runId)) return null;
    return await this.#leave({
      runId,
      epoch,
      eventId: uuidv7(),
      status: "queued",
      stopReason: null,
      eventType: "run.handed_over",
      data: JSON.stringify({ worker: this.#options.liveness.workerId }),
      cancelledData: JSON.stringify(nothingLeft),
      delayMs: 0,
      attempt: null,
    });
  }

  async #carry(run: ClaimedRun, control: RunControl, onStep?: () => void): Promise<Left | null> {
    const log = await this.#load(run);
    // Told of a cancel before the claim's answer was here, nobody knew whose it was.
    if (log.some(({ type }) => type === "run.cancel_requested")) control.stop("cancelled");
    const state = fold(log);
    const stepsBefore = state.steps;
    let outcome: LoopOutcome;
    try {
      const { liveness } = this.#options;
      outcome = await liveness.inside({ runId: run.id }, () => this.#turns(run, state, control, onStep));
    } catch (error) {
      // Postgres went away while this process was stopping: the run is not to blame.
      if (error instanceof LostOwnershipError || faultOf(error) === "unavailable") throw error;
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

  /** For what no outcome covers (its log cannot be read, its end cannot be written): tried again with growing pauses, a few times. */
  #putBack(run: ClaimedRun): Promise<Left | null> {
    const error: RunFailure = {
      code: "internal_error",
      message: "An internal error; the service's logs have it under the run's id.",
    };
    const ended: FinalData = { output: null, stop_reason: error.code, error };
    const last = run.attempt >= putBack.most;
    const delayMs = putBack.firstMs * 2 ** run.attempt;
    return this.#leave({
      runId: run.id,
      epoch: run.epoch,
      eventId: uuidv7(),
      status: last ? "failed" : "queued",
      stopReason: last ? error.code : null,
      eventType: last ? "run.failed" : "run.retrying",
      data: JSON.stringify(last ? ended : { attempt: run.attempt + 1, delay_ms: delayMs, error }),
      cancelledData: JSON.stringify(nothingLeft),
      delayMs: last ? 0 : delayMs,
      attempt: run.attempt + 1,
      rollback: rollsBack(this.#options.agents, run),
    });
  }

  async #turns(run: ClaimedRun, state: RunState, control: RunControl, onStep?: () => void): Promise<LoopOutcome> {
    const { agents, append, budgets, signals, liveness, observer, workspaces, partialEveryMs, blobs, signal } =
      this.#options;
    const agent = agents.agent(run.agent);
    if (!agent)
      return early(
        state,
        "invalid_input",
        `This worker has no agent "${run.agent}"; is its configuration older than the API's?`,
      );
    const changed = run.ofRun === null && (await this.#definitionChanged(run, agent, state));
    if (changed) return changed;
    let way: Way;
    try {
      way = run.ofRun === null ? this.#queryWay(run, agent, state) : await this.#rollbackWay(run, run.ofRun, state);
    } catch (error) {
      if (faultOf(error) === "unavailable") throw error;
      return early(state, modelProblem(error), (error as Error).message);
    }
    // At the time limit a run stops waiting for money that others hold: what it has left is for its last turn.
    const budget = budgets(run, control.cut);
    const startedAt = performance.now();
    return await runLoop({
      ...way,
      runId: run.id,
      tenant: run.tenant,
      workspace: join(workspaces, run.tenant, run.id),
      agentName: run.agent,
      approvals: approvalsOf(agent),
      asking: "park",
      budget,
      onBudget: state.input.on_budget ?? agent.onBudget ?? "stop",
      state,
      control,
      partialEveryMs,
      now: () => run.claimedAtMs + (performance.now() - startedAt),
      append: async (event, audit) => {
        const settles = budget.held && event.type === "model.call";
        const { id: runId, epoch, tenant } = run;
        const { cancelRequested, capped } = await append({ runId, epoch, tenant, event, audit, settles });
        if (settles) budget.charged();
        budget.capped = capped;
        if (cancelRequested) control.stop("cancelled");
        signals.news(run.id);
        observer?.logged?.(run, event);
        if (event.type === "model.call" || event.type === "tool.result") onStep?.();
      },
      assertOwned: () => liveness.whenFresh(control.signal),
      inside: (tool, work) => liveness.inside({ runId: run.id, tool }, work),
      artifacts: { put: (text) => throughOutages(() => blobs.put(run.tenant, storableText(text)), signal) },
      onLate: (what) => observer?.late?.("tool" in what ? "tool" : "model"),
      onText: (text) => signals.delta(run.id, run.epoch, text),
    });
  }

  /** What a new definition of the agent makes of a run that was started under another one; undefined: it goes on. */
  async #definitionChanged(run: ClaimedRun, agent: AgentDefinition, state: RunState): Promise<LoopOutcome | undefined> {
    const [from, to] = state.agentHashes;
    if (from === undefined || to === undefined || from === to) return;
    if (agent.onChange === "strict")
      return early(
        state,
        "agent_changed",
        `The definition of the agent "${run.agent}" has changed since the run began.`,
      );
    const event: NewEvent = { type: "agent.changed", data: { from, to } };
    await this.#options.append({ runId: run.id, epoch: run.epoch, tenant: run.tenant, event });
    return;
  }

  #queryWay(run: ClaimedRun, agent: AgentDefinition, state: RunState): Way {
    const { agents } = this.#options;
    return {
      agent,
      model: agents.model(state.input.model ?? agent.model),
      toolbox: agents.tools.boxFor(run.agent, agent, state.input.permissions),
      policies: [...agents.policies, ...(agent.policies ?? [])],
    };
  }

  /** A rollback is the same loop: a planner in the model's place, and tools that undo. */
  async #rollbackWay(run: ClaimedRun, ofRun: string, state: RunState): Promise<Way> {
    const { agents, pool, blobs } = this.#options;
    const { rows } = await pool.query<{ id: string }>(
      "SELECT id FROM runs WHERE tenant = $1 AND of_run = $2 AND kind = 'rollback' AND id <> $3",
      [run.tenant, ofRun, run.id],
    );
    const logs = await readLogs(pool, blobs, { tenant: run.tenant, runIds: [ofRun, ...rows.map((row) => row.id)] });
    const earlier = rows.flatMap(({ id }) => (logs.has(id) ? [fold(logs.get(id)!)] : []));
    const plan = planRollback(fold(logs.get(ofRun) ?? []), agents.tools, earlier);
    const { agent, model, registry, iterations } = plan;
    state.input.max_iterations = iterations;
    return { agent, model, toolbox: registry.boxFor(run.agent, agent), policies: [] };
  }

  async #settle(
    run: ClaimedRun,
    state: RunState,
    outcome: LoopOutcome,
    attempt: number,
    control: RunControl,
  ): Promise<Left | null> {
    if (control.cause === "lost") return null;
    const { blobs, liveness, signals, signal, agents } = this.#options;
    const encode = (data: unknown) => throughOutages(() => encodeData(blobs, run.tenant, data), signal);
    const kept: FinalData = { output: latestText(state), stop_reason: null, error: null };
    const base = { runId: run.id, epoch: run.epoch, eventId: uuidv7(), cancelledData: await encode(kept) };
    let left: Left | null;
    if (outcome.kind === "park") {
      const waiting = waitingOf(state, outcome);
      const level = outcome.waitingFor === "budget" ? outcome.level : null;
      const data = await encode(waiting);
      left = await this.#park({ ...base, waitingFor: outcome.waitingFor, level, raises: state.raises, data });
    } else {
      const { event, ...leaving } = leavingOf(outcome, state, attempt, liveness.workerId);
      const rollback = rollsBack(agents, run);
      left = await this.#leave({
        ...base,
        ...leaving,
        eventType: event.type,
        data: await encode(event.data),
        rollback,
      });
    }
    if (left) signals.news(run.id);
    return left;
  }
}

/** Who acts, with what, under which policies. */
type Way = Pick<LoopOptions, "agent" | "model" | "toolbox" | "policies">;

/** Whether what a run did is undone when it does not complete. */
export const rollsBack = (agents: Pick<AgentSource, "agent">, run: Pick<ClaimedRun, "kind" | "agent">): boolean =>
  run.kind === "query" && agents.agent(run.agent)?.onFailure === "rollback";

/** How an outcome of the loop leaves the worker. */
function leavingOf(
  outcome: Exclude<LoopOutcome, { kind: "park" }>,
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
        event: { type: "run.handed_over", data: { worker, ...(outcome.delayMs && { delay_ms: outcome.delayMs }) } },
        delayMs: outcome.delayMs ?? 0,
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

function inOrder(ops: { runId: string }[], found: Left[]): (Left | null)[] {
  const byRun = new Map(found.map((left) => [left.runId, left]));
  return ops.map((op) => byRun.get(op.runId) ?? null);
}
