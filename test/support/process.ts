/** Child processes for tests: a TypeScript file run by the same Node as the tests, its output line by line. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";

export interface SpawnedNode {
  readonly pid: number;
  /** Lines of standard output so far, then those of standard error, each marked with its stream in `output`. */
  readonly lines: string[];
  /** Both streams as they came, for error messages. */
  output(): string;
  /** The first line of standard output that matches, past ones too. Rejects, with the output, when the process ends without one. */
  waitForLine(pattern: RegExp | string): Promise<string>;
  /** Sends a signal (default SIGTERM) and returns `exited`. */
  kill(signal?: NodeJS.Signals): Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  send(line: string): void;
}

/**
 * Run `file` (path or file URL). `env` is added to the environment of the tests, `undefined` removes a variable. `through`: a command that runs
 * another one, and its arguments.
 */
export function spawnNode(
  file: string | URL,
  options: { env?: Record<string, string | undefined>; args?: string[]; cwd?: string; through?: string[] } = {},
): SpawnedNode {
  const path = file instanceof URL ? file.pathname : file;
  const env: NodeJS.ProcessEnv = { ...process.env, ...options.env };
  // Vitest's own variables would make a child believe it is a test.
  for (const name of [
    "VITEST",
    "VITEST_MODE",
    "VITEST_POOL_ID",
    "VITEST_WORKER_ID",
    "NODE_OPTIONS",
    "TEST",
    "DEV",
    "PROD",
  ]) {
    if (options.env?.[name] === undefined) delete env[name];
  }
  const [command, ...rest] = [...(options.through ?? []), process.execPath, path, ...(options.args ?? [])];
  const child = spawn(command!, rest, {
    env,
    cwd: options.cwd,
    stdio: ["pipe", "pipe", "pipe"],
  });
  running.add(child);
  child.stdin.on("error", () => undefined);

  const lines: string[] = [];
  const everything: string[] = [];
  const waiting = new Set<() => void>();
  createInterface({ input: child.stdout }).on("line", (line) => {
    lines.push(line);
    everything.push(line);
    for (const look of [...waiting]) look();
  });
  createInterface({ input: child.stderr }).on("line", (line) => everything.push(`[stderr] ${line}`));
  const output = () => everything.join("\n");

  let ended = false;
  const exited = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve, reject) => {
    child.once("error", reject);
    // "close" comes after the last line.
    child.once("close", (code, signal) => {
      ended = true;
      running.delete(child);
      resolve({ code, signal });
      for (const look of [...waiting]) look();
    });
  });
  return {
    pid: child.pid!,
    lines,
    output,
    exited,
    waitForLine: (pattern) =>
      new Promise((resolve, reject) => {
        const look = () => {
          const line = lines.find((line) =>
            typeof pattern === "string" ? line.includes(pattern) : pattern.test(line),
          );
          if (line === undefined && !ended) return;
          waiting.delete(look);
          if (line !== undefined) resolve(line);
          else reject(new Error(`The process ended without a line like ${pattern}. Its output:\n${output()}`));
        };
        waiting.add(look);
        look();
      }),
    kill: (signal = "SIGTERM") => {
      child.kill(signal);
      return exited;
    },
    send: (line) => void child.stdin.write(`${line}\n`),
  };
}

/** Children a test forgot, or could not end because it crashed. */
const running = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});
