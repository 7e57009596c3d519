export { Actions, type ActionsOptions } from "./actions.ts";
export * from "./agent.ts";
export { approvalsOf, checkDecision, decisionEntry, statusAfter, type WantedDecision } from "./approval.ts";
export { type Artifacts, memoryArtifacts } from "./artifacts.ts";
export * from "./audit/checkpoint.ts";
export * from "./audit/verify.ts";
export * from "./audit.ts";
export { type MoneyBudget, memoryBudget, noBudget, type OuterLevel } from "./budget.ts";
export { callTool } from "./call.ts";
export { type LoadedConfig, loadConfigFile } from "./config-file.ts";
export { type ClockOptions, pause, RunControl, type StopCause } from "./control.ts";
export { RollbackCoordinator } from "./coordinator.ts";
export type { DoorAnswer, DoorOptions } from "./door.ts";
export * from "./errors.ts";
export type * from "./events.ts";
export {
  applyEvent,
  conversation,
  fold,
  initialState,
  latestText,
  openCalls,
  type RunState,
  toNanos,
  toUsd,
} from "./fold.ts";
export { AgentHarness, defaultAgent, type HarnessConfig, type HarnessResult, type RunOptions } from "./harness.ts";
export { isolationConfig } from "./isolation/config.ts";
export type { ToolLine } from "./isolation/lines.ts";
export { Isolation, type IsolationOptions } from "./isolation/pool.ts";
export { memoryLog, type RunLog } from "./log.ts";
export { early, type LoopOptions, type LoopOutcome, modelProblem, runLoop, waitingOf } from "./loop.ts";
export * from "./policy/index.ts";
export { type AnyTool, type Toolbox, ToolRegistry } from "./registry.ts";
export { type RunResult, resultOf, type ToolCallSummary } from "./result.ts";
export { backoffMs } from "./retry.ts";
export { planRollback, type RollbackPlan } from "./rollback.ts";
export * from "./tool.ts";
