export { type AuditConfig, auditConfig, signingOf } from "./audit/config.ts";
export { recordAudit, type TenantEntry } from "./audit/entries.ts";
export { type AuditFilter, listAuditTenants, readAudit, readCheckpoints, readTrail } from "./audit/read.ts";
export { type VerifiedTrail, verifyAudit } from "./audit/verify.ts";
export { type RunsConfig, runsConfig } from "./config.ts";
export { livingWorkers } from "./liveness/lock.ts";
export { LostOwnershipError, logVersion } from "./log/append.ts";
export { Bell } from "./log/bell.ts";
export { type LogPage, readLog, readLogs } from "./log/events.ts";
export { type FollowOptions, followLog, waitForRun } from "./log/follow.ts";
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
  requireContents,
} from "./log/read.ts";
export { type CapChange, readBudget, setBudget, type TenantBudget } from "./money/budget.ts";
export { type Raise, raiseRunBudget } from "./money/raise.ts";
export type { CancelAnswer } from "./moves/cancel.ts";
export { type ClaimedRun, workOf } from "./moves/claim.ts";
export type { Moved } from "./moves/moved.ts";
export { finalStatuses, isFinal, type Status, statuses } from "./moves/state.ts";
export type { Observation, Observe } from "./observe.ts";
export { type FeedMessage, lastFeedSeq, readFeed, waitForFeed } from "./order/feed.ts";
export { orderRinger } from "./order/ring.ts";
export { type Sequencer, startSequencer } from "./order/sequencer.ts";
export {
  type ApprovalFilter,
  type ApprovalRecord,
  type Decided,
  decideApproval,
  listApprovals,
  readApproval,
} from "./people/approvals.ts";
export { type LinkedApproval, type LinksConfig, linkMaker, linksConfig, readLinked } from "./people/links.ts";
export { type Retention, type RetentionConfig, retentionConfig, retentionOf } from "./retention/config.ts";
export { type Due, readRetention, retain } from "./retention/retention.ts";
export { cancelBatch, cancelRun } from "./submit/cancel.ts";
export { type Retried, type Retry, retryRun } from "./submit/retry.ts";
export { type RollbackAnswer, rollBack } from "./submit/rollback.ts";
export {
  type Accepted,
  type BatchSubmission,
  createSubmitter,
  type Idempotency,
  readReplay,
  type Submission,
  type Submitter,
} from "./submit/submit.ts";
export type { AgentSource } from "./worker/executor.ts";
export { wakeRuns } from "./worker/wake.ts";
export { type RunWorker, startWorker, type WorkerOptions } from "./worker/worker.ts";
