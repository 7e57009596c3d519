/**
 * The one door for agents whose loop is somebody else's: `execute` is the automated path, `approveAndExecute` the one a person has said
 * yes to. Both pass the same pipeline as a run's tool calls, and write the same log.
 */
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { ToolSpec } from "@drover/llm";
import { uuidv7 } from "@drover/protocol";
import { type AuditSink, contentHash } from "../audit/trail.ts";
import type { AgentDefinition } from "../library/agent.ts";
import {
  ActionFailed,
  BudgetExhausted,
  CallLimitReached,
  HumanApprovalRequired,
  InvalidArguments,
  PermissionDenied,
  PolicyBlocked,
} from "../library/errors.ts";
import type { Toolbox } from "../library/registry.ts";
import { RunControl } from "../loop/control.ts";
import type { NewEvent, ToolResult } from "../loop/events.ts";
import { applyEvent, asText, fold, initialState, pointsLeft, type RunState, type ToolRecord } from "../loop/fold.ts";
import { memoryLog, type RunLog } from "../loop/log.ts";
import type { Policy } from "../policy/policy.ts";
import { approvalsOf } from "./approval.ts";
import type { Artifacts } from "./artifacts.ts";
import { callTool, skipForBudget } from "./call.ts";
import type { Asking, DoorOptions } from "./door.ts";

export interface ActionsOptions {
  /** Which agent acts: its tools, budget and policies (default `default`). */
  agent?: string;
  /** Points all actions may take together (default: the agent's, else no limit). */
  actionBudget?: number;
  /** For the audit trail and the tools' context (default `default`). */
  tenant?: string;
  /** Aborting stops what is in flight. */
  signal?: AbortSignal;
  /** Where its events go (default: memory). One that has events already goes on: what was done under an id is not done again. */
  log?: RunLog;
}

export interface ActionOptions {
  /**
   * Names this action, such as the model's tool call id: asked for again, also in another process with the same log, it answers with the recorded
   * outcome instead of being carried out twice; with another name or other arguments it is refused. Without it every call is an action of its own.
   */
  id?: string;
}

interface Parts {
  agentName: string;
  agent: AgentDefinition;
  toolbox: Toolbox;
  policies: readonly Policy[];
  audit?: AuditSink;
  artifacts?: Artifacts;
  workspace?: string;
}

/** Makes one through `AgentHarness.actions()`. */
export class Actions {
  readonly #options: ActionsOptions;
  readonly #parts: Parts;
  readonly #log: RunLog;
  readonly #runId: string;
  readonly #control = new RunControl();
  readonly #underWay = new Map<string, { action: Action; answer: Promise<unknown> }>();
  #state: RunState;
  #opened: Promise<void> | undefined;

  constructor(options: ActionsOptions, parts: Parts) {
    const points = options.actionBudget ?? parts.agent.actionBudget;
    this.#options = options;
    this.#parts = parts;
    this.#log = options.log ?? memoryLog();
    this.#runId = this.#log.runId ?? uuidv7();
    this.#state = initialState({
      query: "",
      agent: parts.agentName,
      max_iterations: 0,
      limits: { soft_seconds: 0, hard_seconds: 0 },
      retry: { max_attempts: 1, backoff_ms: 0, max_backoff_ms: 0 },
      ...(points !== undefined && { action_budget: points }),
    });
    const { signal } = options;
    if (signal?.aborted) this.#control.stop("cancelled");
    signal?.addEventListener("abort", () => this.#control.stop("cancelled"), { once: true });
  }

  /** What a model is told of the tools: name, description, JSON Schema of the arguments. */
  get tools(): ToolSpec[] {
    return this.#parts.toolbox.specs;
  }

  /** Points that are neither charged nor set aside; Infinity without a limit. */
  get pointsLeft(): number {
    return pointsLeft(this.#state);
  }

  /**
   * Carries out an action if no person is needed, and returns its output.
   * @throws HumanApprovalRequired nothing was done or charged: ask, then call `approveAndExecute` with the same arguments
   * @throws PermissionDenied, InvalidArguments, PolicyBlocked, BudgetExhausted, CallLimitReached, ActionFailed
   */
  execute(actionName: string, actionArgs: unknown, options: ActionOptions = {}): Promise<unknown> {
    return this.#once(options.id, actionName, actionArgs, () =>
      this.#pass(actionName, actionArgs, options.id, "refuse"),
    );
  }

  /** Carries out an action that a person has approved; it is charged like any other. Throws as `execute` does, but never asks. */
  approveAndExecute(
    actionName: string,
    actionArgs: unknown,
    approval: ActionOptions & { by: string },
  ): Promise<unknown> {
    const asking = { approvedBy: approval.by };
    return this.#once(approval.id, actionName, actionArgs, () =>
      this.#pass(actionName, actionArgs, approval.id, asking),
    );
  }

  /** One id, one action: whoever asks while it is under way gets the same answer. */
  async #once(id: string | undefined, name: string, input: unknown, act: () => Promise<unknown>): Promise<unknown> {
    if (id === undefined) return await act();
    const underWay = this.#underWay.get(id);
    if (underWay) {
      requireSame(id, underWay.action, { name, input });
      return await underWay.answer;
    }
    const answer = act().finally(() => this.#underWay.delete(id));
    this.#underWay.set(id, { action: { name, input }, answer });
    return await answer;
  }

  async #pass(name: string, input: unknown, id: string | undefined, asking: Asking): Promise<unknown> {
    this.#opened ??= this.#open();
    await this.#opened;
    const found = this.#find(id);
    if (id !== undefined && found) requireSame(id, found.call, { name, input });
    const record = found ?? (await this.#begin(name, input, id));
    if (record.result) return outputOf(record.result, name, input, asking);
    const door = this.#door(asking);
    const answer = await callTool(record, door);
    if (answer.kind === "recorded") return outputOf(answer.result, name, input, asking);
    // A process died inside it, and whether it took effect is not known: a person says whether it is to run again.
    if (answer.kind !== "exhausted") throw new HumanApprovalRequired(name, input);
    await skipForBudget(record, door);
    // One action too dear does not close the door to a cheaper one.
    this.#state.exhausted = undefined;
    throw new BudgetExhausted(`${name} takes more points than are left (${this.pointsLeft}).`);
  }

  async #open(): Promise<void> {
    const events = await this.#log.read();
    if (events.length > 0) this.#state = fold(events);
    else await this.#log.append({ type: "run.queued", data: this.#state.input });
  }

  /** The latest action of this id, unless it was only asked about. */
  #find(id: string | undefined): ToolRecord | undefined {
    if (id === undefined) return;
    const record = this.#state.turns.findLast((turn) => turn.calls[0]?.call.id === id)?.calls[0];
    return record?.result?.problem === "rejected" ? undefined : record;
  }

  async #begin(name: string, input: unknown, id: string | undefined): Promise<ToolRecord> {
    const iteration = this.#state.turns.length + 1;
    const call = { id: id ?? `action_${iteration}`, name, input };
    const event: NewEvent = { type: "action.called", data: { iteration, call } };
    // Before it is written: two actions at the same time have places of their own.
    applyEvent(this.#state, event);
    await this.#log.append(event);
    return this.#state.turns[iteration - 1]!.calls[0]!;
  }

  #door(asking: Asking): DoorOptions {
    const { agentName, agent, toolbox, policies, workspace, artifacts } = this.#parts;
    return {
      runId: this.#runId,
      tenant: this.#options.tenant ?? "default",
      workspace: workspace ?? join(tmpdir(), "drover", this.#runId),
      agentName,
      toolbox,
      state: this.#state,
      control: this.#control,
      policies,
      approvals: approvalsOf(agent),
      asking,
      ...(artifacts && { artifacts }),
      append: async (event, audit) => {
        await this.#log.append(event);
        applyEvent(this.#state, event);
        if (audit) await this.#parts.audit?.record(audit, this.#runId);
      },
    };
  }
}

interface Action {
  name: string;
  input?: unknown;
}

/** @throws InvalidArguments when an id that names one action is used for another */
function requireSame(id: string, known: Action, wanted: Action): void {
  const same = (action: Action) => contentHash([action.name, action.input ?? null]);
  if (same(known) !== same(wanted))
    throw new InvalidArguments(
      `The action id "${id}" was used for ${known.name} with other arguments: an id names one action with its arguments.`,
    );
}

function outputOf(result: ToolResult, name: string, input: unknown, asking: Asking): unknown {
  if (result.status === "ok") return result.output;
  const message = asText(result.output);
  switch (result.problem) {
    case "permission":
      throw new PermissionDenied(message);
    case "arguments":
      throw new InvalidArguments(message);
    case "policy":
    case "withheld":
      throw new PolicyBlocked(message);
    case "limit":
      throw new CallLimitReached(message);
    case "rejected":
      if (asking === "refuse") throw new HumanApprovalRequired(name, input);
      throw new ActionFailed(message);
    default:
      throw new ActionFailed(message);
  }
}
