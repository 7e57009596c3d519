/** Brings a database to this version's schema. Forward only; safe when several processes start at once (advisory lock). */
import { setTimeout as delay } from "node:timers/promises";
import { Kysely, PostgresDialect } from "kysely";
import { type Migration, Migrator } from "kysely/migration";
import pg from "pg";
import type { Concurrent } from "./in-order.ts";
import { initial } from "./migrations/0001_initial.ts";
import { door } from "./migrations/0002_door.ts";
import { liveness } from "./migrations/0003_liveness.ts";
import { events } from "./migrations/0004_events.ts";
import { retry } from "./migrations/0005_retry.ts";
import { fence } from "./migrations/0006_fence.ts";
import { workerProcess } from "./migrations/0007_process.ts";
import { sessions } from "./migrations/0008_sessions.ts";
import { blame } from "./migrations/0009_blame.ts";
import { bounds } from "./migrations/0010_bounds.ts";
import { known } from "./migrations/0011_known.ts";
import { keys } from "./migrations/0012_keys.ts";
import { cut } from "./migrations/0013_cut.ts";
import { ages } from "./migrations/0014_ages.ts";
import { ripe } from "./migrations/0015_ripe.ts";
import { ripeIndexes } from "./migrations/0016_ripe_indexes.ts";
import { unripe } from "./migrations/0017_unripe.ts";
import { namedBy } from "./migrations/0018_named_by.ts";
import { claimedBy } from "./migrations/0019_claimed_by.ts";
import { revoked } from "./migrations/0020_revoked.ts";
import { ports } from "./migrations/0021_ports.ts";
import { ensurePartitions } from "./partitions.ts";

type Migrations = Record<string, Migration | Concurrent>;

export const migrations: Migrations = {
  "0001_initial": initial,
  "0002_door": door,
  "0003_liveness": liveness,
  "0004_events": events,
  "0005_retry": retry,
  "0006_fence": fence,
  "0007_process": workerProcess,
  "0008_sessions": sessions,
  "0009_blame": blame,
  "0010_bounds": bounds,
  "0011_known": known,
  "0012_keys": keys,
  "0013_cut": cut,
  "0014_ages": ages,
  "0015_ripe": ripe,
  "0016_ripe_indexes": ripeIndexes,
  "0017_unripe": unripe,
  "0018_named_by": namedBy,
  "0019_claimed_by": claimedBy,
  "0020_revoked": revoked,
  "0021_ports": ports,
};

/** The newest migration this code knows: what `/ready` compares the database with. */
export const latestMigration = Object.keys(migrations).sort().at(-1)!;

/**
 * A migration that cannot have its lock gives up after so long and tries again: whoever comes after it in the lock's queue waits no longer than
 * that, ms.
 */
const lockMs = 100;
const retryMs = 500;
/** Between two looks whether another process is done, ms. */
const turnMs = 100;
/** What holds a lock for longer than this is in the way for good. */
const patienceMs = 10 * 60_000;

/**
 * Runs all missing migrations over a direct connection (`url` must not be a transaction pooler), each in a transaction of its own or, where
 * indexes are made concurrently, in none, and makes the partitions of the coming months. Others may work on the database meanwhile. Returns
 * the names it ran. A crash leaves the last whole one; repeating it goes on there.
 * @throws what Postgres says; `55P03` when a lock could not be had for ten minutes
 */
export async function migrate(url: string, all: Migrations = migrations): Promise<string[]> {
  const pool = new pg.Pool({ connectionString: url, max: 1 });
  // The next statement says it too; without a listener it would end the process.
  pool.on("error", () => {});
  const db = new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) });
  const migrator = new Migrator({ db, provider: { getMigrations: async () => all } });
  const ran: string[] = [];
  const until = performance.now() + patienceMs;
  const lock = new pg.Client({ connectionString: url });
  lock.on("error", () => {});
  try {
    await lock.connect();
    await takeTurn(lock);
    for (;;) {
      try {
        const next = (await migrator.getMigrations()).find(({ executedAt }) => executedAt === undefined);
        if (!next) {
          await ensurePartitions(pool);
          return ran;
        }
        const disableTransactions = "concurrent" in next.migration;
        // An index that is made concurrently waits for old transactions, and nobody for it.
        await pool.query(`SET lock_timeout = ${disableTransactions ? 0 : lockMs}`);
        const { error, results } = await migrator.migrateUp({ disableTransactions });
        if (error) throw error;
        ran.push(...(results ?? []).map((result) => result.migrationName));
      } catch (error) {
        if ((error as { code?: string }).code !== "55P03" || performance.now() > until) throw error;
        await delay(retryMs * (0.5 + Math.random()));
      }
    }
  } finally {
    await Promise.all([db.destroy(), lock.end()]);
  }
}

/** One process migrates at a time. Asked for again and again: who waits within a statement is waited for by an index that is made concurrently. */
async function takeTurn(lock: pg.Client): Promise<void> {
  for (;;) {
    const { rows } = await lock.query("SELECT pg_try_advisory_lock(hashtext('drover.migrate')) AS taken");
    if (rows[0].taken) return;
    await delay(turnMs);
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
