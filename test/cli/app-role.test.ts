/** API and worker as a deployment runs them under a database role of their own: see docs/audit.md. */
import { randomBytes } from "node:crypto";
import { afterAll, beforeAll, expect, it } from "vitest";
import { adminQuery, createEmptyDatabase, type TestDatabase } from "../support/database.ts";
import { freePort } from "../support/ports.ts";
import { drover, startDrover, temporaryFolder, until } from "./drover.ts";

const folder = await temporaryFolder();
const role = `app_${randomBytes(4).toString("hex")}`;
let database: TestDatabase;

beforeAll(async () => {
  database = await createEmptyDatabase();
  await adminQuery(database.url, `CREATE ROLE ${role} LOGIN PASSWORD 'app'`);
});

afterAll(async () => {
  await database.drop();
  await adminQuery(database.url, `DROP ROLE ${role}`);
  await folder.remove();
});

it("a run goes its whole way, on BullMQ in the same Postgres, and its trail verifies", async () => {
  const owner = { DATABASE_URL: database.url };
  const none = await drover(["migrate"], { env: { ...owner, DROVER_APP_ROLE: "nobody_of_that_name" } });
  expect(none).toMatchObject({ code: 1, stderr: expect.stringContaining("CREATE ROLE") });
  const migrated = await drover(["migrate", "--json"], { env: { ...owner, DROVER_APP_ROLE: role } });
  expect(migrated.code, migrated.stderr).toBe(0);
  expect(migrated.json()).toMatchObject({ role, queue: "postgres" });

  const url = new URL(database.url);
  url.username = role;
  url.password = "app";
  const port = await freePort();
  const env = { DATABASE_URL: url.href, DROVER_DATA_DIR: folder.path, DROVER_WORKSPACES: folder.path };
  const made = await drover(["audit", "keygen", "--json"]);
  const { private_key } = made.json<{ private_key: string }>();
  const signing = { DROVER_AUDIT_KEY: private_key, DROVER_AUDIT_CHECKPOINT_ENTRIES: "1" };
  const api = startDrover(["api"], { ...env, PORT: String(port), HOST: "127.0.0.1" });
  const worker = startDrover(["worker"], { ...env, ...signing });
  await Promise.all([api.waitForLine("listening on"), worker.waitForLine("worker ready")]);
  const { key, id } = (await drover(["keys", "create", "--role", "admin", "--json"], { env })).json<
    Record<string, string>
  >();
  const client = { DROVER_URL: `http://127.0.0.1:${port}`, DROVER_API_KEY: key };
  const ended = await drover(["run", "What is 7 * 7?", "--wait"], { env: client });
  expect(ended).toMatchObject({ code: 0, stdout: expect.stringContaining("49") });

  const verify = async () => await drover(["audit", "verify", "--json"], { env: { ...env, ...signing } });
  await until(async () => (await verify()).json<{ data: { checkpoints: number }[] }>().data[0]!.checkpoints > 0);
  expect((await verify()).json()).toMatchObject({ ok: true, signatures_checked: true, data: [{ tenant: "default" }] });
  const trail = await fetch(`${client.DROVER_URL}/audit?action=key.created`, { headers: { "x-api-key": key! } });
  expect(await trail.json()).toMatchObject({ data: [{ actor: "cli", data: { key: id, role: "admin" } }] });
  await Promise.all([api.kill("SIGTERM"), worker.kill("SIGTERM")]);
  expect(worker.output() + api.output()).not.toMatch(/permission denied|"level":50/);
  expect(worker.output()).not.toContain(private_key);
});
