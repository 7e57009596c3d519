/** Cutting the audit trail, workspaces on disk, months that others read, and the configuration. */
import { generateKeyPairSync } from "node:crypto";
import { mkdir, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { publicKeyOf, verifyChain } from "@drover/harness";
import { loadConfig, uuidv7 } from "@drover/protocol";
import {
  readCheckpoints,
  readRetention,
  readTrail,
  retain,
  retentionConfig,
  retentionOf,
  startSequencer,
  verifyAudit,
} from "@drover/runs";
import { openPool, type Pool } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { sweepWorkspaces } from "../../packages/runs/src/retention/workspaces.ts";
import { createDatabase } from "../support/database.ts";

const logger = createLogger({ name: "test", level: process.env.TEST_LOG ?? "silent" });
const { privateKey } = generateKeyPairSync("ed25519");
const publicKeys = [publicKeyOf(privateKey)];
const kept = { contentsDays: 30, totalsDays: 400, auditDays: 400 };

async function setUp(): Promise<{ pool: Pool; url: string }> {
  const { url, drop } = await createDatabase();
  onTestFinished(drop);
  const pool = openPool({ url, logger });
  onTestFinished(() => pool.end());
  return { pool, url };
}

const failing = (part: string, error: unknown) => {
  throw new Error(part, { cause: error });
};

describe("the audit trail", () => {
  /** Entries so many days old, oldest first, chained; with a checkpoint after every second one. */
  async function trail(days: number[], key = true) {
    const { pool, url } = await setUp();
    const idAt =
      "overlay(uuidv7_floor(now() - $1 * interval '1 day')::text placing substr(md5($1::text || $2::text), 1, 12) from 25)::uuid";
    const sequencer = startSequencer({
      pool,
      directUrl: url,
      logger,
      ...(key && { signing: { key: privateKey, everyEntries: 1, withinMs: 1 } }),
    });
    onTestFinished(() => sequencer.close());
    for (const [index, age] of days.entries()) {
      await pool.query(
        `INSERT INTO audit_entries (id, tenant, at, actor, action, data) VALUES (${idAt}, 'a', now() - $1 * interval '1 day', 'worker', 'x', '{}')`,
        [age, index],
      );
      // What is as old as this is chained by the look at everything, with which each leader begins.
      await sequencerDone(pool, url, index + 1, key);
    }
    return pool;
  }
  async function sequencerDone(pool: Pool, url: string, entries: number, key: boolean) {
    const one = startSequencer({
      pool,
      directUrl: url,
      logger,
      ...(key && { signing: { key: privateKey, everyEntries: 1, withinMs: 1 } }),
    });
    await vi.waitFor(
      async () => {
        const { rows } = await pool.query(
          "SELECT (SELECT count(*) FROM audit_chain) AS chained, (SELECT coalesce(max(seq), 0) FROM audit_checkpoints) AS signed",
        );
        expect(rows).toEqual([{ chained: entries, signed: key ? entries : 0 }]);
      },
      { timeout: 25_000, interval: 20 },
    );
    await one.close();
  }

  test("is cut at the last checkpoint that is old enough, says so itself, and verifies; so does an export of it", async () => {
    const pool = await trail([500, 450, 401, 399, 1]);
    const before = await readCheckpoints(pool, "a");
    expect((await readRetention(pool, kept)).find(({ part }) => part === "audit trail")).toMatchObject({ rows: 3 });
    expect((await retain(pool, kept, failing)).removed).toEqual(new Map([["audit trail", 3]]));
    // Also before the entry that says so has its place.
    expect(await verifyAudit(pool, { publicKeys })).toMatchObject([{ cut: 3, bad: null, stray: null }]);
    await vi.waitFor(async () => expect((await pool.query("SELECT FROM audit_unchained")).rowCount).toBe(0), 20_000);
    const entries = [];
    for await (const entry of readTrail(pool, "a")) entries.push(entry);
    expect(entries.map(({ seq, action }) => [seq, action])).toEqual([
      [4, "x"],
      [5, "x"],
      [6, "audit.cut"],
    ]);
    expect(entries[2]!.data).toMatchObject({ up_to: 3, entries: 3 });
    const [whole] = await verifyAudit(pool, { publicKeys, checkpoints: before });
    expect(whole).toMatchObject({ entries: 3, cut: 3, bad: null });
    const checkpoints = await readCheckpoints(pool, "a");
    expect(await verifyChain(entries, { checkpoints, publicKeys })).toMatchObject([{ bad: null }]);
    // Whoever removes more than retention did is found out.
    expect(await verifyChain(entries.slice(1), { checkpoints, publicKeys })).toMatchObject([
      { bad: { problem: "missing", seq: 1 } },
    ]);
    expect(await verifyChain(entries, { checkpoints: [] })).toMatchObject([{ bad: { problem: "missing" } }]);
    expect((await retain(pool, kept, failing)).removed.size).toBe(0);
  });

  test("stays whole without a signed checkpoint, and it is said why", async () => {
    const pool = await trail([500, 450], false);
    expect((await readRetention(pool, kept)).find(({ part }) => part === "audit trail")).toMatchObject({
      rows: 0,
      note: expect.stringContaining("DROVER_AUDIT_KEY"),
    });
    expect((await retain(pool, kept, failing)).removed.size).toBe(0);
  });

  test("gives nothing up that is younger than a month, has no checkpoint, or is not at its front", async () => {
    const pool = await trail([40, 20]);
    await expect(pool.query("SELECT audit_cut('a', 2)")).rejects.toThrow(/cannot be cut at entry 2/);
    await expect(pool.query("SELECT audit_cut('a', 7)")).rejects.toThrow(/cannot be cut/);
    await expect(pool.query("SELECT audit_cut('b', 1)")).rejects.toThrow(/cannot be cut/);
    await expect(pool.query("DELETE FROM audit_chain")).rejects.toThrow(/takes inserts only/);
    expect((await pool.query("SELECT audit_cut('a', 1) AS gone")).rows).toEqual([{ gone: 1 }]);
    await expect(pool.query("DELETE FROM audit_entries")).rejects.toThrow(/takes inserts only/);
    // Nobody has said so.
    expect(await verifyAudit(pool, { publicKeys })).toMatchObject([{ bad: { problem: "missing", seq: 1 } }]);
  });
});

test("a month goes while others read the log and write it, and none of them waits long", async () => {
  const { pool } = await setUp();
  const old =
    "SELECT uuidv7_floor(now() - interval '90 days') AS low, uuidv7_floor(now() - interval '60 days') AS high";
  const { low, high } = (await pool.query(old)).rows[0];
  await pool.query(`CREATE TABLE run_events_old PARTITION OF run_events FOR VALUES FROM ('${low}') TO ('${high}')`);
  await pool.query(
    "INSERT INTO run_events (run_id, seq, type, data, event_id) SELECT $1, n, 'x', '{}', gen_random_uuid() FROM generate_series(1, 1000) n",
    [low],
  );
  const reader = await pool.connect();
  await reader.query("BEGIN");
  await reader.query("SELECT count(*) FROM run_events");
  const failed: string[] = [];
  const pass = () => retain(pool, kept, (part) => failed.push(part));
  await pass();
  expect(failed).toEqual(["logs, by month"]);
  await reader.query("COMMIT");
  reader.release();
  expect((await pass()).removed.get("logs, by month")).toBeGreaterThan(0);
  expect((await pool.query("SELECT to_regclass('run_events_old') AS it")).rows).toEqual([{ it: null }]);
});

test("workspaces of what is no longer kept, or not known, go; what is not ours stays", async () => {
  const { pool } = await setUp();
  const folder = await mkdtemp(join(tmpdir(), "drover-"));
  onTestFinished(() => rm(folder, { recursive: true }));
  const old = (await pool.query("SELECT uuidv7_floor(now() - interval '31 days') AS id")).rows[0].id as string;
  const young = uuidv7();
  for (const name of [old, young, "notes"]) {
    await mkdir(join(folder, "default", name), { recursive: true });
    await writeFile(join(folder, "default", name, "file"), "x");
  }
  expect(await sweepWorkspaces(pool, folder, 30)).toBe(1);
  expect((await readdir(join(folder, "default"))).sort()).toEqual([young, "notes"].sort());
  await pool.query("INSERT INTO tenants (id, webhook_secret) VALUES ('default', '') ON CONFLICT DO NOTHING");
  await pool.query(
    "INSERT INTO runs (id, tenant, agent, woken, available_at, soft_ms, hard_ms) VALUES ($1, 'default', 'a', true, now(), 1, 2)",
    [old],
  );
  await mkdir(join(folder, "default", old));
  expect(await sweepWorkspaces(pool, folder, 30)).toBe(0);
  expect(await sweepWorkspaces(pool, join(folder, "nowhere"), 30)).toBe(0);
});

test("the configuration has bounds, and names what is wrong", () => {
  expect(retentionOf(loadConfig(retentionConfig, {}))).toEqual(kept);
  expect(() => loadConfig(retentionConfig, { RETENTION_AUDIT_DAYS: "29" })).toThrow(/RETENTION_AUDIT_DAYS/);
  expect(() => loadConfig(retentionConfig, { RETENTION_CONTENTS_DAYS: "0" })).toThrow(/RETENTION_CONTENTS_DAYS/);
  expect(() => loadConfig(retentionConfig, { RETENTION_CONTENTS_DAYS: "50", RETENTION_TOTALS_DAYS: "40" })).toThrow(
    /RETENTION_CONTENTS_DAYS.*must not be more than RETENTION_TOTALS_DAYS/,
  );
});
