/**
 * The harness as a library: `new AgentHarness(config).run(query)` runs an agent in this process with no database and no queue.
 * The worker runs the same loop over a durable log.
 */
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createModels, type Model, type Models, modelConfig } from "@drover/llm";
import { toWireId, uuidv7 } from "@drover/protocol";
import { type AgentDefinition, checkConfig, type DroverConfig } from "./agent.ts";
import { pause, RunControl } from "./control.ts";
import { type AgentRunError, errorFor } from "./errors.ts";
import type { FinalData, FinalStatus, LogEvent, NewEvent, RunInput } from "./events.ts";
import { fold, type RunState } from "./fold.ts";
import { memoryLog, type RunLog } from "./log.ts";
import { early, type LoopOutcome, modelProblem, runLoop } from "./loop.ts";
import { ToolRegistry } from "./registry.ts";
import { type RunResult, resultOf } from "./result.ts";
import { backoffMs } from "./retry.ts";

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
  limits?: { softSeconds?: number; hardSeconds?: number; deadline?: Date };
  metadata?: Record<string, string>;
  /** Aborting cancels the run; what there was is in the result. */
  signal?: AbortSignal;
  /** Every event once it is in the log. What a callback throws ends the run: `run()` rejects with it. */
  onEvent?(event: LogEvent): void;
  /** The model's text as it streams. */
  onText?(delta: string): void;
  /** A log of your own; when it has events already, the run goes on where they end (its query and options are the log's). */
  log?: RunLog;
}

export interface HarnessResult extends RunResult {
  /** Set when the run did not complete. */
  error?: AgentRunError;
}

interface Ending {
  status: FinalStatus;
  data: FinalData;
}

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

  /** Throws `ConfigError` (or the models' own) naming everything that is wrong. */
  constructor(config: HarnessConfig = {}) {
    const { model, env = process.env, limits: _limits, retry: _retry, workspace: _workspace, ...file } = config;
    checkConfig(file, "the harness's configuration");
    this.#config = config;
    this.#models = createModels(modelConfig.parse({ ...env, ...(model && { DROVER_MODEL: model }) }), {
      ...file.models,
      models: file.models?.custom,
    });
    this.#registry = new ToolRegistry(config.tools);
  }

  /**
   * Runs a query to its end. Never throws for an outcome: `status`, `error` and what there was are in the result. Rejects only
   * with what the log or a callback of yours threw, and on limits that are no times.
   */
  async run(query: string, options: RunOptions = {}): Promise<HarnessResult> {
    const startedAt = performance.now();
    const log = options.log ?? memoryLog();
    const runId = log.runId ?? uuidv7();
    const append = async (event: NewEvent) => {
      const logged = await log.append(event);
      options.onEvent?.(logged);
    };
    const events: NewEvent[] = await log.read();
    if (events.length === 0) {
      const queued: NewEvent = { type: "run.queued", data: this.#input(query, options) };
      await append(queued);
      events.push(queued);
    }
    const state = fold(events);
    const final = endOf(events.at(-1)) ?? (await this.#toTheEnd(runId, state, append, options));
    const about = {
      taskId: toWireId("run", runId),
      durationMs: performance.now() - startedAt,
      metadata: options.metadata,
    };
    const result: HarnessResult = resultOf(state, final, about);
    const code = final.status === "cancelled" ? "cancelled" : final.data.stop_reason;
    if (code) result.error = errorFor(code, final.data.error?.message ?? "The run was cancelled.", { ...result });
    return result;
  }

  /** As `run()`, but throws the typed error of a run that did not complete; `error.partial` has what there was. */
  async runOrThrow(query: string, options: RunOptions = {}): Promise<RunResult> {
    const { error, ...result } = await this.run(query, options);
    if (error) throw error;
    return result;
  }

  async #toTheEnd(
    runId: string,
    state: RunState,
    append: (event: NewEvent) => Promise<void>,
    options: RunOptions,
  ): Promise<Ending> {
    const control = this.#control(state.input);
    const cancel = () => control.stop("cancelled");
    options.signal?.addEventListener("abort", cancel);
    if (options.signal?.aborted) cancel();
    try {
      const final = await this.#carry(runId, state, control, append, options);
      await append({ type: `run.${final.status}`, data: final.data });
      return final;
    } finally {
      options.signal?.removeEventListener("abort", cancel);
      control.close();
    }
  }

  async #carry(
    runId: string,
    state: RunState,
    control: RunControl,
    append: (event: NewEvent) => Promise<void>,
    options: RunOptions,
  ): Promise<Ending> {
    const agent = this.#agent(state.input.agent);
    if (!agent) return finalOf(early(state, "invalid_input", `There is no agent "${state.input.agent}".`));
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
        agent,
        model,
        toolbox: this.#registry.boxFor(agent),
        state,
        control,
        append,
        ...(options.onText && { onText: options.onText }),
      });
      if (outcome.kind !== "retry") return finalOf(outcome);
      if (state.steps > steps) attempt = 1;
      steps = state.steps;
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
      max_iterations: options.maxIterations ?? this.#agent(name)?.maxIterations ?? defaults.maxIterations,
      limits: {
        soft_seconds: soft,
        hard_seconds: hard,
        ...(options.limits?.deadline && { deadline: options.limits.deadline.toISOString() }),
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

function finalOf(outcome: LoopOutcome): Ending {
  if (outcome.kind === "final") return { status: outcome.status, data: outcome.data };
  throw new Error(`a library run cannot end with ${outcome.kind}`);
}
