/** The command line as a test uses it: real processes of `apps/cli/bin/drover.mjs`, away from this machine's own configuration. */
import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, vi } from "vitest";
import { type SpawnedNode, spawnNode } from "../support/process.ts";

type Env = Record<string, string | undefined>;

export const program = new URL("../../apps/cli/bin/drover.mjs", import.meta.url).pathname;

/** Variables of whoever runs the tests that would change what Drover does. */
const foreign = Object.keys(process.env).filter((name) =>
  /^(DROVER_|DATABASE_|REDIS_URL|PORT$|HOST$|npm_|.*_API_KEY$|.*_BASE_URL$|FORCE_COLOR|NO_COLOR)/.test(name),
);
const clean: Env = {
  ...Object.fromEntries(foreign.map((name) => [name, undefined])),
  // Half of the many starts' time.
  NODE_COMPILE_CACHE: new URL("../../node_modules/.cache/drover-tests", import.meta.url).pathname,
};

// Every test here starts processes, and a busy machine takes its time for each.
vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

const started = new Set<SpawnedNode>();
afterAll(async () => {
  await Promise.all([...started].map((process) => process.kill("SIGKILL")));
});

export interface Ended {
  code: number;
  stdout: string;
  stderr: string;
  /** Standard output as one JSON document. */
  json<T = Record<string, unknown>>(): T;
}

/** Runs a command to its end. */
export async function drover(
  args: string[],
  options: { env?: Env; input?: string; cwd?: string } = {},
): Promise<Ended> {
  return await new Promise((resolve) => {
    const env = { ...process.env, ...clean, ...options.env };
    const child = execFile(process.execPath, [program, ...args], { env, cwd: options.cwd }, (error, stdout, stderr) => {
      const code = error ? Number(error.code) : 0;
      resolve({ code, stdout, stderr, json: () => JSON.parse(stdout) });
    });
    child.stdin!.end(options.input ?? "");
  });
}

/** Starts a command that stays; one that a test forgets ends with its file. */
export function startDrover(args: string[], env: Env = {}): SpawnedNode {
  const process = spawnNode(program, { args, env: { ...clean, ...env } });
  started.add(process);
  void process.exited.finally(() => started.delete(process));
  return process;
}

export interface Dev {
  process: SpawnedNode;
  url: string;
  pids: { supervisor: number; api: number; worker: number; postgres: number };
  /** Shown at the first start only. */
  key: string | undefined;
}

/** Starts `drover dev` and returns when it is ready. */
export async function startDev(dataDir: string, env: Env = {}): Promise<Dev> {
  const process = startDrover(["dev", "--data-dir", dataDir, "--port", "0"], env);
  const line = JSON.parse(await process.waitForLine(/"msg":"ready"/));
  const { url, api, worker, postgres, supervisor, api_key: key } = line;
  return { process, url, pids: { supervisor, api, worker, postgres }, key };
}

/** A folder of the test's own. */
export async function temporaryFolder(): Promise<{ path: string; remove(): Promise<void> }> {
  const path = await mkdtemp(join(tmpdir(), "drover-cli-"));
  return { path, remove: () => rm(path, { recursive: true, force: true, maxRetries: 3 }) };
}

/** Processes of this machine that were started with `text` in their command line or environment. */
export async function processesWith(text: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)) {
    const [command, environment, state] = await Promise.all(
      ["cmdline", "environ", "stat"].map((file) => readFile(`/proc/${pid}/${file}`, "utf8").catch(() => "")),
    );
    const isZombie = / Z /.test(state!);
    if (!isZombie && `${command} ${environment}`.includes(text)) found.push(`${pid} ${command!.replaceAll("\0", " ")}`);
  }
  return found;
}

/** Resolves when `condition` holds: for what has no event. The test's own time limit ends it. */
export async function until(condition: () => Promise<boolean> | boolean): Promise<void> {
  while (!(await condition())) await delay(50);
}
