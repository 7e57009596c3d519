/** Verifying the trail where it is kept: the chains themselves, their checkpoints, and that no entry stands outside of both chain and inbox. */
import type { KeyObject } from "node:crypto";
import { type Checkpoint, type VerifiedChain, verifyChain } from "@drover/harness";
import type { Queryable } from "@drover/storage";
import { listAuditTenants, readCheckpoints, readTrail } from "./read.ts";

export interface VerifiedTrail extends VerifiedChain {
  /** Entries that have no place yet. */
  unchained: number;
  /** The first entry, by id, that stands nowhere although it was written, or is gone although it waits for its place. */
  stray: { id: string; message: string } | null;
}

export interface VerifyAuditOptions {
  /** One tenant's trail (default: everybody's). */
  tenant?: string;
  /** More than the database has, such as those anchored outside. Of the verified tenants. */
  checkpoints?: readonly Checkpoint[];
  publicKeys?: readonly KeyObject[];
  /** Called after each tenant. */
  onVerified?(trail: VerifiedChain): void;
}

/** Reads everything, a page at a time, while the trail grows: what comes meanwhile may be part of it or not. */
export async function verifyAudit(db: Queryable, options: VerifyAuditOptions = {}): Promise<VerifiedTrail[]> {
  const { tenant, checkpoints = [], publicKeys } = options;
  const anchored = checkpoints.filter((checkpoint) => tenant === undefined || checkpoint.tenant === tenant);
  const known = tenant === undefined ? await listAuditTenants(db) : [tenant];
  const tenants = [...new Set([...known, ...anchored.map((checkpoint) => checkpoint.tenant)])];
  const chains: VerifiedChain[] = [];
  for (const name of tenants) {
    // Before the entries: a checkpoint that is signed meanwhile may know more than was read.
    const own = await readCheckpoints(db, name);
    const lastSeqs = new Map([[name, await lastSeq(db, name)]]);
    const [chain] = await verifyChain(readTrail(db, name), {
      checkpoints: [...own, ...anchored.filter((checkpoint) => checkpoint.tenant === name)],
      lastSeqs,
      isCutKnown: (of, upTo) => isCutKnown(db, of, upTo),
      ...(publicKeys && { publicKeys }),
    });
    chains.push(chain!);
    options.onVerified?.(chain!);
  }
  const waiting = await readInbox(db, tenant);
  const outside = await readOutside(db, tenant);
  for (const name of [...waiting.keys(), ...outside.keys()])
    if (!tenants.includes(name)) {
      tenants.push(name);
      chains.push({ tenant: name, entries: 0, cut: 0, head: null, checkpoints: 0, bad: null });
    }
  return chains
    .map((chain) => {
      const inbox = waiting.get(chain.tenant);
      const id = outside.get(chain.tenant);
      const stray = id
        ? { id, message: "is in neither the chain nor the inbox: it was removed from one of them" }
        : inbox?.lost
          ? { id: inbox.lost, message: "was deleted before it had a place" }
          : null;
      return { ...chain, unchained: inbox?.entries ?? 0, stray };
    })
    .sort((a, b) => (a.tenant < b.tenant ? -1 : 1));
}

async function lastSeq(db: Queryable, tenant: string): Promise<number> {
  const { rows } = await db.query<{ seq: number }>("SELECT max(seq) AS seq FROM audit_chain WHERE tenant = $1", [
    tenant,
  ]);
  return rows[0]!.seq ?? 0;
}

/** Whether there is an entry, with a place or without one yet, that says so. */
async function isCutKnown(db: Queryable, tenant: string, upTo: number): Promise<boolean> {
  const { rowCount } = await db.query(
    "SELECT FROM audit_entries WHERE tenant = $1 AND action = 'audit.cut' AND data ->> 'up_to' = $2::bigint::text LIMIT 1",
    [tenant, upTo],
  );
  return rowCount === 1;
}

/** By tenant: how many entries wait for their place, and one that waits although it no longer exists. */
async function readInbox(
  db: Queryable,
  tenant?: string,
): Promise<Map<string, { entries: number; lost: string | null }>> {
  const { rows } = await db.query<{ tenant: string; entries: number; lost: string | null }>(
    `SELECT u.tenant, count(e.id) AS entries, min(u.entry_id::text) FILTER (WHERE e.id IS NULL) AS lost
     FROM audit_unchained u LEFT JOIN audit_entries e ON e.id = u.entry_id AND e.tenant = u.tenant
     WHERE $1::text IS NULL OR u.tenant = $1 GROUP BY u.tenant`,
    [tenant ?? null],
  );
  return new Map(rows.map((row) => [row.tenant, row]));
}

const page = 5000;

/** By tenant, its first entry that is in neither the chain nor the inbox. */
async function readOutside(db: Queryable, tenant?: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (let after = "00000000-0000-0000-0000-000000000000"; ; ) {
    const { rows } = await db.query<{ last: string | null; outside: { id: string; tenant: string }[] | null }>(
      `WITH page AS (SELECT id, tenant FROM audit_entries WHERE id > $1 ORDER BY id LIMIT $3)
       SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last,
         (SELECT json_agg(p ORDER BY p.id) FROM page p
          WHERE ($2::text IS NULL OR p.tenant = $2)
            AND NOT EXISTS (SELECT FROM audit_chain c WHERE c.entry_id = p.id AND c.tenant = p.tenant)
            AND NOT EXISTS (SELECT FROM audit_unchained u WHERE u.entry_id = p.id)) AS outside`,
      [after, tenant ?? null, page],
    );
    const { last, outside } = rows[0]!;
    for (const entry of outside ?? []) if (!found.has(entry.tenant)) found.set(entry.tenant, entry.id);
    if (last === null) return found;
    after = last;
  }
}
