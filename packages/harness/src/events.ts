/**
 * The events of a run's log: the only history. What a crashed run remembers, what a follower sees and what a result says are
 * all folds over these. Their `data` is on the wire as it is, so it is snake_case and its money is USD.
 */
import type { ModelMessage } from "@drover/llm";
import type { StopReason } from "@drover/protocol";

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
}

export interface LoggedToolCall {
  id: string;
  name: string;
  input: unknown;
  invalid?: string;
}

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

export interface EventData {
  "run.queued": RunInput;
  "run.started": { epoch: number; attempt: number; worker: string };
  /** One finished model call. `messages` only when the reply is more than its text and calls (reasoning, provider data). */
  "model.call": {
    iteration: number;
    model: string;
    text: string;
    tool_calls: LoggedToolCall[];
    messages?: ModelMessage[];
    finish_reason: string;
    usage: { input: number; output: number; cached: number };
    cost_usd: number | null;
    duration_ms: number;
    wrap_up?: true;
  };
  /** Text of a model call still under way, or cut; dropped by the fold once that call's end is recorded. */
  "model.partial": { iteration: number; text: string; cut?: true };
  "model.failed": { iteration: number; model: string; code: string; message: string; retry_in_ms: number | null };
  /** Written before an idempotent or unsafe tool starts; without an outcome after it, the call may have taken place. */
  "tool.intent": { iteration: number; index: number; call_id: string; tool_name: string; idempotency_key: string };
  "tool.result": {
    iteration: number;
    index: number;
    call_id: string;
    tool_name: string;
    status: "ok" | "error" | "skipped";
    output: unknown;
    truncated?: true;
    duration_ms: number;
  };
  "run.retrying": { attempt: number; delay_ms: number; error: RunFailure };
  "run.handed_over": { worker: string };
  "run.rescued": { worker: string | null };
  "run.cancel_requested": Record<string, never>;
  "run.completed": FinalData;
  "run.partial": FinalData;
  "run.failed": FinalData;
  "run.cancelled": FinalData;
}

export type EventType = keyof EventData;
export type FinalStatus = "completed" | "partial" | "failed" | "cancelled";

/** An event to be appended. */
export type NewEvent = { [T in EventType]: { type: T; data: EventData[T] } }[EventType];

/** An event as it stands in the log; `seq` counts from 1 without gaps, `at` is ISO 8601 with milliseconds. */
export type LogEvent = NewEvent & { seq: number; at: string };
