/** The application's own role: everything the processes do works under it, and the audit trail takes nothing but inserts from it. */
import { randomBytes } from "node:crypto";
import { recordAudit, startSequencer, verifyAudit } from "@drover/runs";
import { ensurePartitions, grantAppRole, migrate, openPool, type Pool, transaction } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { adminQuery, createDatabase, type TestDatabase } from "../support/database.ts";

const logger = createLogger({ name: "test", level: "silent" });
// A name that must be quoted.
const role = `App "${randomBytes(4).toString("hex")}"`;
const quoted = `"${role.replaceAll('"', '""')}"`;
let database: TestDatabase;
let owner: Pool;
let app: Pool;
let appUrl: string;

beforeAll(async () => {
  database = await createDatabase();
  await adminQuery(database.url, `CREATE ROLE ${quoted} LOGIN PASSWORD 'app'`);
  await grantAppRole(database.url, role);
  await grantAppRole(database.url, role);
  const url = new URL(database.url);
  url.username = encodeURIComponent(role);
  url.password = "app";
  appUrl = url.href;
  owner = openPool({ url: database.url, logger });
  app = openPool({ url: appUrl, logger });
});

afterAll(async () => {
  await app.end();
  await owner.end();
  await database.drop();
  await adminQuery(database.url.replace(`/${database.name}`, "/postgres"), `DROP ROLE ${quoted}`);
});

const entry = { tenant: "a", actor: "worker", action: "x", data: {}, runId: null };

it("writes entries, chains and signs them, and verifies the trail", async () => {
  const sequencer = startSequencer({ pool: app, directUrl: appUrl, logger });
  await transaction(app, (tx) => recordAudit(tx, [entry, entry]));
  await vi.waitFor(async () => expect((await app.query("SELECT FROM audit_chain")).rowCount).toBe(2), 20_000);
  await sequencer.close();
  expect(await verifyAudit(app)).toMatchObject([{ tenant: "a", entries: 2, unchained: 0, bad: null, stray: null }]);
  await app.query(
    "INSERT INTO audit_checkpoints (tenant, seq, hash, key_id, signature) SELECT tenant, seq, hash, 'k', hash FROM audit_chain",
  );
});

describe("is refused", () => {
  const trail = ["audit_entries", "audit_chain", "audit_checkpoints"];
  it.each([
    ...trail.flatMap((table) => [
      `UPDATE ${table} SET tenant = 'b'`,
      `DELETE FROM ${table}`,
      `TRUNCATE ${table} CASCADE`,
      `ALTER TABLE ${table} DISABLE TRIGGER ALL`,
      `ALTER TABLE ${table} DISABLE TRIGGER ${table}_insert_only`,
      `DROP TRIGGER ${table}_insert_only ON ${table}`,
      `DROP TABLE ${table} CASCADE`,
      `ALTER TABLE ${table} ADD COLUMN more int`,
    ]),
    "UPDATE audit_unchained SET tenant = 'b'",
    "TRUNCATE audit_unchained",
    "ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_made",
    "SET session_replication_role = replica",
    "DROP FUNCTION audit_insert_only CASCADE",
    "CREATE OR REPLACE FUNCTION audit_insert_only() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "CREATE OR REPLACE RULE quiet AS ON INSERT TO audit_entries DO INSTEAD NOTHING",
    "INSERT INTO kysely_migration (name, timestamp) VALUES ('9999_later', 'now')",
    "CREATE TABLE mine (id int)",
  ])("%s", async (statement) => {
    await expect(app.query(statement)).rejects.toMatchObject({ code: "42501" });
  });

  it("and so is the owner, by the triggers, as long as they are there", async () => {
    for (const table of trail)
      for (const statement of [`UPDATE ${table} SET tenant = 'b'`, `DELETE FROM ${table}`, `TRUNCATE ${table} CASCADE`])
        await expect(owner.query(statement), statement).rejects.toMatchObject({
          code: "42501",
          message: expect.stringContaining("takes inserts only"),
        });
  });
});

it("cuts what is old, and nothing else", async () => {
  await expect(app.query("SELECT audit_cut('a', 1)")).rejects.toThrow(/cannot be cut at entry 1.*younger than 30 days/);
  await adminQuery(database.url, "CREATE ROLE passer_by LOGIN PASSWORD 'x'").catch(() => {});
  const { rows } = await owner.query(
    "SELECT has_function_privilege('passer_by', 'audit_cut(text, bigint)', 'EXECUTE') AS may",
  );
  expect(rows).toEqual([{ may: false }]);
});

it("leaves partitions to the owner without an error", async () => {
  const { rows } = await owner.query(
    `SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'run_events'::regclass
       AND inhrelid::regclass::text <> 'run_events_default' ORDER BY 1 DESC LIMIT 1`,
  );
  const { name } = rows[0];
  const exists = async () => (await owner.query("SELECT to_regclass($1) IS NOT NULL AS yes", [name])).rows[0].yes;
  await owner.query(`DROP TABLE ${name}`);
  await ensurePartitions(app);
  expect(await exists()).toBe(false);
  await migrate(database.url);
  expect(await exists()).toBe(true);
});

it("says when there is no such role, or none that grants could bind", async () => {
  await expect(grantAppRole(database.url, "nobody")).rejects.toThrow(/no role "nobody"; make it first: CREATE ROLE/);
  const { username } = new URL(database.url);
  await expect(grantAppRole(database.url, username)).rejects.toThrow("grants cannot bind it");
});
