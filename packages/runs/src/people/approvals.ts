/**
 * What people are asked, and their answers. A question is made by the run's owner with its event (`log.ts`); a decision locks the run, closes
 * the question, appends its event, and moves the run on when nothing is open: one transaction, so that it is decided exactly once.
 */
import type { ApprovalDecision, ApprovalSubject } from "@drover/harness";
import { decisionEntry, statusAfter } from "@drover/harness/worker";
import { DroverError, toWireId } from "@drover/protocol";
import { type Blobs, type Pool, type Queryable, type Transaction, transaction } from "@drover/storage";
import { recordAudit } from "../audit/entries.ts";
import { appendLocked, encodeData } from "../log/append.ts";
import type { Moved } from "../moves/moved.ts";
import { resumeRuns } from "../moves/park.ts";
import { isFinal, type Status } from "../moves/state.ts";
import { type Lately, since } from "../moves/wake.ts";

export interface ApprovalRecord {
  id: string;
  tenant: string;
  runId: string;
  agent: string;
  /** The id of the key that submitted the run. */
  submittedBy: string | null;
  subject: ApprovalSubject;
  toolName: string | null;
  input: unknown;
  reason: string;
  hash: string;
  status: "pending" | "approved" | "rejected" | "expired";
  onExpiry: "reject" | "fail";
  requestedAt: Date;
  expiresAt: Date;
  decidedAt: Date | null;
  decidedBy: string | null;
  decision: ApprovalDecision | null;
}

interface ApprovalRow {
  id: string;
  tenant: string;
  run_id: string;
  agent: string;
  submitted_by: string | null;
  subject: ApprovalSubject;
  tool_name: string | null;
  input: unknown;
  reason: string;
  hash: string;
  status: ApprovalRecord["status"];
  on_expiry: "reject" | "fail";
  requested_at: Date;
  expires_at: Date;
  decided_at: Date | null;
  decided_by: string | null;
  decision: ApprovalDecision | null;
}

const columns = `a.id, a.tenant, a.run_id, r.agent, r.submitted_by, a.subject, a.tool_name, a.input, a.reason, a.hash, a.status, a.on_expiry,
  a.requested_at, a.expires_at, a.decided_at, a.decided_by, a.decision`;

function toRecord(row: ApprovalRow): ApprovalRecord {
  return {
    id: row.id,
    tenant: row.tenant,
    runId: row.run_id,
    agent: row.agent,
    submittedBy: row.submitted_by,
    subject: row.subject,
    toolName: row.tool_name,
    input: row.input,
    reason: row.reason,
    hash: row.hash,
    status: row.status,
    onExpiry: row.on_expiry,
    requestedAt: row.requested_at,
    expiresAt: row.expires_at,
    decidedAt: row.decided_at,
    decidedBy: row.decided_by,
    decision: row.decision,
  };
}

/** One question of a tenant; null: there is none of that id. */
export async function readApproval(db: Queryable, tenant: string, id: string): Promise<ApprovalRecord | null> {
  const { rows } = await db.query<ApprovalRow>(
    `SELECT ${columns} FROM approvals a JOIN runs r ON r.id = a.run_id WHERE a.tenant = $1 AND a.id = $2`,
    [tenant, id],
  );
  return rows[0] ? toRecord(rows[0]) : null;
}

export interface ApprovalFilter {
  runId?: string;
  status?: ApprovalRecord["status"];
  /** Older than this one. */
  before?: string;
  limit: number;
}

/** Questions of a tenant, newest first. */
export async function listApprovals(db: Queryable, tenant: string, filter: ApprovalFilter): Promise<ApprovalRecord[]> {
  const { rows } = await db.query<ApprovalRow>(
    `SELECT ${columns} FROM approvals a JOIN runs r ON r.id = a.run_id
     WHERE a.tenant = $1 AND ($2::uuid IS NULL OR a.run_id = $2) AND ($3::text IS NULL OR a.status = $3) AND ($4::uuid IS NULL OR a.id < $4)
     ORDER BY a.id DESC LIMIT $5`,
    [tenant, filter.runId ?? null, filter.status ?? null, filter.before ?? null, filter.limit],
  );
  return rows.map(toRecord);
}

/** `resumed`: the run goes on, wake it. */
export interface Decided {
  runId: string;
  resumed: Moved | null;
}

/**
 * Decides a question; `decision` was checked against it (`checkDecision`). @throws DroverError `conflict` when somebody was quicker or its time is up, `not_found`
 */
export async function decideApproval(
  pool: Pool,
  blobs: Blobs,
  asked: Pick<ApprovalRecord, "tenant" | "id" | "runId" | "hash" | "toolName">,
  decision: ApprovalDecision,
): Promise<Decided> {
  const { tenant, id, runId, hash, toolName } = asked;
  const approval_id = toWireId("approval", id);
  const data = await encodeData(blobs, tenant, { approval_id, ...decision });
  return await transaction(pool, async (tx) => {
    const run = await lockRun(tx, tenant, runId);
    if (!run) throw new DroverError("not_found", "There is no such approval.");
    const { rows } = await tx.query<{ status: ApprovalRecord["status"] }>(
      `UPDATE approvals SET status = $3, decided_at = clock_timestamp(), decided_by = $4, decision = $5
       WHERE tenant = $1 AND id = $2 AND status = 'pending' AND (expires_at > now() OR $6) RETURNING status`,
      [
        tenant,
        id,
        statusAfter[decision.decision],
        decision.by,
        JSON.stringify(decision),
        decision.decision === "expire",
      ],
    );
    if (rows.length === 0 || isFinal(run.status)) throw await decidedAlready(tx, tenant, id);
    await appendLocked(tx, runId, { type: "approval.decided", data });
    const about = { approval_id, hash, ...(toolName !== null && { tool_name: toolName }) };
    await recordAudit(tx, [{ tenant, runId, ...decisionEntry(about, decision) }]);
    // One that stands at a cap goes on as well: what was approved may need nothing of what is capped.
    const [resumed] = await resumeRuns(tx, [runId]);
    return { runId, resumed: resumed ?? null };
  });
}

async function decidedAlready(db: Queryable, tenant: string, id: string): Promise<DroverError> {
  const { rows } = await db.query<{ status: string; decided_by: string | null }>(
    "SELECT CASE status WHEN 'pending' THEN 'expired' ELSE status END AS status, decided_by FROM approvals WHERE tenant = $1 AND id = $2",
    [tenant, id],
  );
  const { status = "expired", decided_by } = rows[0] ?? {};
  return new DroverError("conflict", `It is ${status} already${decided_by ? `, by ${decided_by}` : ""}.`);
}

/** Questions whose time is up, of any tenant, oldest first. */
export async function findExpired(db: Queryable, most: number, lately: Lately = null): Promise<ApprovalRecord[]> {
  const { rows } = await db.query<ApprovalRow>(
    `SELECT ${columns} FROM approvals a JOIN runs r ON r.id = a.run_id WHERE a.status = 'pending' AND a.expires_at <= now() AND ${since("a.expires_at", "$2")}
     ORDER BY a.expires_at LIMIT $1`,
    [most, lately],
  );
  return rows.map(toRecord);
}

/** The tenant's run, locked until the transaction ends. */
export async function lockRun(
  tx: Transaction,
  tenant: string,
  runId: string,
): Promise<{ status: Status; waitingFor: string | null } | null> {
  const { rows } = await tx.query<{ status: Status; waitingFor: string | null }>(
    'SELECT status, waiting_for AS "waitingFor" FROM runs WHERE tenant = $1 AND id = $2 FOR UPDATE',
    [tenant, runId],
  );
  return rows[0] ?? null;
}
