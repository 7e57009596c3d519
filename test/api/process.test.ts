import { fork } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { createDatabase, type TestDatabase } from "../support/database.ts";
import { spawnNode } from "../support/process.ts";
import { openStream } from "./sse.ts";
import { environment, redisEnvironment } from "./world.ts";

const main = new URL("../../apps/api/src/main.ts", import.meta.url);
const key = "process-0123456789abcdef";
let database: TestDatabase;
let folder: string;
beforeAll(async () => {
  database = await createDatabase();
  folder = await mkdtemp(join(tmpdir(), "drover-api-"));
});
afterAll(async () => {
  await database.drop();
  await rm(folder, { recursive: true, force: true });
});

const env = (more: Record<string, string | undefined> = {}) => ({
  ...environment(database.url, { ...redisEnvironment(), DROVER_BOOTSTRAP_KEY: key }),
  ...more,
});
const start = (more: Record<string, string | undefined> = {}) => spawnNode(main, { env: env(more), cwd: folder });
const urlOf = async (api: ReturnType<typeof start>) =>
  (JSON.parse(await api.waitForLine(/"url":"http/)) as { url: string }).url;
const authorization = `Bearer ${key}`;

test("every wrong variable is named at once, with what it means and never its value", async () => {
  const api = start({
    PORT: "http",
    DATABASE_URL: "mysql://root:hunter2@db",
    REDIS_URL: "nope",
    DROVER_EGRESS_ALLOW: "10.0.0.0",
    DROVER_BOOTSTRAP_KEY: "short",
    DROVER_WEBHOOK_SECRET: "whsec_short",
    LEASE_SECONDS: "-1",
    LOG_LEVEL: "loud",
  });
  const { code } = await api.exited;
  expect(code).toBe(78);
  const lines = api.output();
  for (const name of [
    "PORT",
    "DATABASE_URL",
    "REDIS_URL",
    "DROVER_EGRESS_ALLOW",
    "DROVER_BOOTSTRAP_KEY",
    "DROVER_WEBHOOK_SECRET",
    "LEASE_SECONDS",
    "LOG_LEVEL",
  ])
    expect(lines).toMatch(new RegExp(`^\\[stderr\\]   ${name} .+ \\(.+\\)$`, "m"));
  expect(lines).not.toMatch(/hunter2| {4}at /);
});

test("without DATABASE_URL it says so", async () => {
  const api = start({ DATABASE_URL: "" });
  expect((await api.exited).code).toBe(78);
  expect(api.output()).toContain("DATABASE_URL must be set");
});

test("a drover.config.ts that is not valid is told in full", async () => {
  const config = join(folder, "broken.config.ts");
  await writeFile(config, 'export default { agents: { "No Name": {}, fine: { tools: ["nothing"] } } };');
  const api = start({ DROVER_CONFIG: config });
  expect((await api.exited).code).toBe(78);
  expect(api.output()).toContain("broken.config.ts is not valid");
});

test("its agents are those of drover.config.ts, built-in tools included", async () => {
  const config = join(folder, "agents.config.ts");
  await writeFile(config, 'export default { agents: { sage: { tools: ["calculate"], maxIterations: 3 } } };');
  const api = start({ DROVER_CONFIG: config });
  const url = await urlOf(api);
  const response = await fetch(`${url}/query`, {
    method: "POST",
    headers: { authorization, "content-type": "application/json" },
    body: '{"query":"x","agent":"nobody"}',
  });
  expect(((await response.json()) as { detail: string }).detail).toContain("default, sage");
  expect(await api.kill()).toEqual({ code: 0, signal: null });
});

test("a busy port is one clear line", async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const api = start({ PORT: String(port) });
  expect((await api.exited).code).toBe(1);
  const errors = api
    .output()
    .split("\n")
    .filter((line) => line.startsWith("[stderr]"));
  expect(errors).toEqual([
    `[stderr] Port ${port} on 127.0.0.1 is in use: stop what listens there, or set PORT to another.`,
  ]);
  server.close();
});

test("a database that refuses us is one clear line", async () => {
  const wrong = new URL(database.url);
  wrong.pathname = "/there_is_none";
  const api = start({ DATABASE_URL: wrong.href });
  expect((await api.exited).code).toBe(1);
  expect(api.output()).toMatch(/^\[stderr\] The API cannot start: .*there_is_none/m);
  expect(api.output()).not.toContain("    at ");
});

test("SIGTERM ends streams politely, finishes requests, and exits 0", async () => {
  const api = start();
  const url = await urlOf(api);
  const accepted = await fetch(`${url}/query`, {
    method: "POST",
    headers: { authorization, "content-type": "application/json" },
    body: '{"query":"x"}',
  });
  const { task_id } = (await accepted.json()) as { task_id: string };
  const stream = await openStream(`${url}/query/${task_id}/events`, { authorization });
  await stream.next((event) => event.event === "run.queued");
  const waiting = fetch(`${url}/query/status/${task_id}?wait=60`, { headers: { authorization } });
  // The long poll is on its way when this later request has been answered.
  await fetch(`${url}/health`);
  const ended = api.kill("SIGTERM");
  await stream.ended;
  expect((await waiting).status).toBe(200);
  expect(await ended).toEqual({ code: 0, signal: null });
  expect(api.output()).not.toContain(key);
});

test("a connection that never sent a request does not hold up the end", async () => {
  const api = start();
  const { port } = new URL(await urlOf(api));
  const silent = connect(Number(port), "127.0.0.1");
  await once(silent, "connect");
  silent.on("error", () => {});
  // Killed by its own grace, it would exit 1.
  expect(await api.kill("SIGTERM")).toEqual({ code: 0, signal: null });
  silent.destroy();
});

test("an upload that takes for ever does not hold up the end, nor make it a failure", async () => {
  const api = start({ SHUTDOWN_GRACE_SECONDS: "3" });
  const { port } = new URL(await urlOf(api));
  const slow = connect(Number(port), "127.0.0.1");
  slow.on("error", () => {});
  await once(slow, "connect");
  slow.write(
    `POST /query HTTP/1.1\r\nhost: x\r\nauthorization: ${authorization}\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n{`,
  );
  const dripping = setInterval(() => slow.write(" "), 100);
  const closed = new Promise((resolve) => slow.once("close", resolve));
  await fetch(`http://127.0.0.1:${port}/health`);
  expect(await api.kill("SIGTERM")).toEqual({ code: 0, signal: null });
  clearInterval(dripping);
  await closed;
});

test("it ends when its parent does", async () => {
  const child = fork(main.pathname, [], {
    env: { ...process.env, ...env(), NODE_OPTIONS: "" },
    cwd: folder,
    stdio: ["ignore", "ignore", "ignore", "ipc"],
    execArgv: [],
  });
  const [message] = await once(child, "message");
  expect(message).toEqual({ ready: true, url: expect.stringMatching(/^http:\/\/127\.0\.0\.1:\d+$/) });
  child.disconnect();
  const [code] = await once(child, "exit");
  expect(code).toBe(0);
});
