/** Reading the audit trail: pages, whole trails for export and verification, checkpoints, and what stands outside of the chain. */
import type { ChainedEntry, Checkpoint, PlacedEntry } from "@drover/harness";
import { toWireId } from "@drover/protocol";
import type { Queryable } from "@drover/storage";

/** Columns of an entry `e`, times and JSON as text: what is hashed does not depend on a driver's parsing. */
export const entryColumns = `e.id, e.tenant, e.actor, e.action, e.run_id, e.data::text AS data,
  to_char(e.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at`;

export interface EntryRow {
  id: string;
  tenant: string;
  actor: string;
  action: string;
  run_id: string | null;
  data: string;
  at: string;
}

export const placeEntry = (row: EntryRow, seq: number): PlacedEntry => ({
  tenant: row.tenant,
  seq,
  id: row.id,
  at: row.at,
  actor: row.actor,
  action: row.action,
  run_id: row.run_id === null ? null : toWireId("run", row.run_id),
  data: JSON.parse(row.data),
});

export interface AuditFilter {
  /** Entries after this place. */
  after: number;
  limit: number;
  /** Uuid. */
  runId?: string;
  action?: string;
  actor?: string;
}

/** A page of a tenant's chained entries, oldest first. What was written a moment ago has no place yet, and comes later. */
export async function readAudit(db: Queryable, tenant: string, filter: AuditFilter): Promise<ChainedEntry[]> {
  const { rows } = await db.query<EntryRow & { seq: number; hash: Buffer }>(
    `SELECT c.seq, c.hash, ${entryColumns}
     FROM audit_chain c JOIN audit_entries e ON e.id = c.entry_id AND e.tenant = c.tenant
     WHERE c.tenant = $1 AND c.seq > $2 AND ($3::uuid IS NULL OR e.run_id = $3)
       AND ($4::text IS NULL OR e.action = $4) AND ($5::text IS NULL OR e.actor = $5)
     ORDER BY c.seq LIMIT $6`,
    [tenant, filter.after, filter.runId ?? null, filter.action ?? null, filter.actor ?? null, filter.limit],
  );
  return rows.map((row) => ({ ...placeEntry(row, row.seq), hash: row.hash.toString("hex") }));
}

const trailPage = 1000;

/** A tenant's whole trail, page by page as it is asked for: memory does not grow with it. */
export async function* readTrail(db: Queryable, tenant: string): AsyncGenerator<ChainedEntry> {
  for (let after = 0; ; ) {
    const page = await readAudit(db, tenant, { after, limit: trailPage });
    yield* page;
    if (page.length < trailPage) return;
    after = page.at(-1)!.seq;
  }
}

/** The tenants of a table whose key begins with `tenant`, a step of the index for each. Part of a `WITH RECURSIVE`. */
export const tenantsOf = (table: "audit_chain" | "audit_checkpoints", name: string): string =>
  `${name} AS (
     (SELECT tenant FROM ${table} ORDER BY tenant LIMIT 1)
     UNION ALL
     SELECT (SELECT tenant FROM ${table} t WHERE t.tenant > ${name}.tenant ORDER BY tenant LIMIT 1)
     FROM ${name} WHERE tenant IS NOT NULL
   )`;

/** Every tenant that has entries, or had some when a checkpoint was signed, sorted. */
export async function listAuditTenants(db: Queryable): Promise<string[]> {
  const { rows } = await db.query<{ tenant: string }>(
    `WITH RECURSIVE ${tenantsOf("audit_chain", "chained")}, ${tenantsOf("audit_checkpoints", "signed")}
     SELECT tenant FROM (
       SELECT tenant FROM chained UNION SELECT tenant FROM signed UNION SELECT tenant FROM audit_unchained
     ) t WHERE tenant IS NOT NULL ORDER BY tenant COLLATE "C"`,
  );
  return rows.map((row) => row.tenant);
}

/** A tenant's signed checkpoints, or those of all, oldest first. */
export async function readCheckpoints(db: Queryable, tenant?: string): Promise<Checkpoint[]> {
  const { rows } = await db.query<Checkpoint>(
    `SELECT tenant, seq, encode(hash, 'hex') AS hash, key_id, encode(signature, 'base64') AS signature,
            to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS at
     FROM audit_checkpoints WHERE $1::text IS NULL OR tenant = $1 ORDER BY tenant, seq`,
    [tenant ?? null],
  );
  return rows.map((row) => ({ ...row, signature: row.signature.replaceAll("\n", "") }));
}
