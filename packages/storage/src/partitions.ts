/** Monthly partitions of `run_events`, made ahead of time. A month nobody made in time falls into the default partition. */
import type pg from "pg";
import { type Queryable, transaction } from "./database.ts";

const monthsAhead = 3;
/** Whoever waits for a lock here holds up others: rather the next time. */
const lockTimeout = "SET LOCAL lock_timeout = '100ms'";

/**
 * Makes the partitions of this month and the next three. Idempotent and safe in parallel (advisory lock); a month whose rows
 * already fell into the default partition stays there, which costs nothing but its place in retention. A role that does not own the
 * table cannot make any, and leaves them to `drover migrate`.
 * @throws `55P03` when somebody holds a lock on them: repeat it later
 */
export async function ensurePartitions(pool: pg.Pool): Promise<void> {
  const { rows: found } = await pool.query<{ owned: boolean }>(
    "SELECT pg_has_role(relowner, 'USAGE') AS owned FROM pg_class WHERE oid = 'run_events'::regclass",
  );
  if (!found[0]!.owned) return;
  await transaction(pool, async (tx) => {
    await tx.query("SELECT pg_advisory_xact_lock(hashtext('drover.partitions'))");
    await tx.query(lockTimeout);
    // Months are added and named in the session's time zone.
    await tx.query("SET LOCAL TimeZone = 'UTC'");
    for (let ahead = 0; ahead <= monthsAhead; ahead++) {
      const { rows } = await tx.query<{ name: string; low: string; high: string; exists: boolean; stray: boolean }>(
        `SELECT name, low, high, to_regclass(name) IS NOT NULL AS exists,
                EXISTS (SELECT FROM run_events_default WHERE run_id >= low AND run_id < high) AS stray
         FROM (SELECT 'run_events_' || to_char(month, 'YYYY_MM') AS name, uuidv7_floor(month) AS low,
                      uuidv7_floor(month + interval '1 month') AS high
               FROM (SELECT date_trunc('month', now()) + $1 * interval '1 month' AS month) m) p`,
        [ahead],
      );
      const { name, low, high, exists, stray } = rows[0]!;
      if (!exists && !stray)
        await tx.query(`CREATE TABLE ${name} PARTITION OF run_events FOR VALUES FROM ('${low}') TO ('${high}')`);
    }
  });
}

/** How many of the coming months have their partition, without a gap; 0: next month's events will fall into the default one. */
export async function partitionsAhead(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ ahead: number }>(
    `SELECT coalesce(min(ahead) FILTER (WHERE to_regclass('run_events_' || to_char(month, 'YYYY_MM')) IS NULL) - 1, $1::int) AS ahead
     FROM generate_series(1, $1::int) AS ahead, LATERAL (SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + ahead * interval '1 month') AS m(month)`,
    [monthsAhead],
  );
  return rows[0]!.ahead;
}

export interface Month {
  /** Of its table. */
  name: string;
  /** Run ids from `low` on and below `high`. */
  low: string;
  high: string;
  /** How long ago it ended, days; negative: it has not. */
  untilDaysAgo: number;
  /** Takes what belongs to no month; it has no bounds. */
  isDefault: boolean;
  /** Whether this role may drop it. */
  owned: boolean;
  /** As estimated when it was analysed last. */
  rows: number;
}

/** The partitions of `run_events`, oldest first. */
export async function readMonths(db: Queryable): Promise<Month[]> {
  const { rows } = await db.query<{
    name: string;
    bounds: string;
    owned: boolean;
    rows: number;
    now: Date;
  }>(
    `SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bounds, pg_has_role(c.relowner, 'USAGE') AS owned,
            greatest(0, c.reltuples)::float8 AS rows, clock_timestamp() AS now
     FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'run_events'::regclass ORDER BY c.relname`,
  );
  return rows.map(({ name, bounds, owned, rows: estimate, now }) => {
    const [low = "", high = ""] = [...bounds.matchAll(/'([0-9a-f-]{36})'/g)].map((match) => match[1]!);
    const until = Number.parseInt(high.replaceAll("-", "").slice(0, 12), 16);
    return {
      name,
      low,
      high,
      untilDaysAgo: (now.getTime() - until) / 86_400_000,
      isDefault: bounds === "DEFAULT",
      owned,
      rows: estimate,
    };
  });
}

/**
 * Drops a month whole. Whoever reads the log at this moment is not waited for: files are removed after the locks are gone, and nobody waits longer than
 * 100 ms for those.
 * @throws `55P03` when a lock could not be had: repeat it later
 */
export async function dropMonth(pool: pg.Pool, month: Month): Promise<void> {
  await transaction(pool, async (tx) => {
    await tx.query(lockTimeout);
    await tx.query(`DROP TABLE IF EXISTS ${tx.escapeIdentifier(month.name)}`);
  });
}
