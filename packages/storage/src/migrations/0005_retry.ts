/** Which run a retry takes up again. */
import { sql } from "kysely";
import type { Migration } from "kysely/migration";

const statements = [
  `ALTER TABLE runs
    ADD COLUMN retry_of uuid REFERENCES runs ON DELETE SET NULL,
    ADD CONSTRAINT runs_retry_of CHECK (retry_of IS NULL OR kind = 'query')`,
  `CREATE INDEX runs_retries ON runs (retry_of) WHERE retry_of IS NOT NULL`,
];

export const retry: Migration = {
  async up(db) {
    for (const statement of statements) await sql.raw(statement).execute(db);
  },
};
