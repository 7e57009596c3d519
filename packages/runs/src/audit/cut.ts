/**
 * Cutting old entries off a trail's front, at a signed checkpoint: what is left begins where that one vouches, and has an entry that says so. The database does
 * it (`audit_cut`), and refuses any other deletion.
 */
import { type Pool, type Queryable, transaction } from "@drover/storage";
import { recordAudit } from "./entries.ts";
import { listAuditTenants } from "./read.ts";

/** Entries a cut takes, as long as there is a checkpoint among them. */
const slice = 5000;

/** How many entries may be cut, and how many more are old enough and have no checkpoint behind them. */
export async function readCuttable(db: Queryable, auditDays: number): Promise<{ entries: number; unsigned: number }> {
  const { rows } = await db.query<{ entries: number; unsigned: number }>(
    `SELECT coalesce(sum(n) FILTER (WHERE signed), 0)::bigint AS entries, coalesce(sum(n) FILTER (WHERE NOT signed), 0)::bigint AS unsigned
     FROM (SELECT c.seq <= coalesce((SELECT max(s.seq) FROM audit_checkpoints s JOIN audit_chain h USING (tenant, seq)
                                     WHERE s.tenant = c.tenant AND h.entry_id < uuidv7_floor(now() - $1 * interval '1 day')), 0) AS signed, count(*) AS n
           FROM audit_chain c WHERE c.entry_id < uuidv7_floor(now() - $1 * interval '1 day') GROUP BY c.tenant, 1) t`,
    [auditDays],
  );
  return rows[0]!;
}

/** Cuts a slice off each trail that has one; how many entries are gone. */
export async function cutTrail(pool: Pool, auditDays: number): Promise<number> {
  let gone = 0;
  for (const tenant of await listAuditTenants(pool)) gone += await cutOne(pool, tenant, auditDays);
  return gone;
}

async function cutOne(pool: Pool, tenant: string, auditDays: number): Promise<number> {
  const { rows } = await pool.query<{ seq: number }>(
    `SELECT s.seq FROM (SELECT seq FROM audit_chain WHERE tenant = $1 ORDER BY seq LIMIT 1) first, audit_checkpoints s
       JOIN audit_chain c ON (c.tenant, c.seq) = (s.tenant, s.seq)
     WHERE s.tenant = $1 AND s.seq >= first.seq AND c.entry_id < uuidv7_floor(now() - $2 * interval '1 day')
     ORDER BY s.seq > first.seq + ${slice}, CASE WHEN s.seq > first.seq + ${slice} THEN s.seq ELSE -s.seq END LIMIT 1`,
    [tenant, auditDays],
  );
  const upTo = rows[0]?.seq;
  if (upTo === undefined) return 0;
  return await transaction(pool, async (tx) => {
    const cut = await tx.query<{ gone: number }>("SELECT audit_cut($1, $2) AS gone", [tenant, upTo]);
    const { gone } = cut.rows[0]!;
    await recordAudit(tx, [
      {
        tenant,
        actor: "system",
        action: "audit.cut",
        runId: null,
        data: { up_to: upTo, entries: gone, kept_days: auditDays },
      },
    ]);
    return gone;
  });
}
