export {
  type ApprovalFilter,
  type ApprovalRecord,
  type Decided,
  decideApproval,
  listApprovals,
  readApproval,
} from "./approvals.ts";
export { type AuditConfig, auditConfig, signingOf } from "./audit/config.ts";
export { recordAudit, type TenantEntry } from "./audit/entries.ts";
export { type AuditFilter, listAuditTenants, readAudit, readCheckpoints, readTrail } from "./audit/read.ts";
export { type VerifiedTrail, verifyAudit } from "./audit/verify.ts";
export { type CapChange, readBudget, setBudget, type TenantBudget } from "./budget.ts";
export { cancelBatch, cancelRun } from "./cancel.ts";
export { type RunsConfig, runsConfig } from "./config.ts";
export type { AgentSource, RunObserver } from "./executor.ts";
export { type FeedMessage, lastFeedSeq, readFeed, waitForFeed } from "./feed.ts";
export { type FollowOptions, followLog, waitForRun } from "./follow.ts";
export { type LinkedApproval, type LinksConfig, linkMaker, linksConfig, readLinked } from "./links.ts";
export { type LogPage, LostOwnershipError, logVersion, readLog, readLogs } from "./log.ts";
export type { CancelAnswer, ClaimedRun, Left } from "./moves.ts";
export { type Raise, raiseRunBudget } from "./raise.ts";
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
export { type Retried, type Retry, retryRun } from "./retry.ts";
export { type RollbackAnswer, rollBack } from "./rollback.ts";
export { type Sequencer, startSequencer } from "./sequencer.ts";
export { finalStatuses, isFinal, type Status, statuses } from "./state.ts";
export {
  type Accepted,
  type BatchSubmission,
  createSubmitter,
  type Idempotency,
  type Submission,
  type Submitter,
} from "./submit.ts";
export { wakeRuns } from "./wake.ts";
export { type RunWorker, startWorker, type WorkerOptions } from "./worker.ts";
