/** The typed errors of the library: what `result.error` holds and `runOrThrow()` throws. Each carries what there was. */
import type { StopReason } from "@drover/protocol";
import type { RunResult } from "./result.ts";

export class AgentRunError extends Error {
  readonly code: StopReason | "cancelled";
  readonly partial: RunResult;
  constructor(code: StopReason | "cancelled", message: string, partial: RunResult) {
    super(message);
    this.name = new.target.name;
    this.code = code;
    this.partial = partial;
  }
}

/** `max_iterations` was used up. */
export class LoopLimitExceededError extends AgentRunError {}

/** A tool ended the run: it failed for good, or its effect is uncertain. */
export class ToolExecutionError extends AgentRunError {}

/** The provider refused the API key. */
export class ApiKeyError extends AgentRunError {}

const classes: Partial<Record<StopReason | "cancelled", typeof AgentRunError>> = {
  iteration_limit: LoopLimitExceededError,
  tool_error: ToolExecutionError,
  uncertain: ToolExecutionError,
  auth_failed: ApiKeyError,
};

export function errorFor(code: StopReason | "cancelled", message: string, partial: RunResult): AgentRunError {
  return new (classes[code] ?? AgentRunError)(code, message, partial);
}
