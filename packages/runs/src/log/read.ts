/** Reading runs and batches. Every statement carries the tenant: another tenant's id answers like a missing one. */

import type { BudgetLevel, FinalData, FinalStatus } from "@drover/harness";
import { type LogEvent, type RunResult, resultOf } from "@drover/harness";
import { fold, latestText, toUsd, withoutHeld } from "@drover/harness/worker";
import { DroverError, type StopReason, toWireId } from "@drover/protocol";
import { type Blobs, bounded, type Pool, plannedAnew, type Queryable, TooLongError } from "@drover/storage";
import { DummyDriver, Kysely, PostgresAdapter, PostgresIntrospector, PostgresQueryCompiler, sql } from "kysely";
import { isFinal, type Status } from "../moves/state.ts";
import { readLog, readLogs } from "./events.ts";

export interface Run {
  id: string;
  tenant: string;
  agent: string;
  userId: string | null;
  batchId: string | null;
  kind: "query" | "rollback";
  /** A rollback: the run whose effects it undoes. */
  ofRun: string | null;
  /** A retry: the run it takes up again. */
  retryOf: string | null;
  /** Who submitted it: the id of an API key. */
  submittedBy: string | null;
  status: Status;
  waitingFor: string | null;
  /** Of a run that waits for its budget: the cap it stands at. */
  waitingLevel: BudgetLevel | null;
  stopReason: StopReason | null;
  priority: number;
  attempt: number;
  lastSeq: number;
  steps: number;
  iterations: number;
  /** null: a step's price is not known. */
  costUsd: number | null;
  tokens: { input: number; output: number; cached: number; total: number };
  cancelRequested: boolean;
  /** When the run is or was due; in the future while it is delayed or backs off. */
  availableAt: Date;
  /** Since when it waits for a worker that knows its agent and model; null: it does not. */
  setAsideAt: Date | null;
  /** What its submission asks for; null: its agent's. */
  model: string | null;
  /** Time owned by workers so far, ms; the current owner's share counts when it leaves. */
  activeMs: number;
  metadata: Record<string, string>;
  createdAt: Date;
  startedAt: Date | null;
  finishedAt: Date | null;
}

interface RunRow {
  id: string;
  tenant: string;
  agent: string;
  user_id: string | null;
  batch_id: string | null;
  batch_index: number | null;
  kind: "query" | "rollback";
  of_run: string | null;
  retry_of: string | null;
  submitted_by: string | null;
  status: Status;
  waiting_for: string | null;
  waiting_level: BudgetLevel | null;
  stop_reason: StopReason | null;
  priority: number;
  attempt: number;
  last_seq: number;
  steps: number;
  iterations: number;
  cost_nanos: number;
  cost_unknown: boolean;
  input_tokens: number;
  output_tokens: number;
  cached_tokens: number;
  cancel_requested_at: Date | null;
  available_at: Date;
  set_aside_at: Date | null;
  model: string | null;
  active_ms: number;
  metadata: Record<string, string>;
  created_at: Date;
  started_at: Date | null;
  finished_at: Date | null;
}

const runColumns = [
  "id",
  "tenant",
  "agent",
  "user_id",
  "batch_id",
  "kind",
  "of_run",
  "retry_of",
  "submitted_by",
  "status",
  "waiting_for",
  "waiting_level",
  "stop_reason",
  "priority",
  "attempt",
  "last_seq",
  "steps",
  "iterations",
  "cost_nanos",
  "cost_unknown",
  "input_tokens",
  "output_tokens",
  "cached_tokens",
  "cancel_requested_at",
  "available_at",
  "set_aside_at",
  "model",
  "active_ms",
  "metadata",
  "created_at",
  "started_at",
  "finished_at",
] as const;

function toRun(row: RunRow): Run {
  return {
    id: row.id,
    tenant: row.tenant,
    agent: row.agent,
    userId: row.user_id,
    batchId: row.batch_id,
    kind: row.kind,
    ofRun: row.of_run,
    retryOf: row.retry_of,
    submittedBy: row.submitted_by,
    status: row.status,
    waitingFor: row.waiting_for,
    waitingLevel: row.waiting_level,
    stopReason: row.stop_reason,
    priority: row.priority,
    attempt: row.attempt,
    lastSeq: row.last_seq,
    steps: row.steps,
    iterations: row.iterations,
    costUsd: row.cost_unknown ? null : toUsd(row.cost_nanos),
    tokens: {
      input: row.input_tokens,
      output: row.output_tokens,
      cached: row.cached_tokens,
      total: row.input_tokens + row.output_tokens,
    },
    cancelRequested: row.cancel_requested_at !== null,
    availableAt: row.available_at,
    setAsideAt: row.status === "queued" ? row.set_aside_at : null,
    model: row.model,
    activeMs: row.active_ms,
    metadata: row.metadata,
    createdAt: row.created_at,
    startedAt: row.started_at,
    finishedAt: row.finished_at,
  };
}

/** A query builder without a connection: it only compiles; statements go through the caller's pool. */
const build = new Kysely<{ runs: RunRow }>({
  dialect: {
    createAdapter: () => new PostgresAdapter(),
    createDriver: () => new DummyDriver(),
    createIntrospector: (db) => new PostgresIntrospector(db),
    createQueryCompiler: () => new PostgresQueryCompiler(),
  },
});

/** One run, or null when the tenant has none of that id. */
export async function readRun(db: Queryable, tenant: string, id: string): Promise<Run | null> {
  const { rows } = await db.query<RunRow>(`SELECT ${runColumns.join(", ")} FROM runs WHERE tenant = $1 AND id = $2`, [
    tenant,
    id,
  ]);
  return rows[0] ? toRun(rows[0]) : null;
}

export interface RunFilter {
  status?: Status[];
  agent?: string;
  userId?: string;
  /** All of these keys with these values. */
  metadata?: Record<string, string>;
  createdAfter?: Date;
  createdBefore?: Date;
  /** Runs before this id (uuid), for the next page. */
  before?: string;
  limit: number;
}

/**
 * A tenant's runs, newest first.
 * @throws DroverError `invalid_input` when it would take too long: nearly none of very many runs match
 */
export async function listRuns(pool: Pool, tenant: string, filter: RunFilter): Promise<Run[]> {
  let query = build
    .selectFrom("runs")
    .select(runColumns)
    .where("tenant", "=", tenant)
    .orderBy("id", "desc")
    .limit(filter.limit);
  if (filter.status) query = query.where("status", "in", filter.status);
  if (filter.agent !== undefined) query = query.where("agent", "=", filter.agent);
  if (filter.userId !== undefined) query = query.where("user_id", "=", filter.userId);
  if (filter.metadata) {
    // The index holds rows with metadata only, and the planner must see that this asks for one.
    const wanted = JSON.stringify(filter.metadata);
    query = query.where(sql<boolean>`metadata @> ${wanted}::jsonb AND metadata <> '{}'`);
  }
  const { createdAfter, createdBefore } = filter;
  if (createdAfter)
    query = query.where("created_at", ">", createdAfter).where("id", ">=", idFloor(createdAfter.getTime() - skewMs));
  if (createdBefore)
    query = query.where("created_at", "<", createdBefore).where("id", "<", idFloor(createdBefore.getTime() + skewMs));
  if (filter.before !== undefined) query = query.where("id", "<", filter.before);
  const { sql: text, parameters } = query.compile();
  const read = (tx: Queryable) => tx.query<RunRow>(`${plannedAnew} ${text}`, [...parameters]);
  try {
    const { rows } = await bounded(pool, listMs, read);
    return rows.map(toRun);
  } catch (error) {
    if (!(error instanceof TooLongError)) throw error;
    const message = `is needed, or must be later: the list took longer than ${listMs} ms, since hardly any run matches`;
    throw new DroverError("invalid_input", "The list reads too much: narrow the time.", {
      errors: [{ path: "created_after", message }],
      cause: error,
    });
  }
}

/** How long a list may take. */
const listMs = 300;
/** Ids are made by the clocks of API processes, `created_at` by the database's: so far they may be apart. */
const skewMs = 600_000;

/** The lowest UUIDv7 of this moment, ms since 1970. */
function idFloor(ms: number): string {
  const hex = Math.min(Math.max(0, ms), 2 ** 48 - 1)
    .toString(16)
    .padStart(12, "0");
  return `${hex.slice(0, 8)}-${hex.slice(8)}-0000-0000-000000000000`;
}

/** What a run that is not final shows: the type of its last event and the text so far. */
export async function readProgress(
  db: Queryable,
  blobs: Blobs,
  run: Pick<Run, "tenant" | "id" | "lastSeq">,
): Promise<{ lastEvent: string | null; partialOutput: string | null }> {
  const { rows } = await db.query<{ last_event: string | null; seq: number | null }>(
    `SELECT (SELECT type FROM run_events WHERE run_id = r.id AND seq = $2) AS last_event,
            (SELECT seq FROM run_events WHERE run_id = r.id AND type IN ('model.partial', 'model.call') ORDER BY seq DESC LIMIT 1) AS seq
     FROM runs r WHERE r.id = $1 AND r.tenant = $3`,
    [run.id, run.lastSeq, run.tenant],
  );
  if (!rows[0]) return { lastEvent: null, partialOutput: null };
  const { last_event, seq } = rows[0];
  if (seq === null) return { lastEvent: last_event, partialOutput: null };
  const [event] = await readLog(db, blobs, { tenant: run.tenant, runId: run.id, after: seq - 1, limit: 1 });
  const shown = event && withoutHeld(event);
  const text = shown && "text" in shown.data ? String(shown.data.text) : "";
  return { lastEvent: last_event, partialOutput: text === "" ? null : text };
}

export interface Outcome {
  result: RunResult;
  error: FinalData["error"];
}

/**
 * The result of a final run, folded from its log; null while it is not final. A cancelled run shows what it had. Of one whose log is no longer kept only the
 * totals are left.
 */
export async function readOutcome(db: Queryable, blobs: Blobs, run: Run): Promise<Outcome | null> {
  if (!isFinal(run.status)) return null;
  return outcomeOf(run, await readLog(db, blobs, { tenant: run.tenant, runId: run.id }));
}

function outcomeOf(run: Run, events: LogEvent[]): Outcome {
  if (events.length === 0) return expiredOutcome(run);
  const state = fold(events);
  const last = events.at(-1)!.data as FinalData;
  const data: FinalData = { ...last, output: last.output ?? latestText(state) };
  const about = { taskId: toWireId("run", run.id), durationMs: run.activeMs, metadata: run.metadata };
  const cancelled = { code: "cancelled", message: "The run was cancelled." } as const;
  return {
    result: resultOf(state, { status: run.status as FinalStatus, data }, about),
    error: run.status === "cancelled" ? (cancelled as never) : data.error,
  };
}

export interface Batch {
  id: string;
  tenant: string;
  status: "running" | "completed" | "cancelled";
  total: number;
  counts: Record<Status, number>;
  /** Sum over all items; null when an item's cost is not known. */
  costUsd: number | null;
  metadata: Record<string, string>;
  cancelRequested: boolean;
  createdAt: Date;
  finishedAt: Date | null;
}

/** A batch with its progress and cost, counted from its runs. */
export async function readBatch(db: Queryable, tenant: string, id: string): Promise<Batch | null> {
  const { rows } = await db.query<{
    status: Batch["status"];
    total: number;
    metadata: Record<string, string>;
    cancel_requested_at: Date | null;
    created_at: Date;
    finished_at: Date | null;
  }>(
    "SELECT status, total, metadata, cancel_requested_at, created_at, finished_at FROM batches WHERE tenant = $1 AND id = $2",
    [tenant, id],
  );
  const row = rows[0];
  if (!row) return null;
  const children = await db.query<{ status: Status; n: number; cost: number; unknown: boolean }>(
    `SELECT status, count(*) AS n, sum(cost_nanos) AS cost, bool_or(cost_unknown) AS unknown
     FROM runs WHERE tenant = $1 AND batch_id = $2 GROUP BY status`,
    [tenant, id],
  );
  const counts = { queued: 0, running: 0, waiting: 0, completed: 0, partial: 0, failed: 0, cancelled: 0 };
  let nanos = 0;
  let unknown = false;
  for (const child of children.rows) {
    counts[child.status] = child.n;
    nanos += child.cost;
    unknown ||= child.unknown;
  }
  return {
    id,
    tenant,
    status: row.status,
    total: row.total,
    counts,
    costUsd: unknown ? null : toUsd(nanos),
    metadata: row.metadata,
    cancelRequested: row.cancel_requested_at !== null,
    createdAt: row.created_at,
    finishedAt: row.finished_at,
  };
}

export interface BatchItem {
  index: number;
  run: Run;
  /** null: it is no longer kept. */
  query: string | null;
  outcome: Outcome | null;
}

/** Items of a batch in their order, from `afterIndex` (exclusive). */
export async function readBatchItems(
  db: Queryable,
  blobs: Blobs,
  tenant: string,
  page: { batchId: string; afterIndex: number; limit: number },
): Promise<BatchItem[]> {
  const { rows } = await db.query<RunRow>(
    `SELECT ${runColumns.join(", ")}, batch_index FROM runs
     WHERE tenant = $1 AND batch_id = $2 AND batch_index > $3 ORDER BY batch_index LIMIT $4`,
    [tenant, page.batchId, page.afterIndex, page.limit],
  );
  const logs = await readLogs(db, blobs, { tenant, runIds: rows.map((row) => row.id) });
  return rows.map((row) => {
    const run = toRun(row);
    const events = logs.get(run.id) ?? [];
    const [first] = events;
    return {
      index: row.batch_index!,
      run,
      query: first?.type === "run.queued" ? first.data.query : null,
      outcome: isFinal(run.status) ? outcomeOf(run, events) : null,
    };
  });
}

/** What is known of a run without its log. */
function expiredOutcome(run: Run): Outcome {
  const code = run.status === "cancelled" ? "cancelled" : run.stopReason;
  const message = "What it said and did is no longer kept.";
  const status = { completed: "success", partial: "partial", failed: "error", cancelled: "error" } as const;
  return {
    result: {
      task_id: toWireId("run", run.id),
      status: status[run.status as FinalStatus],
      output: null,
      stop_reason: run.stopReason,
      cost_usd: run.costUsd,
      tokens_used: run.tokens,
      iterations: run.iterations,
      duration_seconds: Math.round(run.activeMs) / 1000,
      tools_called: [],
      tool_calls: [],
      contents_expired: true,
      metadata: run.metadata,
    },
    error: code === null ? null : ({ code, message } as never),
  };
}

/** @throws DroverError `contents_expired` for a final run whose log is no longer kept */
export async function requireContents(db: Queryable, run: Pick<Run, "id" | "status">): Promise<void> {
  if (!isFinal(run.status)) return;
  const { rowCount } = await db.query("SELECT FROM run_events WHERE run_id = $1 AND seq = 1", [run.id]);
  if (rowCount === 0)
    throw new DroverError(
      "contents_expired",
      "The run ended longer ago than contents are kept: its log is gone. Its status, times, tokens and cost are not.",
    );
}
