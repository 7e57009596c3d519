export * from "./audit/checkpoint.ts";
export * from "./audit/trail.ts";
export * from "./audit/verify.ts";
export { Actions, type ActionsOptions } from "./door/actions.ts";
export { type Artifacts, memoryArtifacts } from "./door/artifacts.ts";
export * from "./library/agent.ts";
export { RollbackCoordinator } from "./library/coordinator.ts";
export * from "./library/errors.ts";
export {
  AgentHarness,
  defaultAgent,
  type HarnessConfig,
  type HarnessResult,
  type RunOptions,
} from "./library/harness.ts";
export { type Toolbox, ToolRegistry } from "./library/registry.ts";
export * from "./library/tool.ts";
export type * from "./loop/events.ts";
export { memoryLog, type RunLog } from "./loop/log.ts";
export { type RunResult, resultOf, type ToolCallSummary } from "./loop/result.ts";
export * from "./policy/index.ts";
