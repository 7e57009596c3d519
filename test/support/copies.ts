/** Statements whose answers are given up while a table is locked: they are sent again and again, and every copy comes through in the end. */
import { openPool, type Pool } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { expect, onTestFinished } from "vitest";

const logger = createLogger({ name: "test", level: "silent" });

/**
 * Runs `work` over a pool that gives answers up after 300 ms while nobody may write to `table`. Once at least three copies wait the lock is
 * let go; resolves when `work` is done and no copy waits any more. `pool` leads to the same database.
 */
export async function manyCopies(
  { pool, url }: { pool: Pool; url: string },
  table: string,
  work: (hasty: Pool) => Promise<unknown>,
): Promise<void> {
  const waiters = async (): Promise<number> =>
    (
      await pool.query(
        "SELECT count(*) AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
      )
    ).rows[0].n;
  const hasty = openPool({ url, logger, max: 10, answerTimeoutMs: 300 });
  onTestFinished(() => hasty.end());
  const holder = await pool.connect();
  await holder.query(`BEGIN; LOCK TABLE ${table} IN SHARE MODE`);
  const done = work(hasty);
  await expect.poll(waiters, { timeout: 20_000 }).toBeGreaterThan(2);
  await holder.query("COMMIT");
  holder.release();
  await done;
  await expect.poll(waiters, { timeout: 20_000 }).toBe(0);
}
