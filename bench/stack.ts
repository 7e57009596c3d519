/** The servers and processes of a bench: Postgres and Redis with the durability of production, Drover's own processes, and their ends. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { migrateQueue } from "@drover/queue";
import { migrate, openPool, type Pool, startEmbeddedPostgres } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { bootstrap } from "../apps/api/src/index.ts";

export type Backend = "redis" | "postgres";
export const apiKey = "drv_bench_0000000000000000000000000000000000";

export interface Stack {
  pool: Pool;
  databaseUrl: string;
  redisUrl: string;
  postgresPid: number;
  redisPid: number;
  /** Environment of a Drover process on this backend. */
  env(backend: Backend): Record<string, string>;
  stop(): Promise<void>;
}

/** Postgres as it comes (fsync on, synchronous commit on), Redis with AOF every second. */
export async function startStack(settings: Record<string, string | number | boolean> = {}): Promise<Stack> {
  const folder = await mkdtemp(join(tmpdir(), "drover-bench-"));
  const postgres = await startEmbeddedPostgres({ dataDir: join(folder, "postgres"), settings });
  await migrate(postgres.url);
  await migrateQueue(postgres.url);
  const port = await freePort();
  const redis = spawn(
    "redis-server",
    [
      "--port",
      String(port),
      "--bind",
      "127.0.0.1",
      "--appendonly",
      "yes",
      "--save",
      "",
      "--maxmemory-policy",
      "noeviction",
      "--dir",
      folder,
    ],
    { stdio: ["ignore", "pipe", "inherit"] },
  );
  for await (const line of createInterface({ input: redis.stdout })) if (line.includes("Ready to accept")) break;
  redis.stdout.resume();
  const logger = createLogger({ name: "bench", level: "fatal" });
  const pool = openPool({ url: postgres.url, logger, max: 4 });
  await bootstrap(pool, { DROVER_BOOTSTRAP_KEY: apiKey });
  const redisUrl = `redis://127.0.0.1:${port}`;
  return {
    pool,
    databaseUrl: postgres.url,
    redisUrl,
    postgresPid: postgres.pid,
    redisPid: redis.pid!,
    env: (backend) => ({
      DATABASE_URL: postgres.url,
      LOG_LEVEL: "error",
      DROVER_EGRESS_ALLOW: "127.0.0.0/8",
      ...(backend === "redis" && { REDIS_URL: redisUrl }),
    }),
    async stop() {
      await pool.end();
      redis.kill();
      await once(redis, "exit");
      await postgres.stop();
      await rm(folder, { recursive: true, force: true });
    },
  };
}

export interface Running {
  pid: number;
  send(message: string): void;
  /** Resolves with the first line of standard output, from now on, that matches. */
  line(pattern: RegExp): Promise<RegExpExecArray>;
  /** Resolves when it has ended, by whatever. */
  ended: Promise<void>;
  stop(signal?: NodeJS.Signals): Promise<void>;
}

const children = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
});

/** Starts a TypeScript entry of this repository under this Node, able to collect its garbage and tell its memory. */
export function run(entry: string, env: Record<string, string>, args: string[] = []): Running {
  const file = new URL(`../${entry}`, import.meta.url).pathname;
  const memory = new URL("./memory-process.ts", import.meta.url).pathname;
  const child = spawn(process.execPath, ["--expose-gc", "--import", memory, file, ...args], {
    env: { PATH: process.env.PATH, ...env },
    stdio: ["ignore", "pipe", "inherit", "ipc"],
  });
  children.add(child);
  const lines = createInterface({ input: child.stdout! });
  const ended = once(child, "exit").then(() => {
    children.delete(child);
  });
  return {
    pid: child.pid!,
    ended,
    send: (message) => void child.send(message),
    line: (pattern) =>
      new Promise((resolve, reject) => {
        const look = (line: string) => {
          const match = pattern.exec(line);
          if (!match) return;
          lines.off("line", look);
          resolve(match);
        };
        lines.on("line", look);
        void ended.then(() => reject(new Error(`${entry} ended before it said ${pattern}`)));
      }),
    async stop(signal = "SIGTERM") {
      child.kill(signal);
      await ended;
    },
  };
}

/** Drover's API on a free port; resolves with its URL when it answers. */
export async function startApi(stack: Stack, backend: Backend): Promise<{ url: string; process: Running }> {
  const port = await freePort();
  const api = run("apps/api/src/main.ts", { ...stack.env(backend), PORT: String(port), HOST: "127.0.0.1" });
  const url = `http://127.0.0.1:${port}`;
  await until(async () => (await fetch(`${url}/ready`).catch(() => null))?.ok ?? false);
  return { url, process: api };
}

/** A worker; resolves when it is registered. */
export async function startWorker(stack: Stack, backend: Backend, more: Record<string, string>): Promise<Running> {
  const before = await count(stack.pool, "SELECT count(*) FROM workers");
  const worker = run("apps/worker/src/main.ts", { ...stack.env(backend), SHUTDOWN_GRACE_SECONDS: "1", ...more });
  await until(async () => (await count(stack.pool, "SELECT count(*) FROM workers")) > before);
  return worker;
}

export async function count(pool: Pool, sql: string): Promise<number> {
  return (await pool.query<{ count: number }>(sql)).rows[0]!.count;
}

/** Polls, for benches only: what is measured is read from timestamps, never from this loop. */
export async function until(done: () => Promise<boolean>, everyMs = 50): Promise<void> {
  while (!(await done())) await new Promise((resolve) => setTimeout(resolve, everyMs));
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  return port;
}
