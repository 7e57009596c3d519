/**
 * The durable log is written here: appends that are fenced and grouped. An append is one statement for many runs: compare the fence,
 * take the next numbers, insert. Nothing resolves before its commit; zero rows changed means this owner has lost the run.
 *
 * The fence has three parts. `epoch` and worker: nobody has claimed the run since. `last_append` (NULL at the claim): the event is newer than
 * the owner's last one, so a copy of a statement that comes through late, or a second time, changes nothing. `last_seq`: the log is at least as
 * long as the owner was told; a shorter one has lost commits in a fail-over.
 */
import type { ApprovalRequest, AuditEntry, NewEvent } from "@drover/harness";
import { toNanos } from "@drover/harness/worker";
import { fromWireId, uuidv7 } from "@drover/protocol";
import {
  type Blobs,
  briefLocks,
  createBatcher,
  type Pool,
  type Queryable,
  storableJson,
  type Transaction,
  throughOutages,
} from "@drover/storage";
import { isCapped, payAccounts } from "../money/budget-sql.ts";
import { byKey, ofAnyLength } from "../moves/moved.ts";

/** What this code reads and writes; a worker claims only runs of this version or older. */
export const logVersion = 1;

/** Content over this goes to the blob store, the event keeps its hash. */
const inlineBytes = 32_768;

/** Thrown into an owner whose run was taken over, cancelled or settled by another: abort, write nothing. */
export class LostOwnershipError extends Error {
  constructor(runId: string) {
    super(`run ${runId} is no longer owned by this worker`);
    this.name = "LostOwnershipError";
  }
}

interface AppendOp {
  runId: string;
  epoch: number;
  tenant: string;
  /** Its owner; and the highest seq that owner was told of. Without them that part of the fence is open. */
  worker?: string;
  lastSeq?: number;
  /** Whether code of users may be running for it from now on (default: as before). */
  userCode?: boolean;
  event: NewEvent;
  /** Written with it. */
  audit?: AuditEntry | undefined;
  /** It ends a model call for which money is set aside: charge the cost, give back the rest. */
  settles?: boolean;
}

interface Appended {
  seq: number;
  at: string;
  /** Somebody asked for the run to be cancelled. */
  cancelRequested: boolean;
  /** Caps around the run hold for it. */
  capped: boolean;
}

interface EncodedAppend {
  runId: string;
  epoch: number;
  worker: string | null;
  lastSeq: number;
  userCode: boolean | null;
  eventId: string;
  type: string;
  data: string;
  event: NewEvent;
  audit: string | null;
  /** The row of `approvals` that a question makes. */
  question: string | null;
  settles: boolean;
}

export type RunLogWriter = (op: AppendOp) => Promise<Appended>;

/** One batcher for a worker's appends. Repeats through an outage until `signal` aborts. */
export function createLogWriter(pool: Pool, blobs: Blobs, signal: AbortSignal): RunLogWriter {
  const enqueue = createBatcher<EncodedAppend, Appended | null>({
    key: (op) => op.runId,
    execute: (ops) => appendAll(pool, ops),
    recover: (ops) => readBack(pool, ops),
    free: (ops) =>
      areFree(
        pool,
        ops.map((op) => op.runId),
      ),
    lanes: 2,
    signal,
  });
  return async ({ runId, epoch, tenant, worker, lastSeq = 0, userCode, event, audit, settles = false }) => {
    const data = await throughOutages(() => encodeData(blobs, tenant, event.data), signal);
    const appended = await enqueue({
      runId,
      epoch,
      worker: worker ?? null,
      lastSeq,
      userCode: userCode ?? null,
      // Made at the moment of queueing: the ids of one owner rise in the order of its events.
      eventId: uuidv7(),
      type: event.type,
      data,
      event,
      audit: audit ? storableJson(audit).text : null,
      question: event.type === "approval.requested" ? storableJson(questionOf(event.data)).text : null,
      settles,
    });
    if (!appended) throw new LostOwnershipError(runId);
    return appended;
  };
}

function questionOf({ approval_id, subject, tool_name, input, reason, hash, ...rest }: ApprovalRequest) {
  const { expires_at, on_expiry } = rest;
  const id = fromWireId("approval", approval_id);
  return { id, subject, tool_name: tool_name ?? null, input: input ?? null, reason, hash, expires_at, on_expiry };
}

/** Entries of the audit trail that come with events, and have their ids. */
const auditPart = `audited AS (
       INSERT INTO audit_entries (id, tenant, actor, action, run_id, data)
       SELECT a.event_id, m.tenant, e.audit->>'actor', e.audit->>'action', m.id, e.audit->'data'
       FROM moved m, unnest(m.audits, m.event_ids) AS a(text, event_id), LATERAL (SELECT a.text::json AS audit) e
       WHERE a.text IS NOT NULL)`;

/** Questions to people that come with events. */
const questionPart = `asked AS (
       INSERT INTO approvals (id, tenant, run_id, subject, tool_name, input, reason, hash, on_expiry, expires_at)
       SELECT (q.row->>'id')::uuid, m.tenant, m.id, q.row->>'subject', q.row->>'tool_name', q.row->'input', q.row->>'reason',
              q.row->>'hash', q.row->>'on_expiry', (q.row->>'expires_at')::timestamptz
       FROM moved m, unnest(m.questions) AS t(text), LATERAL (SELECT t.text::json AS row) q WHERE t.text IS NOT NULL)`;

/** Money that was set aside for model calls which end with these events. What a call of unknown cost was allowed counts as its cost. */
const settlePart = `released AS (
       DELETE FROM budget_reservations b USING moved m WHERE m.settles AND b.run_id = m.id
       RETURNING b.*, CASE WHEN m.unknown THEN b.nanos ELSE m.cost END AS cost),
     ${payAccounts}`;

/**
 * One statement, and no join between its parts: the rows of `runs` are found by their key whatever the statistics say
 * (`coalesce` keeps the planner off the index of running runs), and each carries along what belongs to its events.
 */
async function appendAll(db: Queryable, ops: EncodedAppend[]): Promise<(Appended | null)[]> {
  const totals = ops.map((op) => totalsOf(op.event));
  const parts = [
    ...(ops.some((op) => op.audit !== null) ? [auditPart] : []),
    ...(ops.some((op) => op.question !== null) ? [questionPart] : []),
    ...(ops.some((op) => op.settles) ? [settlePart] : []),
  ];
  const { rows } = await db.query<AppendedRow>(
    `WITH ${briefLocks},
     input AS (
       SELECT id, epoch, count(*)::int AS n, sum(steps)::int AS steps, sum(iterations)::int AS iterations, sum(cost) AS cost,
              bool_or(unknown) AS unknown, sum(tin) AS tin, sum(tout) AS tout, sum(tcached) AS tcached, bool_or(settles) AS settles,
              max(worker) AS worker, max(last_seq) AS last_seq, (array_agg(user_code ORDER BY n DESC))[1] AS user_code, array_agg(event_id ORDER BY n) AS event_ids, array_agg(type ORDER BY n) AS types, array_agg(data ORDER BY n) AS datas,
              array_agg(audit ORDER BY n) AS audits, array_agg(question ORDER BY n) AS questions
       FROM brief, unnest(${ofAnyLength("$1")}, $2::int[], $3::uuid[], $4::text[], $5::text[], $6::int[], $7::int[], $8::bigint[],
                   $9::boolean[], $10::bigint[], $11::bigint[], $12::bigint[], $13::text[], $14::text[], $15::boolean[],
                   $16::text[], $17::int[], $18::boolean[])
         WITH ORDINALITY AS i(id, epoch, event_id, type, data, steps, iterations, cost, unknown, tin, tout, tcached, audit, question, settles,
                              worker, last_seq, user_code, n)
       GROUP BY id, epoch ORDER BY id),
     moved AS (
       UPDATE runs r SET last_seq = r.last_seq + i.n, last_append = i.event_ids[i.n], user_code = coalesce(i.user_code, r.user_code), steps = r.steps + i.steps, iterations = r.iterations + i.iterations,
         cost_nanos = r.cost_nanos + i.cost, cost_unknown = r.cost_unknown OR i.unknown,
         input_tokens = r.input_tokens + i.tin, output_tokens = r.output_tokens + i.tout, cached_tokens = r.cached_tokens + i.tcached,
         attempt = CASE WHEN i.steps > 0 THEN 1 ELSE r.attempt END, crashes = CASE WHEN i.steps > 0 THEN 0 ELSE r.crashes END
       FROM input i WHERE ${byKey("$1")} AND r.epoch = i.epoch AND coalesce(r.status, '') = 'running'
         AND r.worker = coalesce(i.worker::uuid, r.worker) AND r.last_seq >= i.last_seq
         AND (r.last_append IS NULL OR r.last_append < i.event_ids[1])
       RETURNING r.id, r.tenant, r.last_seq - i.n AS base, r.cancel_requested_at IS NOT NULL AS cancel, ${isCapped} AS capped,
                 clock_timestamp()::timestamptz(3) AS at, i.event_ids, i.types, i.datas, i.audits, i.questions, i.settles, i.cost, i.unknown),
     ${parts.map((part) => `${part},\n     `).join("")}logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id, at)
       SELECT m.id, m.base + e.k, e.type, e.data::json, e.event_id, m.at
       FROM moved m, unnest(m.event_ids, m.types, m.datas) WITH ORDINALITY AS e(event_id, type, data, k))
     SELECT e.event_id, (m.base + e.k)::int AS seq, m.at, m.cancel, m.capped
     FROM moved m, unnest(m.event_ids) WITH ORDINALITY AS e(event_id, k)`,
    [
      ops.map((op) => op.runId),
      ops.map((op) => op.epoch),
      ops.map((op) => op.eventId),
      ops.map((op) => op.type),
      ops.map((op) => op.data),
      totals.map((t) => t.steps),
      totals.map((t) => t.iterations),
      totals.map((t) => t.costNanos),
      totals.map((t) => t.costUnknown),
      totals.map((t) => t.input),
      totals.map((t) => t.output),
      totals.map((t) => t.cached),
      ops.map((op) => op.audit),
      ops.map((op) => op.question),
      ops.map((op) => op.settles),
      ops.map((op) => op.worker),
      ops.map((op) => op.lastSeq),
      ops.map((op) => op.userCode),
    ],
  );
  const found = appendedByEvent(rows);
  return ops.map((op) => found.get(op.eventId) ?? null);
}

interface AppendedRow {
  event_id: string;
  seq: number;
  at: Date;
  cancel: boolean;
  capped: boolean;
}

function appendedByEvent(rows: AppendedRow[]): Map<string, Appended> {
  return new Map(
    rows.map((row) => [
      row.event_id,
      { seq: row.seq, at: row.at.toISOString(), cancelRequested: row.cancel, capped: row.capped },
    ]),
  );
}

/** An event of somebody who owns nothing, such as a decision. Lock the run's row first; it must not be final. Returns its seq. */
export async function appendLocked(
  tx: Transaction,
  runId: string,
  event: { type: NewEvent["type"]; data: string },
): Promise<number> {
  const { rows } = await tx.query<{ seq: number }>(
    `WITH moved AS (UPDATE runs SET last_seq = last_seq + 1 WHERE id = $1 RETURNING id, last_seq)
     INSERT INTO run_events (run_id, seq, type, data, event_id) SELECT id, last_seq, $2, $3::json, $4 FROM moved RETURNING seq`,
    [runId, event.type, event.data, uuidv7()],
  );
  return rows[0]!.seq;
}

/**
 * Waits for whoever holds these runs' rows, in a statement of its own, so that the next one sees what they committed: a statement whose
 * connection is gone may still be at work on the server.
 */
export async function waitForWriters(db: Queryable, runIds: string[]): Promise<void> {
  await db.query("SELECT FROM runs WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE", [runIds]);
}

/** For each of these runs whether nobody holds its row. */
export async function areFree(db: Queryable, runIds: string[]): Promise<boolean[]> {
  const { rows } = await db.query<{ id: string }>(
    "SELECT id FROM runs WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED",
    [runIds],
  );
  const free = new Set(rows.map(({ id }) => id));
  return runIds.map((id) => free.has(id));
}

/** What of a batch whose answer was lost is committed all the same: found by event id. */
async function readBack(db: Queryable, ops: EncodedAppend[]): Promise<(Appended | undefined)[]> {
  await waitForWriters(
    db,
    ops.map((op) => op.runId),
  );
  const { rows } = await db.query<AppendedRow>(
    `SELECT e.event_id, e.seq, e.at, r.cancel_requested_at IS NOT NULL AS cancel, ${isCapped} AS capped
     FROM unnest($1::uuid[], $2::uuid[]) AS i(run_id, event_id)
     JOIN run_events e ON e.run_id = i.run_id AND e.event_id = i.event_id JOIN runs r ON r.id = e.run_id`,
    [ops.map((op) => op.runId), ops.map((op) => op.eventId)],
  );
  const found = appendedByEvent(rows);
  return ops.map((op) => found.get(op.eventId));
}

function totalsOf(event: NewEvent) {
  const none = { steps: 0, iterations: 0, costNanos: 0, costUnknown: false, input: 0, output: 0, cached: 0 };
  if (event.type === "tool.result") return { ...none, steps: 1 };
  if (event.type !== "model.call" && event.type !== "model.failed") return none;
  const { usage, cost_usd } = event.data;
  if (cost_usd === undefined) return none;
  return {
    ...none,
    steps: event.type === "model.call" ? 1 : 0,
    iterations: event.type === "model.call" && !event.data.wrap_up ? 1 : 0,
    costNanos: cost_usd === null ? 0 : toNanos(cost_usd),
    costUnknown: cost_usd === null,
    ...usage,
  };
}

/** An event's data as the log keeps it: JSON as written, or a pointer to it. */
export async function encodeData(blobs: Blobs, tenant: string, data: unknown): Promise<string> {
  const { text, changed } = storableJson(data);
  const marked = changed ? `${text.slice(0, -1)},"sanitized":true}` : text;
  if (marked.length <= inlineBytes / 4 || Buffer.byteLength(marked) <= inlineBytes) return marked;
  return JSON.stringify({ $blob: await blobs.put(tenant, marked), bytes: Buffer.byteLength(marked) });
}
