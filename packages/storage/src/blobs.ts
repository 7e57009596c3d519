/**
 * Where large content lives: beside the log, found by its hash. Written before the event that points to it, so a crash in
 * between leaves an unused blob and never a dangling pointer.
 */
import { createHash } from "node:crypto";
import type { Queryable } from "./database.ts";

export interface Blobs {
  /** Stores text for a tenant and returns its SHA-256 in hex. Storing the same text again keeps it longer: retention goes by the last time. */
  put(tenant: string, content: string): Promise<string>;
  /** The texts of these hashes that the tenant has. */
  get(tenant: string, hashes: string[]): Promise<Map<string, string>>;
}

/** Blobs in the same Postgres: the default, durable with the log and visible to every process. */
export function postgresBlobs(db: Queryable): Blobs {
  return {
    async put(tenant, content) {
      const hash = createHash("sha256").update(content).digest("hex");
      await db.query(
        `INSERT INTO blobs AS b (tenant, hash, content) VALUES ($1, $2, $3)
         ON CONFLICT (tenant, hash) DO UPDATE SET created_at = now() WHERE b.created_at < now() - interval '1 day'`,
        [tenant, hash, content],
      );
      return hash;
    },
    async get(tenant, hashes) {
      const { rows } = await db.query<{ hash: string; content: string }>(
        "SELECT hash, content FROM blobs WHERE tenant = $1 AND hash = ANY($2::text[])",
        [tenant, hashes],
      );
      return new Map(rows.map((row) => [row.hash, row.content]));
    },
  };
}
