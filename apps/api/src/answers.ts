/** From what `runs` reads to the wire: one mapping per resource, by hand. */
import type { LogEvent, RunInput, RunResult } from "@drover/harness";
import { isHeldContent, withoutHeld } from "@drover/harness/worker";
import {
  type AcceptedAnswer,
  type ApprovalAnswer,
  type BatchAnswer,
  type ExecutionAnswer,
  given,
  type ResultAnswer,
  type RunProblem,
  type RunStatus,
  type RunSummary,
  type StatusAnswer,
  toProblem,
  toWireId,
} from "@drover/protocol";
import { type ApprovalRecord, type Batch, type BatchItem, type Outcome, type Run, workOf } from "@drover/runs";

/** Where a run is followed; `status` defaults to what a new one has. */
export function acceptedAnswer(id: string, status: RunStatus = "queued"): AcceptedAnswer {
  const taskId = toWireId("run", id);
  return {
    task_id: taskId,
    status,
    check_url: `/query/status/${taskId}`,
    result_url: `/query/result/${taskId}`,
    events_url: `/query/${taskId}/events`,
  };
}

function summaryFields(run: Run) {
  const waitsUntil = run.status === "queued" && run.availableAt.getTime() > Date.now() ? run.availableAt : null;
  return {
    task_id: toWireId("run", run.id),
    kind: run.kind,
    ...(run.ofRun !== null && { of_run: toWireId("run", run.ofRun) }),
    ...(run.retryOf !== null && { retry_of: toWireId("run", run.retryOf) }),
    status: run.status,
    ...(run.waitingFor !== null && { waiting_for: run.waitingFor }),
    ...(run.waitingLevel !== null && { waiting_level: run.waitingLevel }),
    ...(run.stopReason !== null && { stop_reason: run.stopReason }),
    ...(run.setAsideAt && { reason: noWorker(run, run.setAsideAt) }),
    agent: run.agent,
    ...(run.batchId !== null && { batch_id: toWireId("batch", run.batchId) }),
    ...(run.userId !== null && { user_id: run.userId }),
    attempt: run.attempt,
    cost_usd: run.costUsd,
    tokens_used: run.tokens,
    ...(waitsUntil && { next_attempt_at: waitsUntil.toISOString() }),
    ...(run.cancelRequested && { cancel_requested: true as const }),
    metadata: run.metadata,
    created_at: run.createdAt.toISOString(),
    started_at: run.startedAt?.toISOString() ?? null,
    finished_at: run.finishedAt?.toISOString() ?? null,
  };
}

function noWorker(run: Run, since: Date): NonNullable<RunSummary["reason"]> {
  return { code: "no_worker", text: `No worker takes ${workOf(run)}.`, since: since.toISOString() };
}

export function summaryAnswer(run: Run): RunSummary {
  return { ...summaryFields(run), progress: { iterations: run.iterations, steps: run.steps } };
}

export function statusAnswer(
  run: Run,
  progress: { lastEvent: string | null; partialOutput: string | null },
  outcome: Outcome | null,
): StatusAnswer {
  return {
    ...summaryFields(run),
    progress: {
      iterations: run.iterations,
      steps: run.steps,
      last_event: progress.lastEvent,
      partial_output: progress.partialOutput,
    },
    ...(outcome && { result: resultAnswer(outcome.result) }),
    ...(outcome?.error && { error: outcome.error }),
  };
}

/** `toolCalls`: they can be large, so only who asks gets them. */
export function resultAnswer(result: RunResult, toolCalls = false): ResultAnswer {
  const { tool_calls, ...rest } = result;
  return toolCalls ? { ...rest, tool_calls } : rest;
}

export function executionAnswer(run: Run, input: RunInput, outcome: Outcome | null): ExecutionAnswer {
  const { query, context, system_prompt, model, temperature, max_tokens, max_iterations, max_cost_usd } = input;
  const { action_budget: actions, on_budget: at_cap, limits, retry } = input;
  return {
    ...summaryAnswer(run),
    query,
    ...(context && { context }),
    settings: {
      ...given({ system_prompt, model, temperature, max_tokens, max_cost_usd }),
      ...((actions !== undefined || at_cap !== undefined) && { budget: given({ actions, at_cap }) }),
      max_iterations,
      limits,
      retry,
      priority: run.priority,
    },
    duration_seconds: run.activeMs / 1000,
    last_seq: run.lastSeq,
    result: outcome?.result ?? null,
    error: outcome?.error ?? null,
  };
}

/** `mayDecide`: whoever asks; others are not shown what a policy holds back, unless it was let pass. */
export function approvalAnswer(asked: ApprovalRecord, mayDecide: boolean): ApprovalAnswer {
  const { decision } = asked;
  const withheld = isHeldContent(asked.subject) && !mayDecide && asked.status !== "approved";
  return {
    id: toWireId("approval", asked.id),
    task_id: toWireId("run", asked.runId),
    agent: asked.agent,
    subject: asked.subject,
    tool_name: asked.toolName,
    input: withheld ? null : asked.input,
    ...(withheld && { withheld: true as const }),
    reason: asked.reason,
    hash: asked.hash,
    status: asked.status,
    requested_at: asked.requestedAt.toISOString(),
    expires_at: asked.expiresAt.toISOString(),
    on_expiry: asked.onExpiry,
    decided_at: asked.decidedAt?.toISOString() ?? null,
    decided_by: asked.decidedBy,
    decision: decision?.decision ?? null,
    note: decision?.note ?? null,
    ...(decision?.edited_input !== undefined && { edited_input: decision.edited_input }),
  };
}

/** The answer for a run that ended with nothing that can be called a result. */
export function runProblem(
  run: Run,
  outcome: Outcome,
  about: { code: "conflict" | "loop_limit_exceeded" | "tool_error"; requestId: string; toolCalls?: boolean },
): RunProblem {
  const error = outcome.error ?? { code: "internal_error", message: "The run failed." };
  const detail = `The run ${run.status === "cancelled" ? "was cancelled" : "failed"}: ${error.message}`;
  return {
    ...toProblem(about.code, detail, about.requestId),
    task_id: toWireId("run", run.id),
    error,
    result: resultAnswer(outcome.result, about.toolCalls),
  };
}

/** `mayDecide`: whoever asks; others are not shown what a policy holds back. */
export function eventAnswer(event: LogEvent, mayDecide: boolean) {
  const { seq, type, at, data } = mayDecide ? event : withoutHeld(event);
  return { seq, type, at, data: data as Record<string, unknown> };
}

export function batchAnswer(batch: Batch, items: BatchItem[], nextCursor: string | null): BatchAnswer {
  const { counts } = batch;
  const done = counts.completed + counts.partial + counts.failed + counts.cancelled;
  return {
    batch_id: toWireId("batch", batch.id),
    status: batch.status,
    counts,
    completed_count: done,
    total: batch.total,
    total_cost_usd: batch.costUsd,
    progress: done / batch.total,
    ...(batch.cancelRequested && { cancel_requested: true as const }),
    metadata: batch.metadata,
    created_at: batch.createdAt.toISOString(),
    finished_at: batch.finishedAt?.toISOString() ?? null,
    data: items.map(({ run, query, outcome }) => ({
      task_id: toWireId("run", run.id),
      query,
      status: run.status,
      ...(outcome && { result: resultAnswer(outcome.result) }),
      ...(outcome?.error && { error: outcome.error }),
      cost_usd: run.costUsd,
    })),
    next_cursor: nextCursor,
  };
}
