/** An own Postgres server, for tests that stop, restart or kill one. Everybody else shares the run's: see `database.ts`. */
import { execFileSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "@drover/storage";
import { freePort } from "./ports.ts";

export interface TestPostgres {
  /** Superuser URL on the empty database `drover`; stays the same over restarts. */
  url: string;
  port: number;
  pid(): number;
  /** Fast shutdown; the data is removed. */
  stop(): Promise<void>;
  /** Sends the signal to the server's main process; waits for its end when it is one that ends it. SIGKILL is a crash. */
  kill(signal: NodeJS.Signals): Promise<void>;
  /** While on: all its processes stand still. Connections stay open, new ones are accepted by the system, and nothing is answered. */
  freeze(on: boolean): void;
  /** Ends it if it runs (fast shutdown), and starts it again on the same port and data. */
  restart(): Promise<void>;
}

/** `settings` as in postgresql.conf. Commits are not flushed to disk: the data survives SIGKILL of the server, not of the machine. */
export async function startPostgres(
  options: { settings?: Record<string, string | number | boolean> } = {},
): Promise<TestPostgres> {
  const dataDir = await mkdtemp(join(tmpdir(), "drover-postgres-"));
  const port = await freePort();
  const start = () => startEmbeddedPostgres({ dataDir, port, settings: { fsync: "off", ...options.settings } });
  let server: EmbeddedPostgres = await start();
  return {
    url: server.url,
    port,
    pid: () => server.pid,
    stop: async () => {
      await server.stop();
      await rm(dataDir, { recursive: true, force: true });
    },
    kill: async (signal) => {
      process.kill(server.pid, signal);
      if (signal !== "SIGSTOP" && signal !== "SIGCONT") await server.exited;
    },
    freeze: (on) => {
      // The main process first, so that it makes no new ones meanwhile; last, it finds them all at work.
      const pids = [server.pid, ...childrenOf(server.pid)];
      for (const pid of on ? pids : pids.reverse()) signal(pid, on ? "SIGSTOP" : "SIGCONT");
    },
    restart: async () => {
      await server.stop();
      server = await start();
    },
  };
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name);
  } catch (error) {
    // It has just ended by itself.
    if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
  }
}

function childrenOf(parent: number): number[] {
  const processes = execFileSync("ps", ["-A", "-o", "pid=,ppid="], { encoding: "utf8" }).trim().split("\n");
  return processes
    .map((line) => line.trim().split(/\s+/).map(Number))
    .flatMap(([pid, of]) => (of === parent ? [pid!] : []));
}
