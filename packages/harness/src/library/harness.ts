/**
 * The harness as a library: `new AgentHarness(config).run(query)` runs an agent in this process with no database and no queue.
 * The worker runs the same loop over a durable log.
 */
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createModels, type Model, type Models, modelConfig } from "@drover/llm";
import { toWireId, uuidv7 } from "@drover/protocol";
import type { AuditSink } from "../audit/trail.ts";
import { Actions, type ActionsOptions } from "../door/actions.ts";
import { approvalsOf, checkDecision, decisionEntry, type WantedDecision } from "../door/approval.ts";
import type { Artifacts } from "../door/artifacts.ts";
import type { DoorOptions } from "../door/door.ts";
import type { Isolation } from "../isolation/pool.ts";
import { type MoneyBudget, memoryBudget, noBudget } from "../loop/budget.ts";
import { pause, RunControl } from "../loop/control.ts";
import type {
  ApprovalDecision,
  ApprovalRequest,
  EventData,
  FinalData,
  FinalStatus,
  LogEvent,
  NewEvent,
  RunInput,
} from "../loop/events.ts";
import { applyEvent, fold, latestText, type RunState, toNanos } from "../loop/fold.ts";
import { memoryLog, type RunLog } from "../loop/log.ts";
import { early, type LoopOutcome, modelProblem, runLoop, waitingOf } from "../loop/loop.ts";
import { type RunResult, resultOf } from "../loop/result.ts";
import { backoffMs } from "../loop/retry.ts";
import type { Policy } from "../policy/policy.ts";
import { type AgentDefinition, ConfigError, checkConfig, type DroverConfig } from "./agent.ts";
import { type AgentRunError, BudgetExhausted, errorFor, HumanApprovalRequired } from "./errors.ts";
import { checkInput } from "./options.ts";
import { ToolRegistry } from "./registry.ts";

/** Everything of `drover.config.ts`, and the defaults of this harness. */
export interface HarnessConfig extends DroverConfig {
  /** Default model, `provider/model`; else `DROVER_MODEL`, else the one whose key is set, else the demo model. */
  model?: string;
  /** Where keys and base URLs come from (default `process.env`). */
  env?: Record<string, string | undefined>;
  limits?: { softSeconds?: number; hardSeconds?: number };
  retry?: { maxAttempts?: number; backoffMs?: number; maxBackoffMs?: number };
  /** Folder the file tools see (default: a folder of the run's own under the system's temporary folder). */
  workspace?: string;
  /** What all runs of this harness may cost together, USD. */
  budgetUsd?: number;
  /** Where the audit trail goes, such as `memoryAudit()` (default: nowhere). */
  audit?: AuditSink;
  /** Keeps what tools return beyond what the model is shown, such as `memoryArtifacts()` (default: it is dropped). */
  artifacts?: Artifacts;
  /** Where tools run that ask for a process of their own (default: one for all harnesses of this process, which never needs to be closed). */
  isolation?: Isolation;
}

export interface RunOptions {
  agent?: string;
  model?: string;
  temperature?: number;
  systemPrompt?: string;
  context?: Record<string, unknown>;
  maxTokens?: number;
  maxIterations?: number;
  maxCostUsd?: number;
  /** Points its tool calls may take together (default: the agent's). */
  actionBudget?: number;
  limits?: { softSeconds?: number; hardSeconds?: number; deadline?: Date };
  metadata?: Record<string, string>;
  /** Aborting cancels the run; what there was is in the result. */
  signal?: AbortSignal;
  /** Every event once it is in the log. What a callback throws ends the run: `run()` rejects with it. */
  onEvent?(event: LogEvent): void;
  /** The model's text as it streams. */
  onText?(delta: string): void;
  /** Decides what a person is asked. Without it the run stops as `waiting`, and goes on from its log with `decisions`. */
  approve?(request: ApprovalRequest): WantedDecision | Promise<WantedDecision>;
  /** Decisions by `approval_id`, for a run that goes on from its log. */
  decisions?: Record<string, WantedDecision>;
  /** A log of your own; when it has events already, the run goes on where they end (its query and options are the log's). */
  log?: RunLog;
}

export interface HarnessResult extends Omit<RunResult, "status"> {
  /** `waiting`: a person is asked, or a cap must be raised; the run goes on from its log. */
  status: RunResult["status"] | "waiting";
  /** Set when the run did not complete. */
  error?: AgentRunError;
  /** Set while it is waiting. */
  waiting?: EventData["run.waiting"];
}

type Append = DoorOptions["append"];

interface Ending {
  status: FinalStatus;
  data: FinalData;
}
type Stop = Ending | { status: "waiting"; waiting: EventData["run.waiting"] };

/** As for one run. */
const mostUsd = 1_000_000;
const defaults = {
  softSeconds: 1500,
  hardSeconds: 1800,
  maxIterations: 10,
  maxAttempts: 3,
  backoffMs: 1000,
  maxBackoffMs: 60_000,
};

export class AgentHarness {
  readonly #config: HarnessConfig;
  readonly #models: Models;
  readonly #registry: ToolRegistry;
  readonly #money: ReturnType<typeof memoryBudget> | undefined;

  /** Throws `ConfigError` (or the models' own) naming everything that is wrong. */
  constructor(config: HarnessConfig = {}) {
    const { model, env = process.env, limits: _l, retry: _r, workspace: _w, budgetUsd, audit: _a, ...own } = config;
    const { artifacts: _k, isolation, ...file } = own;
    checkConfig(file, "the harness's configuration");
    this.#config = config;
    this.#models = createModels(modelConfig.parse({ ...env, ...(model && { DROVER_MODEL: model }) }), {
      ...file.models,
      models: file.models?.custom,
    });
    this.#registry = new ToolRegistry(config.tools, isolation);
    checkInput("the harness's configuration", this.#input("-", {}));
    if (budgetUsd !== undefined && !(budgetUsd >= 0 && budgetUsd <= mostUsd))
      throw new ConfigError("the harness's configuration", [`budgetUsd: must be 0 to ${mostUsd}`]);
    this.#money = budgetUsd === undefined ? undefined : memoryBudget(toNanos(budgetUsd));
  }

  /** The one door without a model: for agents whose loop is somebody else's. Each is one run with its own log and action budget. */
  actions(options: ActionsOptions = {}): Actions {
    const name = options.agent ?? "default";
    const agent = this.#agent(name);
    if (!agent) throw new ConfigError("actions", [`there is no agent "${name}"`]);
    return new Actions(options, {
      agentName: name,
      agent,
      toolbox: this.#registry.boxFor(name, agent),
      policies: this.#policies(agent),
      ...(this.#config.audit && { audit: this.#config.audit }),
      ...(this.#config.artifacts && { artifacts: this.#config.artifacts }),
      ...(this.#config.workspace !== undefined && { workspace: this.#config.workspace }),
    });
  }

  #policies(agent: AgentDefinition): Policy[] {
    return [...(this.#config.policies ?? []), ...(agent.policies ?? [])];
  }

  /**
   * Runs a query to its end. Never throws for an outcome: `status`, `error` and what there was are in the result. Rejects only
   * with what the log or a callback of yours threw, and with a `ConfigError` on options out of the bounds that the HTTP contract has too.
   */
  async run(query: string, options: RunOptions = {}): Promise<HarnessResult> {
    const startedAt = performance.now();
    const log = options.log ?? memoryLog();
    const runId = log.runId ?? uuidv7();
    const append: Append = async (event, audit) => {
      const logged = await log.append(event);
      if (audit) await this.#config.audit?.record(audit, runId);
      options.onEvent?.(logged);
    };
    const events: (NewEvent & { at?: string })[] = await log.read();
    if (events.length === 0) {
      const input = this.#input(query, options);
      checkInput("the run's options", input, options.metadata);
      const queued: NewEvent = { type: "run.queued", data: input };
      await append(queued);
      events.push(queued);
    }
    const state = fold(events);
    const ended = endOf(events.at(-1));
    if (!ended) {
      await this.#expire(state, append);
      await this.#decide(state, append, options.decisions ?? {});
    }
    const final = ended ?? (await this.#toTheEnd(runId, state, append, options));
    const about = {
      taskId: toWireId("run", runId),
      durationMs: performance.now() - startedAt,
      metadata: options.metadata,
    };
    if (final.status === "waiting") {
      const data: FinalData = { output: latestText(state), stop_reason: null, error: null };
      const soFar = resultOf(state, { status: "partial", data }, about);
      return { ...soFar, status: "waiting", waiting: final.waiting };
    }
    const result: HarnessResult = resultOf(state, final, about);
    const code = final.status === "cancelled" ? "cancelled" : final.data.stop_reason;
    if (code)
      result.error = errorFor(
        code,
        final.data.error?.message ?? "The run was cancelled.",
        resultOf(state, final, about),
      );
    return result;
  }

  /** As `run()`, but throws the typed error of a run that did not complete; `error.partial` has what there was. A run that waits throws too. */
  async runOrThrow(query: string, options: RunOptions = {}): Promise<RunResult> {
    const { error, status, waiting, ...result } = await this.run(query, options);
    if (error) throw error;
    if (status !== "waiting") return { ...result, status };
    const asked = waiting?.approvals?.[0];
    if (asked) throw new HumanApprovalRequired(asked.tool_name ?? asked.subject, asked.input);
    throw new BudgetExhausted("The run waits for a cap to be raised.");
  }

  /** Writes down that nobody decided in time. A decision that comes with it is too late. */
  async #expire(state: RunState, append: Append): Promise<void> {
    for (const { request, decision } of state.approvals.values())
      if (!decision && Date.parse(request.expires_at) <= Date.now())
        await this.#close(state, append, request, { decision: "expire", by: "system" });
  }

  /** Writes down what people decided about the questions of this log. @throws Error for a decision that does not fit its question */
  async #decide(state: RunState, append: Append, decisions: Record<string, WantedDecision>): Promise<void> {
    for (const [id, wanted] of Object.entries(decisions)) {
      const approval = state.approvals.get(id);
      if (!approval) throw new Error(`decisions.${id}: this run asked no such question`);
      if (approval.decision) continue;
      const { tool_name } = approval.request;
      const checked = await checkDecision(approval.request, wanted, this.#registry.get(tool_name ?? ""));
      if ("problem" in checked) throw new Error(`decisions.${id}.${checked.problem.path}: ${checked.problem.message}`);
      await this.#close(state, append, approval.request, checked.decision);
    }
  }

  async #close(state: RunState, append: Append, asked: ApprovalRequest, decision: ApprovalDecision): Promise<void> {
    const event: NewEvent = { type: "approval.decided", data: { approval_id: asked.approval_id, ...decision } };
    await append(event, decisionEntry(asked, decision));
    applyEvent(state, event);
  }

  async #toTheEnd(runId: string, state: RunState, append: Append, options: RunOptions): Promise<Stop> {
    const control = this.#control(state.input);
    const budget = this.#money?.share(control.cut) ?? noBudget;
    const cancel = () => control.stop("cancelled");
    options.signal?.addEventListener("abort", cancel);
    if (options.signal?.aborted) cancel();
    try {
      const stop = await this.#carry(runId, state, control, budget, append, options);
      if (stop.status === "waiting") await append({ type: "run.waiting", data: stop.waiting });
      else await append({ type: `run.${stop.status}`, data: stop.data });
      return stop;
    } finally {
      options.signal?.removeEventListener("abort", cancel);
      control.close();
      // A run whose log broke has given nothing back.
      await budget.settle(0);
    }
  }

  async #carry(
    runId: string,
    state: RunState,
    control: RunControl,
    budget: MoneyBudget,
    append: Append,
    options: RunOptions,
  ): Promise<Stop> {
    const name = state.input.agent;
    const agent = this.#agent(name);
    if (!agent) return finalOf(early(state, "invalid_input", `There is no agent "${name}".`));
    let model: Model;
    try {
      model = this.#models.resolve(state.input.model ?? agent.model ?? this.#models.default);
    } catch (error) {
      return finalOf(early(state, modelProblem(error), (error as Error).message));
    }
    await append({ type: "run.started", data: { epoch: 1, attempt: 1, worker: "library" } });
    for (let attempt = 1, steps = state.steps; ; attempt++) {
      const outcome = await runLoop({
        runId,
        tenant: "default",
        workspace: this.#config.workspace ?? join(tmpdir(), "drover", runId),
        agentName: name,
        agent,
        model,
        toolbox: this.#registry.boxFor(name, agent, state.input.permissions),
        policies: this.#policies(agent),
        approvals: approvalsOf(agent),
        asking: "park",
        budget,
        onBudget: state.input.on_budget ?? agent.onBudget ?? "stop",
        state,
        control,
        append,
        ...(this.#config.artifacts && { artifacts: this.#config.artifacts }),
        ...(options.onText && { onText: options.onText }),
      });
      if (state.steps > steps) attempt = 1;
      steps = state.steps;
      switch (outcome.kind) {
        case "final":
          return finalOf(outcome);
        case "handover":
          await pause(outcome.delayMs ?? 0, control.cut);
          break;
        case "park": {
          const waiting = waitingOf(state, outcome);
          if (!options.approve || !waiting.approvals) return { status: "waiting", waiting };
          for (const request of waiting.approvals)
            await this.#decide(state, append, { [request.approval_id]: await options.approve(request) });
          break;
        }
        case "retry": {
          const { failure } = outcome;
          const error = {
            code: failure.code === "aborted" ? ("internal_error" as const) : failure.code,
            message: failure.message,
          };
          if (attempt >= state.input.retry.max_attempts) return finalOf(early(state, error.code, error.message));
          const delayMs = backoffMs(state.input.retry, attempt, failure.retryAfterMs);
          await append({ type: "run.retrying", data: { attempt: attempt + 1, delay_ms: delayMs, error } });
          await pause(delayMs, control.cut);
        }
      }
    }
  }

  #agent(name: string): AgentDefinition | undefined {
    return this.#config.agents?.[name] ?? (name === "default" ? defaultAgent : undefined);
  }

  #input(query: string, options: RunOptions): RunInput {
    const { limits, retry } = this.#config;
    const hard = options.limits?.hardSeconds ?? limits?.hardSeconds ?? defaults.hardSeconds;
    const soft =
      options.limits?.softSeconds ?? (options.limits?.hardSeconds ? undefined : limits?.softSeconds) ?? (hard * 5) / 6;
    const name = options.agent ?? "default";
    return {
      query,
      agent: name,
      ...(options.context && { context: options.context }),
      ...(options.systemPrompt !== undefined && { system_prompt: options.systemPrompt }),
      ...(options.model !== undefined && { model: options.model }),
      ...(options.temperature !== undefined && { temperature: options.temperature }),
      ...(options.maxTokens !== undefined && { max_tokens: options.maxTokens }),
      ...(options.maxCostUsd !== undefined && { max_cost_usd: options.maxCostUsd }),
      ...definedPoints(options.actionBudget ?? this.#agent(name)?.actionBudget),
      max_iterations: options.maxIterations ?? this.#agent(name)?.maxIterations ?? defaults.maxIterations,
      limits: {
        soft_seconds: soft,
        hard_seconds: hard,
        ...(options.limits?.deadline && { deadline: String(options.limits.deadline.toJSON()) }),
      },
      retry: {
        max_attempts: retry?.maxAttempts ?? defaults.maxAttempts,
        backoff_ms: retry?.backoffMs ?? defaults.backoffMs,
        max_backoff_ms: retry?.maxBackoffMs ?? defaults.maxBackoffMs,
      },
    };
  }

  #control(input: RunInput): RunControl {
    const { soft_seconds, hard_seconds, deadline } = input.limits;
    return new RunControl({
      softMs: soft_seconds * 1000,
      hardMs: hard_seconds * 1000,
      ...(deadline !== undefined && { deadlineMs: Date.parse(deadline) - Date.now() }),
    });
  }
}

/** The agent of an installation that defines none: the default model with every tool. */
export const defaultAgent: AgentDefinition = { description: "The default model with every registered tool." };

/** How a log that is finished already ended. */
function endOf(event: NewEvent | undefined): Ending | undefined {
  switch (event?.type) {
    case "run.completed":
    case "run.partial":
    case "run.failed":
    case "run.cancelled":
      return { status: event.type.slice("run.".length) as FinalStatus, data: event.data };
    default:
      return undefined;
  }
}

function finalOf(outcome: Extract<LoopOutcome, { kind: "final" }>): Ending {
  return { status: outcome.status, data: outcome.data };
}

const definedPoints = (points: number | undefined) => (points === undefined ? {} : { action_budget: points });
