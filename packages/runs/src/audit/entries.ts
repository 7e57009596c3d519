/**
 * Writing the audit trail: an entry goes into the transaction it tells about. It has no place yet; the sequencer gives it one after
 * the commit.
 */
import type { AuditEntry } from "@drover/harness";
import { uuidv7 } from "@drover/protocol";
import { type Queryable, storableJson } from "@drover/storage";

export interface TenantEntry extends AuditEntry {
  tenant: string;
  /** Uuid of the run it is about. */
  runId: string | null;
}

/** Adds entries in one statement. Give it the transaction that does what they tell. */
export async function recordAudit(db: Queryable, entries: TenantEntry[]): Promise<void> {
  if (entries.length === 0) return;
  await db.query(
    `INSERT INTO audit_entries (id, tenant, actor, action, run_id, data)
     SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::uuid[], $6::json[])`,
    [
      entries.map(() => uuidv7()),
      entries.map((entry) => entry.tenant),
      entries.map((entry) => entry.actor),
      entries.map((entry) => entry.action),
      entries.map((entry) => entry.runId),
      entries.map((entry) => storableJson(entry.data).text),
    ],
  );
}
