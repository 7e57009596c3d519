/**
 * The service's Postgres: the one DATABASE_URL names, or an embedded one in the data folder, which is started again on the same
 * port should it die. An embedded server never outlives this process: `startEmbeddedPostgres` sees to that, also after SIGKILL.
 */
import { setTimeout as delay } from "node:timers/promises";
import { type EmbeddedPostgres, startEmbeddedPostgres } from "@drover/storage";
import type { DataDir } from "../data-dir.ts";
import { CliError, exitCodes } from "../exit.ts";

export interface LocalDatabase {
  /** Holds the password: never log it. */
  url: string;
  embedded: boolean;
  /** Process id of the embedded server. */
  readonly pid: number | undefined;
  /** Resolves with the reason when the embedded server cannot be kept alive. */
  failed: Promise<string>;
  /** Fast shutdown; what is committed stays. */
  stop(): Promise<void>;
  /** At once; the next start recovers from the log. */
  kill(): Promise<void>;
}

const mostRestarts = 5;
/** A server that lived longer than this, ms, gets the full number of restarts again. */
const steadyMs = 60_000;

export async function keepDatabase(options: {
  url: string | undefined;
  dataDir: DataDir;
  onLine?(name: string, line: string): void;
  onNews?(message: string, level: "warn"): void;
}): Promise<LocalDatabase> {
  if (options.url !== undefined) {
    const nothing = async () => {};
    return {
      url: options.url,
      embedded: false,
      pid: undefined,
      failed: new Promise(() => {}),
      stop: nothing,
      kill: nothing,
    };
  }
  const start = (port?: number) =>
    startEmbeddedPostgres({
      dataDir: options.dataDir.postgres,
      ...(port !== undefined && { port }),
      log: (line) => isTrouble(line) && options.onLine?.("postgres", line),
    });
  let server: EmbeddedPostgres;
  try {
    server = await start();
  } catch (error) {
    throw new CliError(exitCodes.failed, (error as Error).message);
  }
  const stopping = new AbortController();
  let fail!: (reason: string) => void;
  const failed = new Promise<string>((resolve) => {
    fail = resolve;
  });

  async function keepAlive(): Promise<void> {
    let restarts = 0;
    let startedAt = performance.now();
    for (;;) {
      const { code, signal } = await server.exited;
      if (stopping.signal.aborted) return;
      restarts = performance.now() - startedAt > steadyMs ? 1 : restarts + 1;
      if (restarts > mostRestarts) return fail(`Postgres ended ${restarts} times in a row`);
      options.onNews?.(`Postgres ended (${signal ?? `exit code ${code}`}), starting it again`, "warn");
      await delay(250 * 2 ** (restarts - 1), undefined, { signal: stopping.signal }).catch(() => {});
      if (stopping.signal.aborted) return;
      startedAt = performance.now();
      try {
        server = await start(server.port);
      } catch (error) {
        return fail((error as Error).message);
      }
    }
  }
  const ended = keepAlive();

  const end = async (how: () => unknown) => {
    stopping.abort();
    await how();
    await ended;
    // It may have come back while it was told to stop.
    await server.stop();
  };
  return {
    url: server.url,
    embedded: true,
    get pid() {
      return server.pid;
    },
    failed,
    stop: () => end(() => server.stop()),
    kill: () => end(() => signalServer(server.pid, "SIGQUIT")),
  };
}

/** Lines of the server that a person should see; clients' own errors are reported where they happen. */
function isTrouble(line: string): boolean {
  return /\b(PANIC|FATAL):/.test(line) && !/administrator command|shutting down|starting up/.test(line);
}

function signalServer(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // gone already
  }
}

/** A database error as the operator should read it: where, and why; never the password. */
export function databaseTrouble(url: string, error: unknown): CliError {
  const { host } = new URL(url);
  const { code, message } = error as { code?: string; message: string };
  const reason = error instanceof AggregateError ? (error.errors[0] as Error).message : message;
  const variable = "DATABASE_URL";
  if (code === "ECONNREFUSED" || code === "ENOTFOUND" || code === "ETIMEDOUT")
    return new CliError(exitCodes.failed, `cannot reach Postgres at ${host} (${reason}); is ${variable} right?`);
  if (code === "28P01" || code === "28000" || code === "3D000")
    return new CliError(exitCodes.failed, `Postgres at ${host} refuses ${variable}: ${reason}`);
  return new CliError(exitCodes.failed, `Postgres at ${host}: ${reason}`);
}
