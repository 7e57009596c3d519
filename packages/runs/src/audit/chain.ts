/**
 * The audit trail's part of the sequencer's pass: committed entries get their place and are hashed onto their tenant's chain. A batch is placed, chained
 * and taken out of the inbox by one statement.
 */
import { chainHash, noHash } from "@drover/harness";
import type { Transaction } from "@drover/storage";
import { batchSize, recentSeconds } from "../order/inbox.ts";
import type { CheckpointWriter, Head } from "./checkpoints.ts";
import { type EntryRow, entryColumns, placeEntry } from "./read.ts";

type InboxRow = { entry_id: string; is_chained: boolean } & (EntryRow | { id: null });

/**
 * Chains the inbox's next entries after this id (null: those of the last seconds). Returns the last one's id, or null when there are
 * no more. An entry that is chained already only leaves the inbox; one that no longer exists stays there, for `verify` to find.
 */
export async function chainBatch(
  client: Transaction,
  after: string | null,
  checkpoints: CheckpointWriter | undefined,
): Promise<string | null> {
  const { rows } = await client.query<InboxRow>(
    `SELECT u.entry_id, c.entry_id IS NOT NULL AS is_chained, ${entryColumns}
       FROM (SELECT entry_id FROM audit_unchained
             WHERE entry_id > coalesce($1::uuid, uuidv7_floor(now() - $2 * interval '1 second'))
             ORDER BY entry_id LIMIT $3) u
       LEFT JOIN audit_entries e ON e.id = u.entry_id
       LEFT JOIN audit_chain c ON c.entry_id = u.entry_id
       ORDER BY u.entry_id`,
    [after, recentSeconds, batchSize],
  );
  const entries = rows.filter((row): row is InboxRow & EntryRow => row.id !== null && !row.is_chained);
  const done = rows.filter((row) => row.id !== null).map((row) => row.entry_id);
  if (done.length > 0) {
    const heads = await readHeads(client, [...new Set(entries.map((entry) => entry.tenant))]);
    const placed = entries.map((entry) => place(entry, heads));
    await client.query(
      `WITH chained AS (
          INSERT INTO audit_chain (tenant, seq, entry_id, hash)
          SELECT * FROM unnest($1::text[], $2::bigint[], $3::uuid[], $4::bytea[])
        )
        DELETE FROM audit_unchained WHERE entry_id = ANY($5::uuid[])`,
      [
        placed.map((entry) => entry.tenant),
        placed.map((entry) => entry.seq),
        placed.map((entry) => entry.id),
        placed.map((entry) => entry.hash),
        done,
      ],
    );
    if (checkpoints) for (const [tenant, head] of heads) checkpoints.add({ tenant, ...head }, head.added);
  }
  await checkpoints?.write(client);
  return rows.length < batchSize ? null : rows.at(-1)!.entry_id;
}

interface GrowingHead extends Omit<Head, "tenant"> {
  added: number;
}

/** Where each tenant's chain ends. Only the leader adds to it. */
async function readHeads(client: Transaction, tenants: string[]): Promise<Map<string, GrowingHead>> {
  const { rows } = await client.query<Head>(
    `SELECT t.tenant, coalesce(c.seq, 0) AS seq, c.hash FROM unnest($1::text[]) AS t(tenant)
       LEFT JOIN LATERAL (SELECT seq, hash FROM audit_chain c WHERE c.tenant = t.tenant ORDER BY seq DESC LIMIT 1) c ON true`,
    [tenants],
  );
  return new Map(rows.map(({ tenant, seq, hash }) => [tenant, { seq, hash: hash ?? noHash, added: 0 }]));
}

/** The entry at the end of its tenant's chain, which it becomes. */
function place(entry: EntryRow, heads: Map<string, GrowingHead>): Head & { id: string } {
  const head = heads.get(entry.tenant)!;
  head.seq++;
  head.added++;
  head.hash = chainHash(head.hash, placeEntry(entry, head.seq));
  return { tenant: entry.tenant, id: entry.id, seq: head.seq, hash: head.hash };
}
