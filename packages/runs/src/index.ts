export { cancelBatch, cancelRun } from "./cancel.ts";
export { type RunsConfig, runsConfig } from "./config.ts";
export type { AgentSource, RunObserver } from "./executor.ts";
export { type FollowOptions, followLog, waitForRun } from "./follow.ts";
export { type LogPage, LostOwnershipError, logVersion, readLog, readLogs } from "./log.ts";
export type { CancelAnswer, ClaimedRun, Left } from "./moves.ts";
export {
  type Batch,
  type BatchItem,
  listRuns,
  type Outcome,
  type Run,
  type RunFilter,
  readBatch,
  readBatchItems,
  readOutcome,
  readProgress,
  readRun,
} from "./read.ts";
export { finalStatuses, isFinal, type Status, statuses } from "./state.ts";
export {
  type Accepted,
  type BatchSubmission,
  createSubmitter,
  type Idempotency,
  type Submission,
  type Submitter,
} from "./submit.ts";
export { type RunWorker, startWorker, type WorkerOptions } from "./worker.ts";
