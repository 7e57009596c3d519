/** `drover retention` as people use it. */
import { openPool } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { expect, onTestFinished, test } from "vitest";
import { createDatabase } from "../support/database.ts";
import { drover } from "./drover.ts";

test("says what is due, removes it, and has nothing left to do; wrong values are named", async () => {
  const { url, drop } = await createDatabase();
  onTestFinished(drop);
  const pool = openPool({ url, logger: createLogger({ name: "test", level: "silent" }) });
  onTestFinished(() => pool.end());
  await pool.query("INSERT INTO tenants (id, webhook_secret) VALUES ('acme', '')");
  await pool.query(
    `INSERT INTO runs (id, tenant, agent, status, woken, available_at, soft_ms, hard_ms, finished_at)
     SELECT overlay(uuidv7_floor(now() - interval '500 days')::text placing lpad(n::text, 12, '0') from 25)::uuid,
       'acme', 'a', 'completed', true, now(), 1, 2, now() - interval '499 days' FROM generate_series(1, 1200) n`,
  );
  const retention = (args: string[], env: Record<string, string> = {}) =>
    drover(["retention", ...args], { env: { DATABASE_URL: url, ...env } });
  const dry = await retention(["--dry-run"]);
  expect(dry.stdout).toMatch(/^WHAT +KEPT +DUE$/m);
  expect(dry.stdout).toMatch(/^runs +400 days +1200$/m);
  expect(dry.stdout).toContain("nothing was removed");
  const longer = await retention(["--dry-run", "--json"], { RETENTION_TOTALS_DAYS: "600" });
  expect(longer.json()).toMatchObject({ dry_run: true, failed: [] });
  expect(longer.json<{ data: { due: number }[] }>().data.every(({ due }) => due === 0)).toBe(true);
  const done = await retention([]);
  expect([done.code, done.stdout]).toEqual([0, expect.stringMatching(/^runs +400 days +1200$/m)]);
  expect((await pool.query("SELECT FROM runs")).rowCount).toBe(0);
  expect((await retention([])).stdout).toMatch(/^runs +400 days +0$/m);
  const wrong = await retention([], { RETENTION_CONTENTS_DAYS: "soon" });
  expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining("RETENTION_CONTENTS_DAYS")]);
});
