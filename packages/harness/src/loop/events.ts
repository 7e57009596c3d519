/**
 * The events of a run's log: the only history. What a crashed run remembers, what a follower sees and what a result says are
 * all folds over these. Their `data` is on the wire as it is, so it is snake_case and its money is USD.
 */
import type { ModelMessage } from "@drover/llm";
import type { StopReason } from "@drover/protocol";
import type { Permission } from "../library/tool.ts";
import type { PolicyFinding, PolicyStage } from "../policy/policy.ts";

/** What the client submitted, defaults filled in: the first event of every log. */
export interface RunInput {
  query: string;
  agent: string;
  context?: Record<string, unknown>;
  system_prompt?: string;
  model?: string;
  temperature?: number;
  max_tokens?: number;
  max_iterations: number;
  max_cost_usd?: number;
  limits: { soft_seconds: number; hard_seconds: number; deadline?: string };
  retry: { max_attempts: number; backoff_ms: number; max_backoff_ms: number };
  /** Points its tool calls may take together. */
  action_budget?: number;
  on_budget?: "stop" | "pause";
  /** Permissions its tools may have at most, by the role of the key that submitted it; absent: all. */
  permissions?: Permission[];
  /** A rollback: the run whose effects it undoes. */
  of_run?: string;
  /** The run it takes up again. */
  retry_of?: string;
  /** Its callback gets links with which its questions can be decided: whoever submitted it may do that. */
  callback_decides?: true;
}

export interface LoggedToolCall {
  id: string;
  name: string;
  input: unknown;
  invalid?: string;
}

/** What a person is asked: to let a call, an input, a result or an answer pass, or how a call ended that nobody saw end. */
export type ApprovalSubject = "call" | "uncertain" | "input" | "result" | "output";

/** `hash` names exactly what is asked about: SHA-256 of tool, version and arguments, or of the content. */
export interface ApprovalRequest {
  /** `apr_…` */
  approval_id: string;
  subject: ApprovalSubject;
  /** Which call; absent for inputs and outputs. */
  iteration?: number;
  index?: number;
  tool_name?: string;
  /** The arguments, or the content asked about. */
  input: unknown;
  reason: string;
  hash: string;
  expires_at: string;
  on_expiry: "reject" | "fail";
}

/** `done` and `retry` answer an uncertain call: it took effect (with this result), or it is to run again. */
export interface ApprovalDecision {
  decision: "approve" | "reject" | "expire" | "retry" | "done" | "fail";
  /** Who: a key's id, `link`, `system`, or a name. */
  by: string;
  /** Shown to the model with a rejection. */
  note?: string;
  /** Approved with other arguments than were asked about; `hash` names these then. */
  edited_input?: unknown;
  hash?: string;
  /** With `done`: what the call returned. */
  result?: unknown;
}

/**
 * Why a call had no proper outcome. `policy`: it was not made. `withheld`: it was made, and its result is not shown. `nothing_done`: it says that it
 * failed before it had any effect.
 */
export type ToolProblem =
  | "arguments"
  | "permission"
  | "policy"
  | "withheld"
  | "budget"
  | "limit"
  | "rejected"
  | "expired"
  | "time"
  | "nothing_done"
  | "tool";

export interface RunFailure {
  code: StopReason;
  message: string;
}

/** What a run leaves behind when it ends; totals are folded from the log. */
export interface FinalData {
  output: string | null;
  stop_reason: StopReason | null;
  error: RunFailure | null;
}

/** Where a cap stands: points or money of the run, or money of its session or its tenant. */
export type BudgetLevel = "actions" | "run" | "session" | "tenant_day" | "tenant_month";

/** `denied`: permission or policy said no. `rejected`: a person did, or nobody answered. `uncertain`: it may have taken effect. */
export type ToolStatus = "ok" | "error" | "skipped" | "denied" | "rejected" | "uncertain";

export interface EventData {
  "run.queued": RunInput;
  /** `agent_hash`: of the agent's definition as its new owner has it. */
  "run.started": { epoch: number; attempt: number; worker: string; agent_hash?: string };
  /**
   * The events before this one are copies of what `from` had finished: they are known, and neither charged nor counted again. Until `quiet_at` its last
   * owner may be at work in calls that it left open.
   */
  "steps.copied": { from: string; events: number; quiet_at: string };
  /** The agent's definition is another one than when the run was last started; it goes on with the new one. */
  "agent.changed": { from: string; to: string };
  /** One finished model call. `messages` only when the reply is more than its text and calls (reasoning, provider data). */
  "model.call": {
    iteration: number;
    model: string;
    text: string;
    tool_calls: LoggedToolCall[];
    messages?: ModelMessage[];
    finish_reason: string;
    /** The provider's own word for it, where it is another one. */
    raw_finish_reason?: string;
    usage: { input: number; output: number; cached: number };
    cost_usd: number | null;
    duration_ms: number;
    /** From the call to its first text. */
    ttft_ms?: number;
    /** The provider's id of the answer. */
    provider_request_id?: string;
    /** The last turn, and what made it the last. */
    wrap_up?: true;
    wrap_up_for?: "budget" | "iterations";
    /** A policy asks a person before this answer goes out, or has withheld it. */
    held?: true;
    withheld?: true;
  };
  /** An action asked for from outside any model: a turn of one call. */
  "action.called": { iteration: number; call: LoggedToolCall };
  /** Text of a model call still under way, or cut; dropped by the fold once that call's end is recorded. */
  "model.partial": { iteration: number; text: string; cut?: true };
  /**
   * A model call without a reply. What its provider may bill stands in `usage` and `cost_usd`, as far as it was counted; null: not known, and what was set
   * aside for it (`reserved_usd`) counts against the caps.
   */
  "model.failed": {
    iteration: number;
    model: string;
    code: string;
    message: string;
    retry_in_ms: number | null;
    usage?: { input: number; output: number; cached: number };
    cost_usd?: number | null;
    reserved_usd?: number;
  };
  /** Written before an idempotent or unsafe tool starts; without an outcome after it, the call may have taken place. */
  "tool.intent": {
    iteration: number;
    index: number;
    call_id: string;
    tool_name: string;
    idempotency_key: string;
    /** Points reserved for it. */
    points?: number;
    /** The arguments as they are carried out, where they are not those the model wrote. */
    input?: unknown;
  };
  /** After a crash: what the tool's own `verify` said about a call without an outcome. */
  "tool.verified": { iteration: number; index: number; tool_name: string; answer: "done" | "not_done" | "unknown" };
  /** An outcome that the model does not see until a person has let it pass. */
  "tool.held": EventData["tool.result"];
  "tool.result": {
    iteration: number;
    index: number;
    call_id: string;
    tool_name: string;
    status: ToolStatus;
    output: unknown;
    truncated?: true;
    /** Where the whole output is kept, or its first `bytes` (`cut`), when it is more than the model is shown. */
    artifact?: { id: string; bytes: number; type: "application/json" | "text/plain"; cut?: true };
    duration_ms: number;
    problem?: ToolProblem;
    /** Points charged for it; what was reserved beyond is given back. */
    points?: number;
    /** It comes from outside: the model sees it marked. */
    untrusted?: true;
    /** It is private data. */
    private?: true;
  };
  /** What a policy found; a redacted input stands in `input` from here on. */
  "policy.applied": PolicyFinding & {
    stage: PolicyStage;
    iteration?: number;
    index?: number;
    tool_name?: string;
    input?: Pick<RunInput, "query" | "context">;
  };
  "approval.requested": ApprovalRequest;
  "approval.decided": ApprovalDecision & { approval_id: string };
  "budget.raised": { max_cost_usd?: number; action_budget?: number; by: string };
  /** The run gives up its slot until somebody decides; `level` says which cap of money or points it stands at. */
  "run.waiting": { waiting_for: "approval" | "budget"; level?: BudgetLevel; approvals?: ApprovalRequest[] };
  "run.resumed": { waited_for: string };
  "run.retrying": { attempt: number; delay_ms: number; error: RunFailure };
  "run.handed_over": { worker: string; delay_ms?: number };
  /**
   * Its worker was lost. `cause`: it died, fell silent, or its event loop was blocked (in `tool_name` of this run). `crashes`: owners lost in a
   * row. `quiet_at`: one lease after the owner's last heartbeat.
   */
  "run.rescued": {
    worker: string | null;
    cause?: "crashed" | "silent" | "blocked";
    crashes?: number;
    tool_name?: string;
    quiet_at?: string;
  };
  "run.cancel_requested": Record<string, never>;
  "run.completed": FinalData;
  "run.partial": FinalData;
  "run.failed": FinalData;
  "run.cancelled": FinalData;
}

export type EventType = keyof EventData;
export type FinalStatus = "completed" | "partial" | "failed" | "cancelled";

/** A tool's outcome as the log has it. */
export type ToolResult = EventData["tool.result"];

/** An event to be appended. */
export type NewEvent = { [T in EventType]: { type: T; data: EventData[T] } }[EventType];

/** An event as it stands in the log; `seq` counts from 1 without gaps, `at` is ISO 8601 with milliseconds. */
export type LogEvent = NewEvent & { seq: number; at: string };
