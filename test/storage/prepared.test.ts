/** Statements that come again are named and kept by the server; a schema that changes and a pooler that forgets them cost nobody an error. */
import { faultOf, openPool, type Pool, plannedAnew, transaction } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { expect, onTestFinished, test } from "vitest";
import { createDatabase } from "../support/database.ts";
import { startPgBouncer } from "../support/pgbouncer.ts";

const logger = createLogger({ name: "test", level: "silent" });

async function open(more: Partial<Parameters<typeof openPool>[0]> = {}) {
  const database = await createDatabase();
  onTestFinished(() => database.drop());
  const pool = openPool({ url: database.url, logger, max: 1, ...more });
  onTestFinished(() => pool.end());
  return { database, pool };
}

async function often(pool: Pool, text: string, values: unknown[] = [1]): Promise<void> {
  for (let times = 0; times < 10; times++) await pool.query(text, values);
}

/** What the server keeps of this pool's one connection. */
const kept = async (pool: Pool) =>
  (await pool.query<{ statement: string }>("SELECT statement FROM pg_prepared_statements ORDER BY 1")).rows.map(
    ({ statement }) => statement,
  );

test("a statement that comes again and again is kept; one that comes a few times, has no values, or asks for it, is not", async () => {
  const { pool } = await open();
  await often(pool, "SELECT $1::int + 1");
  for (let times = 0; times < 4; times++) await pool.query("SELECT $1::int + 2", [1]);
  for (let times = 0; times < 10; times++) await pool.query("SELECT 3");
  await often(pool, `${plannedAnew} SELECT $1::int`);
  expect(await kept(pool)).toEqual(["SELECT $1::int + 1"]);
  await often(pool, "SELECT $1::int + 1", [2]);
  expect((await pool.query("SELECT $1::int + 1 AS sum", [41])).rows).toEqual([{ sum: 42 }]);
});

test("texts made on the spot fill neither this process nor the server", async () => {
  const { pool } = await open();
  for (let text = 0; text < 300; text++) await often(pool, `SELECT $1::int + ${text}`);
  expect((await kept(pool)).length).toBe(200);
});

test("a transaction's statements are kept too, and a setting turns it all off", async () => {
  const { pool } = await open();
  for (let times = 0; times < 10; times++) await transaction(pool, (tx) => tx.query("SELECT $1::int", [1]));
  expect(await kept(pool)).toEqual(["SELECT $1::int"]);
  const { pool: off } = await open({ prepared: false });
  await often(off, "SELECT $1::int");
  expect(await kept(off)).toEqual([]);
});

test("a table that gets a column under a kept statement: the next one is answered, and a transaction is told to repeat", async () => {
  const { pool } = await open();
  await pool.query("CREATE TABLE things (id int)");
  await pool.query("INSERT INTO things VALUES (1)");
  await often(pool, "SELECT * FROM things WHERE id = $1");
  await pool.query("ALTER TABLE things ADD note text");
  expect((await pool.query("SELECT * FROM things WHERE id = $1", [1])).rows).toEqual([{ id: 1, note: null }]);
  await often(pool, "SELECT * FROM things WHERE id = $1");
  await pool.query("ALTER TABLE things ADD more text");
  const inTransaction = transaction(pool, (tx) => tx.query("SELECT * FROM things WHERE id = $1", [1]));
  expect(
    faultOf(
      await inTransaction.then(
        () => null,
        (error: unknown) => error,
      ),
    ),
  ).toBe("conflict");
  const again = await transaction(pool, (tx) => tx.query("SELECT * FROM things WHERE id = $1", [1]));
  expect(again.rows).toEqual([{ id: 1, note: null, more: null }]);
});

test("a session that was emptied under us, and a pooler that keeps no statements: everything is answered", async () => {
  const { pool } = await open();
  await often(pool, "SELECT $1::int AS one");
  await pool.query("DEALLOCATE ALL");
  await often(pool, "SELECT $1::int AS one");

  const database = await createDatabase();
  onTestFinished(() => database.drop());
  // Debian's is 1.18, which does not know of named statements.
  const pooler = await startPgBouncer(database.url, 3);
  onTestFinished(() => pooler.stop());
  const behind = openPool({ url: pooler.url, directUrl: database.url, logger, max: 20 });
  onTestFinished(() => behind.end());
  const answers = await Promise.all(
    Array.from({ length: 2000 }, (_, index) => behind.query<{ n: number }>("SELECT $1::int AS n", [index])),
  );
  expect(answers.map(({ rows }) => rows[0]!.n)).toEqual(Array.from({ length: 2000 }, (_, index) => index));
});
