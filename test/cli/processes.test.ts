/** `drover api`, `worker` and `migrate` as a deployment runs them, and `dev` over servers of one's own. */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createEmptyDatabase, type TestDatabase } from "../support/database.ts";
import { migrationNames } from "../support/migrations.ts";
import { freePort } from "../support/ports.ts";
import { redisUrl } from "../support/redis.ts";
import { drover, startDrover, temporaryFolder, until } from "./drover.ts";

const folder = await temporaryFolder();
let database: TestDatabase;

beforeAll(async () => {
  database = await createEmptyDatabase();
});

afterAll(async () => {
  await database.drop();
  await folder.remove();
});

describe("without DATABASE_URL", () => {
  it.each(["api", "worker", "migrate"])("%s names the variable and what to do", async (command) => {
    const ended = await drover([command]);
    expect(ended).toMatchObject({ code: 2, stdout: "" });
    expect(ended.stderr).toMatch(/^drover: DATABASE_URL is not set.*\n.*drover dev/);
  });

  it("or with one that is none, or is nowhere, it says so and keeps the password to itself", async () => {
    const wrong = await drover(["migrate"], { env: { DATABASE_URL: "mysql://me:secretword@host/db" } });
    expect(wrong).toMatchObject({ code: 2, stderr: expect.stringContaining("must be a postgres://") });
    const nowhere = await drover(["migrate"], { env: { DATABASE_URL: "postgres://me:secretword@127.0.0.1:1/db" } });
    expect(nowhere).toMatchObject({ code: 1, stderr: expect.stringContaining("cannot reach Postgres at 127.0.0.1:1") });
    expect(wrong.stderr + nowhere.stderr).not.toContain("secretword");
  });
});

it("keys refuse a database that was never migrated, and point to `migrate`", async () => {
  const ended = await drover(["keys", "list"], { env: { DATABASE_URL: database.url } });
  expect(ended).toMatchObject({ code: 1, stderr: expect.stringContaining("drover migrate") });
});

it("migrate, api, worker, keys: a service of single processes, stopped by SIGTERM", async () => {
  const env = { DATABASE_URL: database.url, DROVER_DATA_DIR: folder.path, DROVER_WORKSPACES: folder.path };
  const first = await drover(["migrate", "--json"], { env });
  expect(first.code, first.stderr).toBe(0);
  expect(first.json()).toMatchObject({
    ran: migrationNames,
    queue: "postgres",
  });
  expect(await drover(["migrate"], { env })).toMatchObject({
    code: 0,
    stdout: expect.stringContaining("nothing to do"),
  });

  const port = await freePort();
  const api = startDrover(["api"], { ...env, PORT: String(port), HOST: "127.0.0.1" });
  const worker = startDrover(["worker"], env);
  await Promise.all([api.waitForLine("listening on"), worker.waitForLine("worker ready")]);
  const { key } = (await drover(["keys", "create", "--json"], { env })).json<{ key: string }>();
  const client = { DROVER_URL: `http://127.0.0.1:${port}`, DROVER_API_KEY: key };
  const ended = await drover(["run", "What is 7 * 7?", "--wait"], { env: client });
  expect(ended).toMatchObject({ code: 0, stdout: expect.stringContaining("49") });
  expect(await Promise.all([api.kill("SIGTERM"), worker.kill("SIGTERM")])).toEqual([
    { code: 0, signal: null },
    { code: 0, signal: null },
  ]);
});

it("dev over an own Postgres and Redis: its children stop by themselves when it is killed", async () => {
  const env = { DATABASE_URL: database.url, DROVER_QUEUE_PREFIX: `{${database.name}}`, SHUTDOWN_GRACE_SECONDS: "5" };
  const dataDir = `${folder.path}/own`;
  const dev = startDrover(["dev", "--data-dir", dataDir, "--port", "0", "--redis", redisUrl()], env);
  const ready = JSON.parse(await dev.waitForLine(/"msg":"ready"/));
  expect(ready.postgres).toBeUndefined();
  expect(JSON.parse(await dev.waitForLine("worker ready"))).toMatchObject({ backend: "redis" });
  // Made by the test before: this database has keys already, and the folder knows none of them.
  expect(ready.api_key).toBeUndefined();
  const { key } = (await drover(["keys", "create", "--data-dir", dataDir, "--json"])).json<{ key: string }>();
  const ended = await drover(["run", "What is 8 * 7?", "--wait", "--data-dir", dataDir, "--key", key]);
  expect(ended).toMatchObject({ code: 0, stdout: expect.stringContaining("56") });
  await dev.kill("SIGKILL");
  await until(() => ![ready.api, ready.worker].some(isAlive));
});

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
}
