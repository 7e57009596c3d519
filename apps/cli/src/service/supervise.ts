/**
 * One child process kept alive: started again with a growing pause when it dies, given up when it keeps dying at once. Children
 * have their own process group, so that Ctrl-C in a terminal reaches the supervisor alone, which then decides the order.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";

/** EX_CONFIG: the program says that its configuration is wrong; starting it again is of no use. */
const wrongConfiguration = "exit code 78";
/** Dying sooner than this after its start counts as failing at once, ms. */
const atOnceMs = 10_000;
/** Living longer than this makes the next pause the shortest again, ms. */
const steadyMs = 60_000;
const mostFailures = 5;
const longestPauseMs = 30_000;
/** How long the last lines of a dead child are waited for. */
const lastLinesMs = 1000;
/** Over the grace, for what a process does after it. */
const lastMs = 5000;

const tether = new URL("./tether.ts", import.meta.url).href;

export interface ChildOptions {
  name: string;
  /** File URL of the program. */
  entry: string;
  env: NodeJS.ProcessEnv;
  /** How long SIGTERM lets it finish what it does; the child keeps to it, the supervisor a little longer. */
  graceSeconds: number;
  /** How long it may take to stop when the supervisor is gone, seconds. */
  orphanGraceSeconds: number;
  /** The first pause before it is started again, ms; doubles (default 1000). */
  firstPauseMs?: number;
  onLine(line: string, stream: "stdout" | "stderr"): void;
  /** It died and will be started again, or was given up. */
  onNews(message: string): void;
}

export interface SupervisedChild {
  readonly name: string;
  readonly pid: number | undefined;
  /** Resolves when the program first says that it serves: `process.send({ ready: true })`. */
  readonly ready: Promise<void>;
  /** Resolves with the reason when the child is not started again. Never by `stop()`. */
  readonly givenUp: Promise<string>;
  /** SIGTERM, and SIGKILL when the grace and a little more are over. Resolves when it is gone. */
  stop(): Promise<void>;
  /** SIGKILL, now. Resolves when it is gone. */
  kill(): Promise<void>;
}

export function supervise(options: ChildOptions): SupervisedChild {
  const stopping = new AbortController();
  let child: ChildProcess | undefined;
  let giveUp!: (reason: string) => void;
  const givenUp = new Promise<string>((resolve) => {
    giveUp = resolve;
  });
  let isReady!: () => void;
  const ready = new Promise<void>((resolve) => {
    isReady = resolve;
  });

  async function keepAlive(): Promise<void> {
    let atOnce = 0;
    let failures = 0;
    while (!stopping.signal.aborted) {
      const startedAt = performance.now();
      let served = false;
      const how = await new Promise<string>((resolve) => {
        child = start(options, resolve);
        child.on("message", (message) => {
          if (!(message as { ready?: true }).ready) return;
          served = true;
          isReady();
        });
      });
      child = undefined;
      if (stopping.signal.aborted) return;
      if (how === wrongConfiguration) return giveUp(`the ${options.name} cannot start with this configuration`);
      const livedMs = performance.now() - startedAt;
      // A run that kills its worker ends as a crash loop by itself: only what never served is given up.
      atOnce = livedMs < atOnceMs && !served ? atOnce + 1 : 0;
      failures = livedMs < steadyMs ? failures + 1 : 1;
      if (atOnce >= mostFailures)
        return giveUp(`the ${options.name} ended ${atOnce} times in a row right after its start (${how})`);
      const pauseMs = Math.min(longestPauseMs, (options.firstPauseMs ?? 1000) * 2 ** (failures - 1));
      options.onNews(`the ${options.name} ended (${how}), starting it again in ${pauseMs / 1000} s`);
      await delay(pauseMs, undefined, { signal: stopping.signal }).catch(() => undefined);
    }
  }
  const ended = keepAlive();

  const end = async (signal: NodeJS.Signals) => {
    stopping.abort();
    child?.kill(signal);
    await ended;
  };
  return {
    name: options.name,
    get pid() {
      return child?.pid;
    },
    ready,
    givenUp,
    stop: async () => {
      const insist = setTimeout(() => child?.kill("SIGKILL"), options.graceSeconds * 1000 + lastMs);
      await end("SIGTERM");
      clearTimeout(insist);
    },
    kill: () => end("SIGKILL"),
  };
}

function start(options: ChildOptions, onEnd: (how: string) => void): ChildProcess {
  const child = spawn(process.execPath, ["--import", tether, fileURLToPath(options.entry)], {
    env: { ...options.env, DROVER_ORPHAN_GRACE_SECONDS: String(options.orphanGraceSeconds) },
    stdio: ["ignore", "pipe", "pipe", "ipc"],
    detached: true,
  });
  for (const stream of ["stdout", "stderr"] as const) {
    createInterface({ input: child[stream]! }).on("line", (line) => options.onLine(line, stream));
  }
  child.once("error", (error) => onEnd(error.message));
  child.once("exit", (code, signal) => {
    // Its last lines first; but a process of its own may hold the pipes for long.
    const over = () => onEnd(signal ?? `exit code ${code}`);
    child.once("close", over);
    setTimeout(over, lastLinesMs).unref();
  });
  return child;
}
