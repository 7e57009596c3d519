/** A pool behind the real PgBouncer: who waits in its queue waits, and is not taken for a server that fell silent. */
import { setTimeout as pause } from "node:timers/promises";
import { openPool } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import pg from "pg";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createDatabase, type TestDatabase } from "../support/database.ts";
import { startPgBouncer, type TestPooler } from "../support/pgbouncer.ts";

const logger = createLogger({ name: "test", level: "silent" });
let database: TestDatabase;
let pooler: TestPooler;
beforeAll(async () => {
  database = await createDatabase();
  pooler = await startPgBouncer(database.url, 5);
});
afterAll(async () => {
  await pooler.stop();
  await database.drop();
});

test("statements that hold all of a busy pooler's connections, and those in its queue, are answered in the end", async () => {
  const holder = new pg.Client({ connectionString: database.url });
  await holder.connect();
  await holder.query("SELECT pg_advisory_lock(1)");
  const waiting = async () =>
    (
      await holder.query(
        "SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'",
      )
    ).rows[0].n;
  const pool = openPool({ url: pooler.url, directUrl: database.url, logger, max: 20 });
  const told: (number | string)[] = [];
  const all = Array.from({ length: 15 }, (_, index) =>
    pool.query("SELECT pg_advisory_xact_lock(1)").then(
      () => told.push(index),
      (error) => told.push(String(error)),
    ),
  );
  await expect.poll(waiting, { timeout: 10_000 }).toBe(5);
  // Long enough to be taken for an outage: nothing is answered, and a probe through the pooler would wait in its queue.
  await pause(2500);
  expect(told).toEqual([]);
  await holder.query("SELECT pg_advisory_unlock(1)");
  await Promise.all(all);
  expect(told.toSorted()).toEqual(Array.from({ length: 15 }, (_, index) => index).toSorted());
  expect((await pool.query("SELECT 1 AS one")).rows).toEqual([{ one: 1 }]);
  await pool.end();
  await holder.end();
});
