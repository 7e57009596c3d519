/**
 * What a message says, to an endpoint and in the feed. Built from what no longer changes (an event of a run's log, a closed batch's
 * items), so that every try and every redelivery sends the same bytes.
 */
import { withoutContent } from "@drover/harness/worker";
import { fromWireId, toWireId } from "@drover/protocol";
import { linkMaker, readBatch, readLog, readOutcome, readRun } from "@drover/runs";
import type { Blobs, Queryable } from "@drover/storage";

export interface Message {
  tenant: string;
  type: string;
  messageAt: Date;
  runId: string | null;
  batchId: string | null;
  endpointId: string | null;
  /** The event it tells about, where that is not the run's last. */
  seq: number | null;
  /** What it says, where it tells about neither a run nor a batch. */
  data: object | null;
}

interface Source {
  db: Queryable;
  blobs: Blobs;
  /** What links to questions begin with; without it there are none. */
  publicUrl: string | undefined;
  /** Whether links may go to an address that the run's own submitter has named (default yes). */
  approveOwn?: boolean | undefined;
}

export interface MessageBody {
  type: string;
  timestamp: string;
  data: object;
}

/** The body of a message, or null when what it is about no longer exists. */
export async function messageBody(source: Source, message: Message): Promise<MessageBody | null> {
  const data = await dataOf(source, message);
  return data && { type: message.type, timestamp: message.messageAt.toISOString(), data };
}

async function dataOf(source: Source, message: Message): Promise<object | null> {
  const { tenant, runId, batchId, seq } = message;
  if (message.data) return message.data;
  if (runId && seq !== null) return await waitingData(source, { ...message, runId, seq });
  if (runId) return await runData(source, tenant, runId);
  if (batchId) return await batchData(source.db, tenant, batchId);
  return {
    endpoint_id: message.endpointId && toWireId("endpoint", message.endpointId),
    message: "This is a test event. Nothing happened but your request for it.",
  };
}

/** A final run, in the words of its status document. Tool calls stay out: they can be large, and `GET /query/result` has them. */
async function runData({ db, blobs }: Source, tenant: string, id: string): Promise<object | null> {
  const run = await readRun(db, tenant, id);
  const outcome = run && (await readOutcome(db, blobs, run));
  if (!outcome) return null;
  const { tool_calls: _large, ...result } = outcome.result;
  return {
    task_id: toWireId("run", run.id),
    kind: run.kind,
    of_run: run.ofRun ? toWireId("run", run.ofRun) : undefined,
    status: run.status,
    stop_reason: run.stopReason ?? undefined,
    agent: run.agent,
    batch_id: run.batchId ? toWireId("batch", run.batchId) : undefined,
    user_id: run.userId ?? undefined,
    result,
    error: outcome.error ?? undefined,
    cost_usd: result.cost_usd,
    tokens_used: result.tokens_used,
    metadata: run.metadata,
    created_at: run.createdAt.toISOString(),
    started_at: run.startedAt?.toISOString() ?? null,
    finished_at: run.finishedAt?.toISOString() ?? null,
  };
}

/** `submitter`: whom its address must not be named by. */
async function endpointDecides(db: Queryable, tenant: string, id: string, submitter?: string | null): Promise<boolean> {
  const { rows } = await db.query<{ may_decide: boolean; named_by: string | null }>(
    "SELECT may_decide, named_by FROM endpoints WHERE tenant = $1 AND id = $2",
    [tenant, id],
  );
  const { may_decide = false, named_by = null } = rows[0] ?? {};
  if (submitter === undefined) return may_decide;
  return may_decide && named_by !== null && named_by !== submitter;
}

/**
 * What a run began to wait for at `seq`, however it stands by now. Links go where somebody who may decide has named the address: of an endpoint, or
 * of the callback. What a policy holds back goes where a link goes.
 */
async function waitingData(
  { db, blobs, publicUrl, approveOwn = true }: Source,
  message: Message & { runId: string; seq: number },
): Promise<object | null> {
  const { tenant, runId, seq } = message;
  const run = await readRun(db, tenant, runId);
  const [first] = await readLog(db, blobs, { tenant, runId, limit: 1 });
  const [event] = await readLog(db, blobs, { tenant, runId, after: seq - 1, limit: 1 });
  if (!run || first?.type !== "run.queued" || event?.type !== "run.waiting") return null;
  const { waiting_for, level, approvals } = event.data;
  const mayDecide =
    message.endpointId === null
      ? first.data.callback_decides === true
      : await endpointDecides(db, tenant, message.endpointId, approveOwn ? undefined : run.submittedBy);
  const linkTo = publicUrl !== undefined && mayDecide ? await linkMaker(db, tenant, publicUrl) : undefined;
  return {
    task_id: toWireId("run", run.id),
    status: "waiting",
    waiting_for,
    level,
    approvals: approvals?.map((asked) => {
      const { approval_id, subject, tool_name = null, reason, hash, expires_at, on_expiry } = asked;
      const { input, withheld }: { input: unknown; withheld?: true } = linkTo ? asked : withoutContent(asked);
      return {
        id: approval_id,
        subject,
        tool_name,
        ...shortened(input),
        withheld,
        reason,
        hash,
        expires_at,
        on_expiry,
        link: linkTo?.({ id: fromWireId("approval", approval_id)!, expiresAt: new Date(expires_at) }),
      };
    }),
    agent: run.agent,
    kind: run.kind,
    of_run: run.ofRun ? toWireId("run", run.ofRun) : undefined,
    batch_id: run.batchId ? toWireId("batch", run.batchId) : undefined,
    user_id: run.userId ?? undefined,
    metadata: run.metadata,
    created_at: run.createdAt.toISOString(),
    waiting_since: event.at,
  };
}

/** The message is to tell what is asked; `GET /approvals/{id}` has the whole of it. */
const longestInput = 16_384;

function shortened(input: unknown): { input: unknown; input_truncated?: true } {
  const text = JSON.stringify(input) ?? "null";
  if (text.length <= longestInput) return { input };
  return { input: text.slice(0, longestInput).toWellFormed(), input_truncated: true };
}

async function batchData(db: Queryable, tenant: string, id: string): Promise<object | null> {
  const batch = await readBatch(db, tenant, id);
  if (!batch?.finishedAt) return null;
  return {
    batch_id: toWireId("batch", batch.id),
    status: batch.status,
    counts: batch.counts,
    completed_count: batch.total,
    total: batch.total,
    total_cost_usd: batch.costUsd,
    metadata: batch.metadata,
    created_at: batch.createdAt.toISOString(),
    finished_at: batch.finishedAt.toISOString(),
  };
}

/**
 * A message without what is large, for a receiver that does not take it whole: the output and the error's text are at `result_url`. null: there is nothing that
 * could be left out.
 */
export function thinBody(body: string, publicUrl: string | undefined): string | null {
  const message = JSON.parse(body) as {
    data: { task_id?: unknown; result?: Record<string, unknown>; metadata?: unknown };
  };
  const { task_id, result, ...rest } = message.data;
  if (typeof task_id !== "string" || !result) return null;
  const { output: _large, metadata: _twice, ...kept } = result;
  const result_url = `${publicUrl ?? ""}/query/result/${task_id}`;
  return JSON.stringify({
    ...message,
    data: { task_id, ...rest, result: { ...kept, output: null }, thin: true, result_url },
  });
}
