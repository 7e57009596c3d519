/**
 * The whole service on one machine, for `drover dev` and `drover demo`: Postgres (embedded unless DATABASE_URL is set), the
 * schema, the first API key, then one API and one worker as supervised processes. Everything starts in this order, and stops in
 * the opposite one.
 */
import { once } from "node:events";
import { type ApiProcessConfig, apiProcessConfig, bootstrap, createKey } from "@drover/api";
import { ConfigurationError, loadConfig } from "@drover/protocol";
import { migrateQueue } from "@drover/queue";
import { migrate, openPool } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { workerProcessConfig } from "@drover/worker";
import type { z } from "zod";
import type { DataDir } from "../data-dir.ts";
import { CliError, exitCodes } from "../exit.ts";
import { databaseTrouble, keepDatabase } from "./database.ts";
import { requireFreePort } from "./port.ts";
import { type SupervisedChild, supervise } from "./supervise.ts";

export interface ServiceOptions {
  dataDir: DataDir;
  /** What the processes see; `PORT`, `HOST`, `REDIS_URL` and so on are read from here. */
  env: NodeJS.ProcessEnv;
  /** A line of one of the processes. */
  onLine(name: string, line: string): void;
  /** What the supervisor does or sees, for people. */
  onNews(message: string, level?: "info" | "warn" | "error"): void;
  /** Aborted when the start should not go on. */
  signal: AbortSignal;
}

export interface Service {
  url: string;
  /** The API key of this folder; undefined when it is not known here (only its hash is kept). */
  key: string | undefined;
  /** The key was made now. */
  isFirstStart: boolean;
  /** How long running steps may take to finish when the service stops, seconds. */
  graceSeconds: number;
  pids(): Record<string, number | undefined>;
  /** Resolves with the reason when a part of the service has failed for good. */
  failed: Promise<string>;
  /** Lets running steps end within the grace, hands runs over, and stops Postgres last. May be called twice. */
  stop(): Promise<void>;
  /** Ends everything at once. */
  kill(): Promise<void>;
}

/** How long API and worker may take until they serve, ms. */
const readyMs = 60_000;
/** Stands in the configuration until the embedded database has one. */
const placeholderUrl = "postgres://embedded";
const loopback = ["127.0.0.0/8", "::1/128"];

/**
 * Resolves when the API answers and a worker takes runs.
 * @throws CliError with what to do about it; then nothing is left running.
 */
export async function startService(options: ServiceOptions): Promise<Service> {
  const { dataDir, signal, onNews, onLine } = options;
  const env = serviceEnv(options.env, dataDir);
  const config = checkConfiguration(env);
  await requireNotRunning(dataDir);
  const port = await requireFreePort(config.PORT, config.HOST);
  const url = urlOf(config.HOST, port);

  const parts = config.DATABASE_URL === placeholderUrl ? "Postgres, an API and a worker" : "an API and a worker";
  onNews(`starting ${parts} …`);
  const undo: (() => Promise<void>)[] = [];
  let unwinding: Promise<void> | undefined;
  const unwind = () => {
    unwinding ??= (async () => {
      for (const step of undo.reverse()) await step();
    })();
    return unwinding;
  };
  try {
    const database = await keepDatabase({ url: options.env.DATABASE_URL || undefined, dataDir, onLine, onNews });
    undo.push(() => database.stop());
    signal.throwIfAborted();
    await migrateAll(env.DATABASE_DIRECT_URL || database.url, !config.REDIS_URL);
    const { key, isNew } = await firstKey(database.url, env, dataDir);
    signal.throwIfAborted();

    const children = ["api", "worker"].map((name) =>
      supervise({
        name,
        entry: new URL("./main.ts", import.meta.resolve(`@drover/${name}`)).href,
        env: {
          ...env,
          DATABASE_URL: database.url,
          PORT: String(port),
          DROVER_PUBLIC_URL: env.DROVER_PUBLIC_URL || url,
        },
        graceSeconds: config.SHUTDOWN_GRACE_SECONDS,
        orphanGraceSeconds: database.embedded ? 0 : config.SHUTDOWN_GRACE_SECONDS + 5,
        onLine: (line) => onLine(name, line),
        onNews: (message) => onNews(message, "warn"),
      }),
    );
    undo.push(async () => {
      await Promise.all(children.map((child) => child.stop()));
    });
    const failed = Promise.race([...children.map((child) => child.givenUp), database.failed]);
    await untilReady(children, failed, signal);
    await dataDir.setRunning({ pid: process.pid, url, database_url: database.url });
    undo.push(() => dataDir.clearRunning());
    return {
      url,
      key,
      isFirstStart: isNew,
      graceSeconds: config.SHUTDOWN_GRACE_SECONDS,
      pids: () => ({ ...Object.fromEntries(children.map(({ name, pid }) => [name, pid])), postgres: database.pid }),
      failed,
      stop: unwind,
      kill: async () => {
        await Promise.all(children.map((child) => child.kill()));
        await database.kill();
        await dataDir.clearRunning();
      },
    };
  } catch (error) {
    await unwind();
    throw error;
  }
}

/** An address that means "all" is told as the loopback one, which can be opened. */
function urlOf(host: string, port: number): string {
  const name = host === "0.0.0.0" || host === "::" ? "127.0.0.1" : host;
  return `http://${name.includes(":") ? `[${name}]` : name}:${port}`;
}

/** The environment of API and worker: what `dev` sets where its user did not. */
function serviceEnv(given: NodeJS.ProcessEnv, dataDir: DataDir): NodeJS.ProcessEnv {
  const allow = [given.DROVER_EGRESS_ALLOW, ...loopback].filter(Boolean).join(",");
  const env: NodeJS.ProcessEnv = { ...given, DROVER_EGRESS_ALLOW: allow };
  env.HOST ||= "127.0.0.1";
  env.DROVER_WORKSPACES ||= dataDir.workspaces;
  // It belongs to a database of the user's own.
  if (!given.DATABASE_URL) delete env.DATABASE_DIRECT_URL;
  return env;
}

/** All that is wrong for either process, before anything is started. */
function checkConfiguration(given: NodeJS.ProcessEnv): ApiProcessConfig {
  const env = { ...given, DATABASE_URL: given.DATABASE_URL || placeholderUrl };
  const problems = new Set<string>();
  const check = <T>(schema: z.ZodType<T>): T | undefined => {
    try {
      return loadConfig(schema, env);
    } catch (error) {
      if (!(error instanceof ConfigurationError)) throw error;
      for (const { variable, message, hint } of error.problems)
        problems.add(`${variable} ${message}${hint && ` (${hint})`}`);
      return undefined;
    }
  };
  const config = check(apiProcessConfig);
  check(workerProcessConfig);
  if (!config || problems.size > 0)
    throw new CliError(exitCodes.usage, "the configuration is not valid", [...problems]);
  return config;
}

async function requireNotRunning(dataDir: DataDir): Promise<void> {
  const running = await dataDir.running();
  if (!running) return;
  throw new CliError(
    exitCodes.failed,
    `Drover is already running on ${dataDir.path}: process ${running.pid} at ${running.url}`,
    ["use that one, stop it first, or choose another folder with --data-dir or DROVER_DATA_DIR"],
  );
}

async function migrateAll(url: string, queueToo: boolean): Promise<void> {
  try {
    await migrate(url);
    if (queueToo) await migrateQueue(url);
  } catch (error) {
    throw databaseTrouble(url, error);
  }
}

/** The first start makes an admin key and keeps it for the commands beside; later starts find that one. */
async function firstKey(
  url: string,
  env: NodeJS.ProcessEnv,
  dataDir: DataDir,
): Promise<{ key: string | undefined; isNew: boolean }> {
  const { DROVER_BOOTSTRAP_KEY, DROVER_WEBHOOK_SECRET } = env;
  const pool = openPool({ url, logger: createLogger({ name: "drover", level: "silent" }), max: 1 });
  try {
    const { keys } = await bootstrap(pool, {
      DROVER_BOOTSTRAP_KEY: DROVER_BOOTSTRAP_KEY || undefined,
      DROVER_WEBHOOK_SECRET: DROVER_WEBHOOK_SECRET || undefined,
    });
    if (DROVER_BOOTSTRAP_KEY) return { key: DROVER_BOOTSTRAP_KEY, isNew: false };
    if (keys > 0) return { key: await dataDir.readKey(), isNew: false };
    const { key } = await createKey(pool, { tenant: "default", role: "admin", name: "made at the first start" });
    await dataDir.writeKey(key);
    return { key, isNew: true };
  } finally {
    await pool.end();
  }
}

async function untilReady(children: SupervisedChild[], failed: Promise<string>, signal: AbortSignal): Promise<void> {
  const over = AbortSignal.any([signal, AbortSignal.timeout(readyMs)]);
  const reason = await Promise.race([
    Promise.all(children.map((child) => child.ready)).then(() => undefined),
    failed,
    once(over, "abort").then(() => `API and worker did not get ready within ${readyMs / 1000} s`),
  ]);
  signal.throwIfAborted();
  if (reason !== undefined) throw new CliError(exitCodes.failed, reason);
}
