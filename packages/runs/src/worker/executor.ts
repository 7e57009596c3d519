/**
 * One ownership of a run, as a pipeline: resume -> turns -> settle. The claim came before (`intake.ts`), the report comes after it
 * (`report.ts`). Everything it writes is fenced by its epoch; when the fence says no, it aborts what is in flight, writes nothing, and is silent.
 */
import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { AgentDefinition, LogEvent, NewEvent, Policy, ToolRegistry } from "@drover/harness";
import {
  approvalsOf,
  early,
  fold,
  type LoopOptions,
  type LoopOutcome,
  modelProblem,
  planRollback,
  type RunControl,
  type RunState,
  runLoop,
} from "@drover/harness/worker";
import type { Signals } from "@drover/queue";
import { type Blobs, createBatcher, faultOf, type Pool, storableText, throughOutages } from "@drover/storage";
import type { Liveness } from "../liveness/liveness.ts";
import { LostOwnershipError, type RunLogWriter } from "../log/append.ts";
import { readLogs } from "../log/events.ts";
import type { BudgetOf } from "../money/budget.ts";
import type { ClaimedRun, Known } from "../moves/claim.ts";
import type { Moved } from "../moves/moved.ts";
import type { Observe } from "../observe.ts";
import type { Ownership } from "./ownership.ts";
import { createSettler, type Settler } from "./settle.ts";

/** The agents and models of this process. */
export interface AgentSource {
  agent(name: string): AgentDefinition | undefined;
  model(id: string | undefined): Parameters<typeof runLoop>[0]["model"];
  tools: ToolRegistry;
  /** What is claimed (default everything): agents by name, models as "provider/model" or "provider/*". */
  known?: Known;
  /** Of the agents' definitions, by name: see `ToolRegistry.hashOf`. Without them nobody notices that one has changed. */
  hashes?: Record<string, string>;
  /** Of the whole configuration; an agent may have more. */
  policies: readonly Policy[];
}

export interface ExecutorOptions {
  pool: Pool;
  blobs: Blobs;
  signals: Signals;
  append: RunLogWriter;
  budgets: BudgetOf;
  agents: AgentSource;
  ownership: Ownership;
  liveness: Pick<Liveness, "workerId" | "whenFresh" | "inside">;
  /** Folder of the runs' workspaces. */
  workspaces: string;
  partialEveryMs: number;
  observe: Observe;
  /** Ends the waiting for a database that is away. */
  signal: AbortSignal;
}

export const policiesOf = (agents: Pick<AgentSource, "policies">, agent: AgentDefinition | undefined): Policy[] => [
  ...agents.policies,
  ...(agent?.policies ?? []),
];

/** Who acts, with what, under which policies. */
type Way = Pick<LoopOptions, "agent" | "model" | "toolbox" | "policies">;

export class Executor {
  readonly #options: ExecutorOptions;
  readonly #settler: Settler;
  readonly #load: (run: ClaimedRun) => Promise<LogEvent[]>;

  constructor(options: ExecutorOptions) {
    this.#options = options;
    const { pool, blobs, agents, liveness, signal } = options;
    this.#settler = createSettler({ pool, blobs, agents, workerId: () => liveness.workerId, signal });
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
  }

  /**
   * Carries a claimed run as far as it gets. Resolves with what became of it; null when the ownership was lost, or when the same
   * ownership is being carried here already (a claim read back after its answer was lost). `onStep`: a step of it is finished.
   */
  async execute(run: ClaimedRun, onStep?: () => void): Promise<Moved | null> {
    const { ownership, observe } = this.#options;
    const control = ownership.take(run);
    if (!control) return null;
    observe({ type: "claimed", run });
    const startedAt = performance.now();
    let moved: Moved | null = null;
    try {
      moved = await this.#carry(run, control, onStep);
    } catch (error) {
      control.stop("lost");
      if (!(error instanceof LostOwnershipError)) {
        observe({ type: "broke", run, error, ends: false });
        moved = await this.#settler.putBack(run).catch(() => null);
      }
    } finally {
      ownership.release(run, control);
    }
    if (moved) observe({ type: "left", run, moved, ownedMs: performance.now() - startedAt });
    else observe({ type: "lost", run });
    return moved;
  }

  /** Hands over a run that is ours and that nobody here carries; null when it is not ours any more. */
  async giveBack(stray: { runId: string; epoch: number }): Promise<Moved | null> {
    // After a pause of this loop, the claim's answer may be the next thing it reads.
    await nextTurn();
    if (this.#options.ownership.has(stray.runId)) return null;
    const moved = await this.#settler.giveBack(stray);
    if (moved) this.#options.observe({ type: "given_back", ...stray });
    return moved;
  }

  async #carry(run: ClaimedRun, control: RunControl, onStep?: () => void): Promise<Moved | null> {
    const { liveness, observe, signals } = this.#options;
    const log = await this.#load(run);
    // Told of a cancel before the claim's answer was here, nobody knew whose it was.
    if (log.some(({ type }) => type === "run.cancel_requested")) control.stop("cancelled");
    const state = fold(log);
    const stepsBefore = state.steps;
    let outcome: LoopOutcome;
    try {
      outcome = await liveness.inside({ runId: run.id }, () => this.#turns(run, state, control, onStep));
    } catch (error) {
      // Postgres went away while this process was stopping: the run is not to blame.
      if (error instanceof LostOwnershipError || faultOf(error) === "unavailable") throw error;
      // A bug, or data that even its own statement refuses: the run ends here rather than at its hard limit.
      observe({ type: "broke", run, error, ends: true });
      outcome = early(
        state,
        "internal_error",
        "An internal error ended the run; the service's logs have it under the run's id.",
      );
    }
    if (control.cause === "lost") return null;
    const attempt = state.steps > stepsBefore ? 1 : run.attempt;
    const moved = await this.#settler.settle(run, state, outcome, attempt);
    if (moved) signals.news(run.id);
    return moved;
  }

  async #turns(run: ClaimedRun, state: RunState, control: RunControl, onStep?: () => void): Promise<LoopOutcome> {
    const { agents, budgets, signals, liveness, observe, workspaces, partialEveryMs, blobs, signal } = this.#options;
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
    /** Calls of the last reply without a result: a death while there are some may be their doing. */
    let open = state.turns.at(-1)?.calls.filter((call) => !call.result).length ?? 0;
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
        const isPaid =
          event.type === "model.call" || (event.type === "model.failed" && event.data.cost_usd !== undefined);
        const settles = budget.held && isPaid;
        if (event.type === "model.call") open = event.data.tool_calls.length;
        else if (event.type === "tool.result") open--;
        const userCode = open > 0 || way.policies.length > 0;
        const { cancelRequested, capped } = await this.#append(run, event, { audit, settles, userCode });
        if (settles) budget.charged();
        budget.capped = capped;
        if (cancelRequested) control.stop("cancelled");
        signals.news(run.id);
        observe({ type: "logged", run, event });
        if (event.type === "model.call" || event.type === "tool.result") onStep?.();
      },
      assertOwned: () => liveness.whenFresh(control.signal),
      inside: (tool, work) => liveness.inside({ runId: run.id, tool }, work),
      artifacts: { put: (text) => throughOutages(() => blobs.put(run.tenant, storableText(text)), signal) },
      onLate: (what) => observe({ type: "late", what: "tool" in what ? "tool" : "model" }),
      onText: (text, at) => signals.delta(run.id, run.epoch, text, at),
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
    await this.#append(run, event);
    return;
  }

  async #append(
    run: ClaimedRun,
    event: NewEvent,
    more: Pick<Parameters<RunLogWriter>[0], "audit" | "settles" | "userCode"> = {},
  ) {
    const { append, liveness } = this.#options;
    const { id: runId, epoch, tenant, lastSeq } = run;
    const appended = await append({ runId, epoch, tenant, worker: liveness.workerId, lastSeq, event, ...more });
    run.lastSeq = Math.max(run.lastSeq, appended.seq);
    return appended;
  }

  #queryWay(run: ClaimedRun, agent: AgentDefinition, state: RunState): Way {
    const { agents } = this.#options;
    return {
      agent,
      model: agents.model(state.input.model ?? agent.model),
      toolbox: agents.tools.boxFor(run.agent, agent, state.input.permissions),
      policies: policiesOf(agents, agent),
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
}
