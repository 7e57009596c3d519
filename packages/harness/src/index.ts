export * from "./agent.ts";
export { callTool, type DoorOptions, Interrupted } from "./call.ts";
export { type LoadedConfig, loadConfigFile } from "./config-file.ts";
export { type ClockOptions, pause, RunControl, type StopCause } from "./control.ts";
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
export { memoryLog, type RunLog } from "./log.ts";
export { early, type LoopOptions, type LoopOutcome, modelProblem, runLoop } from "./loop.ts";
export { type AnyTool, type Toolbox, ToolRegistry } from "./registry.ts";
export { type RunResult, resultOf, type ToolCallSummary } from "./result.ts";
export { backoffMs } from "./retry.ts";
export * from "./tool.ts";
