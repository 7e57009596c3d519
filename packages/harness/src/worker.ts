/** What a service takes that carries runs itself: the loop, its fold and clock, the door's parts. `@drover/harness` is for everybody else. */
export { approvalsOf, checkDecision, decisionEntry, statusAfter, type WantedDecision } from "./door/approval.ts";
export { callTool } from "./door/call.ts";
export type { DoorAnswer, DoorOptions } from "./door/door.ts";
export { type StrayOwner, strayOwner } from "./door/stray.ts";
export { isolationConfig } from "./isolation/config.ts";
export type { ToolLine } from "./isolation/lines.ts";
export { Isolation, type IsolationOptions } from "./isolation/pool.ts";
export { type LoadedConfig, loadConfigFile } from "./library/config-file.ts";
export { type MoneyBudget, memoryBudget, noBudget, type OuterLevel } from "./loop/budget.ts";
export { type ClockOptions, pause, RunControl, type StopCause } from "./loop/control.ts";
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
} from "./loop/fold.ts";
export { isHeldContent, withoutContent, withoutHeld } from "./loop/held.ts";
export { early, type LoopOptions, type LoopOutcome, modelProblem, runLoop, waitingOf } from "./loop/loop.ts";
export { backoffMs } from "./loop/retry.ts";
export { planRollback, type RollbackPlan } from "./loop/rollback.ts";
