/**
 * Signs checkpoints of what is chained: after so many entries of a tenant, and so long after the first one that has none. Part of the
 * sequencer; what a process leaves without one when it ends, its successor signs.
 */
import type { KeyObject } from "node:crypto";
import { signCheckpoint } from "@drover/harness";
import type { Queryable } from "@drover/storage";
import { tenantsOf } from "./read.ts";

export interface SigningOptions {
  /** Ed25519, private. */
  key: KeyObject;
  /** A checkpoint after so many entries of a tenant, at the end of the batch that reaches it. */
  everyEntries: number;
  /** No entry stays without one for longer, ms. */
  withinMs: number;
}

/** Where a tenant's chain ends. */
export interface Head {
  tenant: string;
  seq: number;
  hash: Buffer;
}

/** A head with `entries` that no checkpoint covers, the first of them seen at `since` (monotonic ms). */
interface Unsigned extends Head {
  entries: number;
  since: number;
}

export class CheckpointWriter {
  readonly #options: SigningOptions;
  readonly #unsigned: Map<string, Unsigned>;

  private constructor(options: SigningOptions, unsigned: Unsigned[]) {
    this.#options = options;
    this.#unsigned = new Map(unsigned.map((head) => [head.tenant, head]));
  }

  /** Begins with what was left without a checkpoint. */
  static async open(db: Queryable, options: SigningOptions): Promise<CheckpointWriter> {
    const { rows } = await db.query<Head & { entries: number }>(
      `WITH RECURSIVE ${tenantsOf("audit_chain", "chained")}
       SELECT head.tenant, head.seq, head.hash, head.seq - coalesce(signed.seq, 0) AS entries
       FROM chained
       CROSS JOIN LATERAL (SELECT * FROM audit_chain c WHERE c.tenant = chained.tenant ORDER BY seq DESC LIMIT 1) head
       LEFT JOIN LATERAL (
         SELECT seq FROM audit_checkpoints s WHERE s.tenant = chained.tenant ORDER BY seq DESC LIMIT 1
       ) signed ON true
       WHERE head.seq > coalesce(signed.seq, 0)`,
    );
    const since = performance.now();
    return new CheckpointWriter(
      options,
      rows.map((head) => ({ ...head, since })),
    );
  }

  /** A tenant's chain has `entries` more, and ends here. */
  add(head: Head, entries: number): void {
    const before = this.#unsigned.get(head.tenant);
    this.#unsigned.set(head.tenant, {
      ...head,
      entries: (before?.entries ?? 0) + entries,
      since: before?.since ?? performance.now(),
    });
  }

  /** Signs and stores what is due: one statement, or two. Repeats what failed at the next call. */
  async write(db: Queryable): Promise<void> {
    const { key, everyEntries, withinMs } = this.#options;
    const longAgo = performance.now() - withinMs;
    const due = [...this.#unsigned.values()].filter((head) => head.entries >= everyEntries || head.since <= longAgo);
    if (due.length === 0) return;
    const { rows } = await db.query<{ at: Date }>("SELECT clock_timestamp() AS at");
    const at = rows[0]!.at.toISOString();
    const signed = due.map(({ tenant, seq, hash }) =>
      signCheckpoint({ tenant, seq, hash: hash.toString("hex"), at }, key),
    );
    await db.query(
      `INSERT INTO audit_checkpoints (tenant, seq, hash, at, key_id, signature)
       SELECT tenant, seq, hash, $1, key_id, signature
       FROM unnest($2::text[], $3::bigint[], $4::bytea[], $5::text[], $6::bytea[]) AS i(tenant, seq, hash, key_id, signature)
       ON CONFLICT DO NOTHING`,
      [
        at,
        signed.map((one) => one.tenant),
        signed.map((one) => one.seq),
        due.map((one) => one.hash),
        signed.map((one) => one.key_id),
        signed.map((one) => Buffer.from(one.signature, "base64")),
      ],
    );
    for (const { tenant } of due) this.#unsigned.delete(tenant);
  }
}
