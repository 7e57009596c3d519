/**
 * What a message says. Built from what no longer changes (a final run's log, a closed batch's items), so that every try and
 * every redelivery sends the same bytes.
 */
import { toWireId } from "@drover/protocol";
import { readBatch, readOutcome, readRun } from "@drover/runs";
import type { Blobs, Queryable } from "@drover/storage";

export interface Message {
  tenant: string;
  type: string;
  messageAt: Date;
  runId: string | null;
  batchId: string | null;
  endpointId: string | null;
}

/** The JSON text of a message, or null when what it is about no longer exists. */
export async function messageBody(db: Queryable, blobs: Blobs, message: Message): Promise<string | null> {
  const data = await dataOf(db, blobs, message);
  return data && JSON.stringify({ type: message.type, timestamp: message.messageAt.toISOString(), data });
}

async function dataOf(db: Queryable, blobs: Blobs, message: Message): Promise<object | null> {
  if (message.runId) return await runData(db, blobs, message.tenant, message.runId);
  if (message.batchId) return await batchData(db, message.tenant, message.batchId);
  return {
    endpoint_id: message.endpointId && toWireId("endpoint", message.endpointId),
    message: "This is a test event. Nothing happened but your request for it.",
  };
}

/** A final run, in the words of its status document. Tool calls stay out: they can be large, and `GET /query/result` has them. */
async function runData(db: Queryable, blobs: Blobs, tenant: string, id: string): Promise<object | null> {
  const run = await readRun(db, tenant, id);
  const outcome = run && (await readOutcome(db, blobs, run));
  if (!outcome) return null;
  const { tool_calls: _large, ...result } = outcome.result;
  return {
    task_id: toWireId("run", run.id),
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
