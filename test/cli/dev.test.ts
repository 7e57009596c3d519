/** `drover dev` with real processes: starts, serves, survives deaths of its parts, and leaves nothing behind however it ends. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFile, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createDatabase } from "../support/database.ts";
import { type Dev, drover, processesWith, program, startDev, temporaryFolder, until } from "./drover.ts";

const folder = await temporaryFolder();
const dataDir = join(folder.path, "data");
// A dead worker's run is taken over after a second, not ten.
const env = { LEASE_SECONDS: "1", DROVER_MARK: folder.path };

let dev: Dev;
let key: string;

beforeAll(async () => {
  dev = await startDev(dataDir, env);
  key = dev.key!;
});

afterAll(async () => {
  await dev.process.kill("SIGTERM");
  await folder.remove();
});

const client = (...args: string[]) => drover([...args, "--data-dir", dataDir]);

async function submit(query: string): Promise<string> {
  return (await client("run", query, "--json")).json<{ task_id: string }>().task_id;
}

/** Resolves once the log of the run holds an event of this type. */
const logged = (id: string, type: string) =>
  until(async () => (await client("events", id, "--json")).stdout.includes(`"type":"${type}"`));

const gone = () => until(async () => (await processesWith(folder.path)).length === 0);

describe("a first start", () => {
  it("makes an admin key, prints it once, and keeps it for its user only", async () => {
    expect(key).toMatch(/^drv_[\w-]{20,}$/);
    expect((await readFile(join(dataDir, "api-key"), "utf8")).trim()).toBe(key);
    for (const file of ["api-key", "service.json"])
      expect((await stat(join(dataDir, file))).mode & 0o777, file).toBe(0o600);
    expect(dev.process.output().split(key)).toHaveLength(2);
    const secret = await fetch(`${dev.url}/webhooks/secret`, { headers: { authorization: `Bearer ${key}` } });
    expect(secret.status).toBe(200);
  });

  it("serves: API, reference and Bull Board where it says, a run to its end", async () => {
    const { docs, queues } = JSON.parse(await dev.process.waitForLine(/"msg":"ready"/));
    expect((await fetch(docs)).status).toBe(200);
    const board = await fetch(queues, { headers: { authorization: `Basic ${btoa(`any:${key}`)}` } });
    expect(board.status).toBe(200);
    const ended = await client("run", "What is 17 * 23?", "--wait");
    expect(ended).toMatchObject({ code: 0, stdout: expect.stringContaining("391") });
  });

  it("lets callbacks reach this machine, and nothing else that is private", async () => {
    const loopback = await client("run", "2+2", "--callback-url", "http://127.0.0.1:9/hook");
    expect(loopback.code).toBe(0);
    const other = await client("run", "2+2", "--callback-url", "http://10.0.0.1/hook");
    expect(other).toMatchObject({
      code: 6,
      stderr: expect.stringContaining("callback_url: must not point to a private"),
    });
  });
});

it("demo uses the service that runs already, tells all in one JSON document, and leaves it running", async () => {
  const ended = await client("demo", "--json");
  expect(ended.code, ended.stderr).toBe(0);
  const shown = ended.json<{ events: { type: string }[] }>();
  expect(shown).toMatchObject({
    url: dev.url,
    result: { status: "success", tools_called: ["calculate", "wait", "http_get"], cost_usd: 0 },
    webhook: { verified: true, tampered_refused: true, body: { type: "query.completed" } },
  });
  expect(shown.events.at(-1)!.type).toBe("run.completed");
  expect((await fetch(`${dev.url}/health`)).status).toBe(200);
});

describe("another start", () => {
  it("on the same folder says who runs there", async () => {
    const second = await drover(["dev", "--data-dir", dataDir, "--port", "0"]);
    expect(second.code).toBe(1);
    expect(second.stderr).toContain(`already running on ${dataDir}: process ${dev.pids.supervisor} at ${dev.url}`);
    expect(second.stderr).toContain("--data-dir");
    expect(await client("list", "--limit", "1")).toMatchObject({ code: 0 });
  });

  it("on a busy port names it and how to choose another, before anything is started", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address() as { port: number };
    const fresh = join(folder.path, "busy");
    const busy = await drover(["dev", "--data-dir", fresh], { env: { PORT: String(port) } });
    server.close();
    expect(busy.code).toBe(1);
    expect(busy.stderr.trim()).toBe(
      `drover: port ${port} on 127.0.0.1 is in use by another program; choose another with --port or PORT`,
    );
    await expect(stat(fresh)).rejects.toThrow("ENOENT");
  });

  it("with a wrong configuration names every wrong variable, of API and worker, before anything is started", async () => {
    const fresh = join(folder.path, "wrong");
    const wrong = await drover(["dev", "--data-dir", fresh, "--port", "eighty"], {
      env: { LEASE_SECONDS: "-1", MODEL_IDLE_TIMEOUT_SECONDS: "soon" },
    });
    expect(wrong.code).toBe(2);
    for (const name of ["PORT", "LEASE_SECONDS", "MODEL_IDLE_TIMEOUT_SECONDS"])
      expect(wrong.stderr.match(new RegExp(`^  ${name} `, "gm")), name).toHaveLength(1);
    await expect(stat(fresh)).rejects.toThrow("ENOENT");
  });

  it("on a database that cannot be reached says so without its password", async () => {
    const lost = await drover(["dev", "--data-dir", join(folder.path, "lost"), "--port", "0"], {
      env: { DATABASE_URL: "postgres://me:hunter2hunter2@127.0.0.1:1/db" },
    });
    expect(lost.code).toBe(1);
    expect(lost.stderr).toContain("cannot reach Postgres at 127.0.0.1:1");
    expect(lost.stderr + lost.stdout).not.toContain("hunter2");
  });

  it("with a broken drover.config.ts ends with what is wrong in it", async () => {
    const broken = join(folder.path, "broken.config.ts");
    await writeFile(broken, "export default { agents: { Bad: { tools: 3 } } };\n");
    const database = await createDatabase();
    const ended = await drover(["dev", "--data-dir", join(folder.path, "broken"), "--port", "0"], {
      env: { DROVER_CONFIG: broken, DATABASE_URL: database.url },
    });
    await database.drop();
    expect(ended.code).toBe(1);
    expect(ended.stdout).toContain("agents.Bad");
    expect(ended.stderr).toContain("cannot start with this configuration");
  });
});

describe("a part that dies", () => {
  it("worker: is started again, and its run goes on", async () => {
    const id = await submit("Wait 6 seconds, then 6 * 7");
    await logged(id, "model.call");
    process.kill(dev.pids.worker, "SIGKILL");
    await dev.process.waitForLine(/the worker ended \(SIGKILL\), starting it again in 1 s/);
    const ended = await client("result", id, "--wait", "--json");
    expect(ended.code).toBe(0);
    expect(ended.json<{ output: string }>().output).toContain("6 * 7: 42");
    const types = (await client("events", id, "--json")).stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line).type);
    expect(types).toContain("run.rescued");
    expect(types.filter((type) => type === "model.call")).toHaveLength(3);
  });

  it("Postgres: comes back where it was, with its data", async () => {
    const id = await submit("1 + 1");
    process.kill(dev.pids.postgres, "SIGKILL");
    await dev.process.waitForLine(/Postgres ended \(SIGKILL\), starting it again/);
    await until(async () => (await client("status", id)).code === 0);
    const ended = await client("run", "What is 2 + 3?", "--wait", "--idempotency-key", "after-the-crash");
    expect(ended).toMatchObject({ code: 0, stdout: expect.stringContaining("5") });
  });
});

describe("the end", () => {
  it("by Ctrl-C leaves no process, and the next start finds its data and shows no key", async () => {
    const id = await submit("What is 5 * 5?");
    await client("result", id, "--wait");
    const { code } = await dev.process.kill("SIGINT");
    expect(code).toBe(0);
    expect(await processesWith(folder.path)).toEqual([]);
    await expect(stat(join(dataDir, "service.json"))).rejects.toThrow("ENOENT");

    dev = await startDev(dataDir, env);
    expect(dev.key).toBeUndefined();
    expect(dev.process.output()).not.toContain("drv_");
    expect((await client("result", id)).stdout).toContain("25");
  });

  it("by a second Ctrl-C does not wait for running steps", async () => {
    const id = await submit("Wait 100 seconds");
    await logged(id, "model.call");
    process.kill(dev.process.pid, "SIGINT");
    await dev.process.waitForLine(/"msg":"stopping: handing runs over"/);
    // npm doubles a Ctrl-C within milliseconds; a person does not.
    await delay(500);
    process.kill(dev.process.pid, "SIGINT");
    expect((await dev.process.exited).code).toBe(0);
    expect(dev.process.output()).not.toContain("worker stopped");
    expect(await processesWith(folder.path)).toEqual([]);
    dev = await startDev(dataDir, env);
    await client("cancel", id);
  });

  it("of the supervisor by SIGKILL leaves nothing that lives on; the next start takes over, and ends with its npm", async () => {
    const id = await submit("Wait 1 second, then 8 * 8");
    await logged(id, "model.call");
    await dev.process.kill("SIGKILL");
    await gone();

    // npm runs a shell that runs us. A SIGTERM ends npm and the shell, and tells us nothing.
    const command = `"${process.execPath}" "${program}" dev --data-dir "${dataDir}" --port 0; true`;
    const shell = spawn("/bin/sh", ["-c", command], { env: { ...process.env, ...env, npm_lifecycle_event: "start" } });
    for await (const line of createInterface({ input: shell.stdout })) if (line.includes('"msg":"ready"')) break;
    expect((await client("result", id, "--wait")).stdout).toContain("64");
    shell.kill("SIGKILL");
    await gone();
  });
});
