/** The typed errors of the library: what `result.error` holds and `runOrThrow()` throws. Each carries what there was. */
import type { StopReason } from "@drover/protocol";
import type { RunResult } from "../loop/result.ts";

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

/** What `Actions.execute()` throws: the action was not carried out, or failed. */
export class ActionError extends Error {
  constructor(message: string) {
    super(message);
    this.name = new.target.name;
  }
}

/** There is no such action for this agent. */
export class PermissionDenied extends ActionError {}

/** The arguments do not fit the tool's schema. */
export class InvalidArguments extends ActionError {}

/** A policy did not let the arguments, or the result, pass. */
export class PolicyBlocked extends ActionError {}

/** The action budget, or a cap of money, has not enough left. */
export class BudgetExhausted extends ActionError {}

/** Called too often, in this run or by this tenant. */
export class CallLimitReached extends ActionError {}

/** The tool failed, or its time was up. */
export class ActionFailed extends ActionError {}

/** A person must say yes: show what is asked, then call `approveAndExecute` with it. Nothing has been done or charged. */
export class HumanApprovalRequired extends ActionError {
  readonly actionName: string;
  readonly actionArgs: unknown;
  constructor(actionName: string, actionArgs: unknown) {
    super(`A person must approve ${actionName}.`);
    this.actionName = actionName;
    this.actionArgs = actionArgs;
  }
}
