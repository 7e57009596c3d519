/** Migrations and partitions, on empty databases of the real server. */
import { uuidv7 } from "@drover/protocol";
import { ensurePartitions, isMigrated, latestMigration, openPool, type Pool, partitionsAhead } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { afterEach, describe, expect, it } from "vitest";
import { indexes, inOrder } from "../../packages/storage/src/in-order.ts";
import { migrate, migrations } from "../../packages/storage/src/migrate.ts";
import { adminQuery, createEmptyDatabase, type TestDatabase } from "../support/database.ts";
import { migrationNames } from "../support/migrations.ts";

const opened: { database: TestDatabase; pool: Pool }[] = [];
afterEach(async () => {
  for (const { database, pool } of opened.splice(0)) {
    await pool.end();
    await database.drop();
  }
});

async function emptyDatabase(): Promise<{ database: TestDatabase; pool: Pool }> {
  const database = await createEmptyDatabase();
  const pool = openPool({ url: database.url, logger: createLogger({ name: "test", level: "silent" }) });
  opened.push({ database, pool });
  return { database, pool };
}

const partitionsOf = async (pool: Pool): Promise<{ name: string; bound: string }[]> =>
  (
    await pool.query(
      `SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
       FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
       WHERE i.inhparent = 'run_events'::regclass AND c.relname <> 'run_events_default' ORDER BY 1`,
    )
  ).rows;

/** `run_events_2026_11` and the like for the month that is so many months ahead, in UTC. */
function monthName(ahead: number): string {
  const now = new Date();
  const month = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() + ahead, 1));
  return `run_events_${month.toISOString().slice(0, 7).replace("-", "_")}`;
}

/** The bounds Postgres should show: ids from the first millisecond of the month to that of the next. */
function monthBound(ahead: number): string {
  const now = new Date();
  const floor = (months: number) => {
    const ms = Date.UTC(now.getUTCFullYear(), now.getUTCMonth() + months, 1);
    const hex = ms.toString(16).padStart(12, "0");
    return `${hex.slice(0, 8)}-${hex.slice(8)}-0000-0000-000000000000`;
  };
  return `FOR VALUES FROM ('${floor(ahead)}') TO ('${floor(ahead + 1)}')`;
}

async function partitionOf(pool: Pool, runId: string): Promise<string> {
  const { rows } = await pool.query<{ name: string }>(
    `INSERT INTO run_events (run_id, seq, type, data, event_id) VALUES ($1, 1, 'run.queued', '{}', $2)
     RETURNING tableoid::regclass::text AS name`,
    [runId, uuidv7()],
  );
  return rows[0]!.name;
}

/** An id made so many months from now, in the middle of the month. */
function idAhead(months: number): string {
  const now = new Date();
  const ms = Date.UTC(now.getUTCFullYear(), now.getUTCMonth() + months, 15);
  const hex = ms.toString(16).padStart(12, "0");
  return `${hex.slice(0, 8)}-${hex.slice(8)}-7000-8000-000000000001`;
}

describe("migrate", () => {
  it("lets five starters come at once: one does the work, all find it done", async () => {
    const { database, pool } = await emptyDatabase();
    expect(await isMigrated(pool)).toBe(false);
    const ran = await Promise.all(Array.from({ length: 5 }, () => migrate(database.url)));
    expect(ran.flat()).toEqual(migrationNames);
    expect(await isMigrated(pool)).toBe(true);
    expect(await partitionsOf(pool)).toHaveLength(4);
  });

  it("does nothing the second time", async () => {
    const { database } = await emptyDatabase();
    expect(await migrate(database.url)).toEqual(migrationNames);
    expect(await migrate(database.url)).toEqual([]);
  });

  it("leaves nothing behind when it fails, and works once the cause is gone", async () => {
    const { database, pool } = await emptyDatabase();
    await pool.query("CREATE TABLE deliveries (in_the_way int)");
    await expect(migrate(database.url)).rejects.toMatchObject({ code: "42P07" });
    expect(await isMigrated(pool)).toBe(false);
    expect((await pool.query("SELECT to_regclass('runs') AS runs")).rows[0].runs).toBeNull();
    await pool.query("DROP TABLE deliveries");
    expect(await migrate(database.url)).toEqual(migrationNames);
    expect(await isMigrated(pool)).toBe(true);
  });

  it("waits for nobody's lock for long: while somebody reads for minutes, others go on writing, and it is made in the end", async () => {
    const { database, pool } = await emptyDatabase();
    await migrate(database.url);
    await pool.query("INSERT INTO tenants (id, webhook_secret) VALUES ('t', 's') ON CONFLICT DO NOTHING");
    const reader = await pool.connect();
    await reader.query("BEGIN; SELECT count(*) FROM runs");
    // Needs the table for itself.
    const more = {
      "9998_column": inOrder("ALTER TABLE runs ADD COLUMN zz int", "ALTER TABLE runs ADD COLUMN zzz int"),
    };
    const migrating = migrate(database.url, { ...migrations, ...more });
    const tries = async () =>
      (
        await pool.query(
          "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE runs%'",
        )
      ).rows[0].count;
    await expect.poll(tries, { timeout: 10_000, interval: 5 }).toBe(1);
    // Each of them stands behind it in the lock's queue; none would come through before the reader is done, if it waited on.
    for (let write = 0; write < 5; write++) {
      await pool.query("UPDATE runs SET agent = agent WHERE id = $1", [uuidv7()]);
      await expect.poll(tries, { timeout: 10_000, interval: 5 }).toBe(1);
    }
    await reader.query("COMMIT");
    reader.release();
    expect(await migrating).toEqual(["9998_column"]);
  });

  it("changes a table of a million rows under load: no reader or writer waits for a lock longer than 200 ms, and nothing of what they wrote is lost", async () => {
    const { database, pool } = await emptyDatabase();
    await migrate(database.url);
    await pool.query(
      "CREATE TABLE big AS SELECT n AS id, n % 7 AS kind, repeat('x', 100) AS text FROM generate_series(1, 1000000) n",
    );
    await pool.query("ALTER TABLE big ADD PRIMARY KEY (id)");
    const more = {
      "9996_column": inOrder("ALTER TABLE big ADD COLUMN more int NOT NULL DEFAULT 7"),
      "9997_check": inOrder("ALTER TABLE big ADD CONSTRAINT kinds CHECK (kind >= 0) NOT VALID"),
      "9998_valid": inOrder("ALTER TABLE big VALIDATE CONSTRAINT kinds"),
      "9999_index": indexes({ big_by_kind: "big (kind, id)" }),
    };
    let isDone = false;
    let written = 0;
    // Whoever waits for longer says so by an error.
    const client = async (statement: (n: number) => string, writes: boolean) => {
      const session = await pool.connect();
      await session.query("SET lock_timeout = '200ms'");
      for (let n = 0; !isDone; n++) {
        await session.query(statement(n));
        if (writes) written++;
      }
      await session.query("RESET lock_timeout");
      session.release();
    };
    const load = [
      client((n) => `INSERT INTO big (id, kind, text) VALUES (${2_000_000 + n}, 1, '')`, true),
      client((n) => `UPDATE big SET text = 'y' WHERE id = ${1 + (n % 1_000_000)}`, false),
      client((n) => `SELECT text FROM big WHERE id = ${1 + ((n * 7919) % 1_000_000)}`, false),
    ];
    const migrated = migrate(database.url, { ...migrations, ...more }).finally(() => {
      isDone = true;
    });
    const [made] = await Promise.all([migrated, ...load]);
    expect(made).toEqual(Object.keys(more));
    expect((await pool.query("SELECT count(*) AS n FROM big WHERE id >= 2000000 AND more = 7")).rows[0].n).toBe(
      written,
    );
    expect(written).toBeGreaterThan(0);
  });

  it("makes an index beside a writer in the middle of its transaction, and anew where one was left half made", async () => {
    const { database, pool } = await emptyDatabase();
    await migrate(database.url);
    await pool.query("INSERT INTO tenants (id, webhook_secret) VALUES ('t', 's'), ('u', 's')");
    // A unique one over rows that are not: it is left behind, invalid.
    const half = pool.query("CREATE UNIQUE INDEX CONCURRENTLY tenants_by_secret ON tenants (webhook_secret)");
    await expect(half).rejects.toMatchObject({ code: "23505" });
    const writer = await pool.connect();
    await writer.query("BEGIN; UPDATE tenants SET webhook_secret = 'x' WHERE id = 't'");
    const more = { "9998_index": indexes({ tenants_by_secret: "tenants (webhook_secret)" }) };
    const migrating = migrate(database.url, { ...migrations, ...more });
    const waits =
      "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%INDEX CONCURRENTLY%'";
    await expect.poll(async () => (await pool.query(waits)).rowCount, { timeout: 10_000 }).toBe(1);
    await pool.query("UPDATE tenants SET webhook_secret = 'y' WHERE id = 'u'");
    await writer.query("COMMIT");
    writer.release();
    expect(await migrating).toEqual(["9998_index"]);
    const { rows } = await pool.query(
      "SELECT indisvalid FROM pg_index WHERE indexrelid = 'tenants_by_secret'::regclass",
    );
    expect(rows).toEqual([{ indisvalid: true }]);
  });

  it("keeps what is whole when a later one fails", async () => {
    const { database, pool } = await emptyDatabase();
    const more = {
      "9998_good": inOrder("CREATE TABLE good ()"),
      "9999_bad": inOrder("CREATE TABLE bad ()", "SELECT 1/0"),
    };
    await expect(migrate(database.url, { ...migrations, ...more })).rejects.toMatchObject({ code: "22012" });
    expect(await isMigrated(pool)).toBe(true);
    expect((await pool.query("SELECT to_regclass('good') AS good, to_regclass('bad') AS bad")).rows).toEqual([
      { good: "good", bad: null },
    ]);
  });

  it("rejects when there is no database to migrate", async () => {
    const { database } = await emptyDatabase();
    const url = new URL(database.url);
    url.pathname = "/there_is_no_such_database";
    await expect(migrate(url.href)).rejects.toMatchObject({ code: "3D000" });
  });

  it("knows a database that is not migrated, and one whose bookkeeping is newer", async () => {
    const { database, pool } = await emptyDatabase();
    await migrate(database.url);
    await pool.query("INSERT INTO kysely_migration (name, timestamp) VALUES ('9999_later', 'now')");
    expect(await isMigrated(pool)).toBe(true);
    await pool.query("DELETE FROM kysely_migration WHERE name = $1", [latestMigration]);
    expect(await isMigrated(pool)).toBe(false);
  });
});

describe("partitions", () => {
  it.each(["UTC", "America/New_York", "Asia/Kolkata", "Pacific/Kiritimati"])(
    "are whole months of UTC on a server that lives in %s",
    async (zone) => {
      const { database, pool } = await emptyDatabase();
      await adminQuery(database.url, `ALTER DATABASE ${database.name} SET timezone = '${zone}'`);
      await migrate(database.url);
      expect(await partitionsOf(pool)).toEqual([0, 1, 2, 3].map((n) => ({ name: monthName(n), bound: monthBound(n) })));
    },
  );

  it("take this month's and the next months' runs; the far future goes to the default one", async () => {
    const { database, pool } = await emptyDatabase();
    await migrate(database.url);
    expect(await partitionOf(pool, uuidv7())).toBe(monthName(0));
    expect(await partitionOf(pool, idAhead(3))).toBe(monthName(3));
    expect(await partitionOf(pool, idAhead(4))).toBe("run_events_default");
    expect(await partitionOf(pool, idAhead(600))).toBe("run_events_default");
    const { rows } = await pool.query("SELECT uuidv7_now() AS id, extract(epoch FROM clock_timestamp()) * 1000 AS now");
    const madeAt = Number.parseInt(rows[0].id.replaceAll("-", "").slice(0, 12), 16);
    expect(Math.abs(madeAt - rows[0].now)).toBeLessThan(5000);
    expect(rows[0].id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab]/);
    expect(await partitionOf(pool, rows[0].id)).toBe(monthName(0));
  });

  it("are made again where they are missing, by many at once, and not where rows are in the default one already", async () => {
    const { database, pool } = await emptyDatabase();
    await migrate(database.url);
    expect(await partitionsAhead(pool)).toBe(3);
    await pool.query(`DROP TABLE ${monthName(1)}, ${monthName(2)}`);
    expect(await partitionsAhead(pool)).toBe(0);
    expect(await partitionOf(pool, idAhead(2))).toBe("run_events_default");
    await Promise.all(Array.from({ length: 5 }, () => ensurePartitions(pool)));
    expect((await partitionsOf(pool)).map(({ name }) => name)).toEqual([monthName(0), monthName(1), monthName(3)]);
    expect(await partitionsAhead(pool)).toBe(1);
    expect(await partitionOf(pool, idAhead(1))).toBe(monthName(1));
  });
});
