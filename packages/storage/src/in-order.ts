/** Kinds of migrations: lists of statements. */
import { sql } from "kysely";
import type { Migration } from "kysely/migration";

/** One transaction: whole or not at all. */
export const inOrder = (...statements: string[]): Migration => ({
  async up(db) {
    for (const statement of statements) await sql.raw(statement).execute(db);
  },
});

/** Outside of any transaction, so that nobody waits for it. */
export interface Concurrent extends Migration {
  concurrent: true;
}

/**
 * Indexes that are made while everybody goes on writing, by their names: `{ runs_by_x: "runs (x) WHERE …" }`. One that was left half made, by a crash
 * or a failure, is made anew.
 */
export const indexes = (wanted: Record<string, string>): Concurrent => ({
  concurrent: true,
  async up(db) {
    for (const [name, on] of Object.entries(wanted)) {
      await sql.raw(`DROP INDEX CONCURRENTLY IF EXISTS ${name}`).execute(db);
      await sql.raw(`CREATE INDEX CONCURRENTLY ${name} ON ${on}`).execute(db);
    }
  },
});
