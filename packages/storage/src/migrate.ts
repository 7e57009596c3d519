/** Brings a database to this version's schema. Forward only; safe when several processes start at once (advisory lock). */
import { Kysely, PostgresDialect } from "kysely";
import { type Migration, Migrator } from "kysely/migration";
import pg from "pg";
import { initial } from "./migrations/0001_initial.ts";
import { door } from "./migrations/0002_door.ts";
import { liveness } from "./migrations/0003_liveness.ts";
import { events } from "./migrations/0004_events.ts";
import { retry } from "./migrations/0005_retry.ts";
import { ensurePartitions } from "./partitions.ts";

const migrations: Record<string, Migration> = {
  "0001_initial": initial,
  "0002_door": door,
  "0003_liveness": liveness,
  "0004_events": events,
  "0005_retry": retry,
};

/** The newest migration this code knows: what `/ready` compares the database with. */
export const latestMigration = Object.keys(migrations).sort().at(-1)!;

/**
 * Runs all missing migrations over one direct connection (`url` must not be a transaction pooler) and makes the partitions of
 * the coming months. Returns the names it ran. Each migration is a transaction: a crash leaves the last whole one.
 */
export async function migrate(url: string): Promise<string[]> {
  const pool = new pg.Pool({ connectionString: url, max: 1 });
  // The next statement says it too; without a listener it would end the process.
  pool.on("error", () => {});
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  try {
    const { error, results } = await new Migrator({
      db,
      provider: { getMigrations: async () => migrations },
    }).migrateToLatest();
    if (error) throw error;
    await ensurePartitions(pool);
    return (results ?? []).map((result) => result.migrationName);
  } finally {
    await db.destroy();
  }
}

/** Whether the database stands at this code's schema or a later one. */
export async function isMigrated(pool: pg.Pool): Promise<boolean> {
  const { rows } = await pool.query<{ ok: boolean }>(
    `SELECT to_regclass('kysely_migration') IS NOT NULL AND EXISTS (
       SELECT FROM information_schema.tables WHERE table_name = 'runs' AND table_schema = current_schema()) AS ok`,
  );
  if (!rows[0]?.ok) return false;
  const found = await pool.query("SELECT 1 FROM kysely_migration WHERE name = $1", [latestMigration]);
  return found.rowCount === 1;
}
