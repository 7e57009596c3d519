/** `npm run chaos`: the torture run, or the chaos suite in full. See `--help`. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { parseArgs } from "node:util";
import { figureLines, violationLines } from "./figures.ts";
import { type Backend, makePlan, type PlanOptions, planLines } from "./plan.ts";
import { logPath, torture } from "./torture.ts";

const help = `npm run chaos -- --minutes 5 [--seed N] [--backend redis|postgres] [--workers 3] [--rate 8] [--lease 10] [--keep]
    Clients submit, cancel and approve while processes are killed, stopped and cut off, Redis is flushed and Postgres crashes, as the
    seed says. At the end everything is mended, and what must hold is checked from the database and from the model server's, the tools'
    and the webhook receivers' own books. Exit code 1 with what was violated, and where the logs are.
npm run chaos -- --minutes 5 --seed N --plan
    Prints what that run would do, and when.
npm run chaos -- --suite [--full]
    The tests of test/chaos: every fault of docs/guarantees.md, one by one. With --full outages last as long as they do in life, and loads are
    five times as large.

  --minutes   how long things are broken; mending and checking come after it
  --seed      repeats the plan of another run (default: a new one, which is printed)
  --backend   where BullMQ's jobs are (default: redis for even seeds, postgres for odd ones)
  --workers   worker processes (default 3); two API processes are always there
  --rate      queries a second (default 8)
  --lease     LEASE_SECONDS of the workers (default 10)
  --keep      keep the folder with the processes' output also when nothing was violated`;

const { values } = parseArgs({
  options: {
    minutes: { type: "string" },
    seed: { type: "string" },
    backend: { type: "string" },
    workers: { type: "string" },
    rate: { type: "string" },
    lease: { type: "string" },
    plan: { type: "boolean" },
    suite: { type: "boolean" },
    full: { type: "boolean" },
    keep: { type: "boolean" },
    help: { type: "boolean" },
  },
});

if (values.suite) process.exit(await runSuite());
const minutes = number("minutes", undefined, 0.05, 10_000);
if (values.help || minutes === undefined) {
  console.log(help);
  process.exit(values.help ? 0 : 64);
}
const seed = number("seed", Math.floor(Math.random() * 1e6), 0, 2 ** 32 - 1)!;
const options: PlanOptions = {
  seed,
  durationMs: minutes * 60_000,
  backend: backendOf(values.backend ?? (seed % 2 === 0 ? "redis" : "postgres")),
  apis: 2,
  workers: number("workers", 3, 1, 20)!,
  rate: number("rate", 8, 0.1, 1000)!,
  leaseMs: number("lease", 10, 2, 60)! * 1000,
};
const name = `seed ${seed}, ${minutes} min, BullMQ on ${options.backend}, ${options.workers} workers, ${options.rate} queries/s`;
if (values.plan) {
  console.log(name);
  for (const line of planLines(makePlan(options))) console.log(line);
  process.exit(0);
}

console.log(name);
const interrupted = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.on(signal, () => {
    if (!interrupted.signal.aborted) console.log("\nstopping everything");
    interrupted.abort();
  });
const tty = process.stdout.isTTY;
let lines = 0;
const verdict = await torture({
  ...options,
  patienceMs: 60_000,
  keep: values.keep ?? false,
  signal: interrupted.signal,
  onProgress: (line) => {
    if (tty) process.stdout.write(`\r\x1b[2K${line}`);
    else if (lines++ % 15 === 0) console.log(line);
  },
});
if (tty) process.stdout.write("\r\x1b[2K");
if (!verdict) process.exit(130);
for (const line of figureLines(verdict.figures)) console.log(line);
const { violations, folder } = verdict;
for (const line of violationLines(violations, (run) => logPath(folder!, run))) console.log(line);
if (folder) console.log(`output of the processes: ${folder}`);
console.log(violations.length === 0 ? `nothing violated; ${name}` : `${violations.length} violations; ${name}`);
process.exit(violations.length === 0 ? 0 : 1);

function number(
  option: "minutes" | "seed" | "workers" | "rate" | "lease",
  otherwise: number | undefined,
  least: number,
  most: number,
) {
  const text = values[option];
  if (text === undefined) return otherwise;
  const value = Number(text);
  if (text.trim() === "" || !(value >= least && value <= most))
    fail(`--${option} must be a number from ${least} to ${most}, not "${text}"`);
  return value;
}

function backendOf(text: string): Backend {
  if (text !== "redis" && text !== "postgres") fail(`--backend must be redis or postgres, not "${text}"`);
  return text;
}

function fail(text: string): never {
  console.error(text);
  process.exit(64);
}

async function runSuite(): Promise<number> {
  const vitest = new URL("../../../node_modules/vitest/vitest.mjs", import.meta.url).pathname;
  const child = spawn(process.execPath, [vitest, "run", "test/chaos"], {
    stdio: "inherit",
    env: { ...process.env, ...(values.full && { DROVER_CHAOS: "full" }) },
  });
  const [code] = (await once(child, "exit")) as [number | null];
  return code ?? 1;
}
