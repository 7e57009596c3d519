/**
 * `npm run bench`: Drover beside raw BullMQ, in one run, on the same Redis and the same Postgres. Prints a table; `--write` puts it into
 * `bench/results.md`; `--quick` takes a tenth; `--only submit,pickup,runs,memory,audit,isolation,delivery,recovery,crash,snapshot,cost,growth`; `--growth 1,3,10`
 * says over how many million runs (not part of a run without `--only`: it takes its time).
 */
import { readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { auditRates } from "./audit.ts";
import { costOfRuns, costTable, counting } from "./cost.ts";
import { loneWorker, poison } from "./crash.ts";
import { deliveryLatency } from "./delivery.ts";
import { fill, growth } from "./growth.ts";
import { isolationCosts } from "./isolation.ts";
import { type LoadResult, load, percentiles } from "./load.ts";
import { type Blow, type Recovery, recovery } from "./recovery.ts";
import { snapshotPages } from "./snapshot.ts";
import {
  apiKey,
  type Backend,
  count,
  freePort,
  type Running,
  run,
  type Stack,
  startApi,
  startStack,
  startWorker,
  until,
} from "./stack.ts";

const { values } = parseArgs({
  options: {
    quick: { type: "boolean" },
    write: { type: "boolean" },
    only: { type: "string" },
    growth: { type: "string", default: "1" },
    help: { type: "boolean" },
  },
});
if (values.help) {
  console.log(
    "npm run bench -- [--quick] [--write] [--only submit,pickup,runs,memory,audit,isolation,delivery,recovery,crash,snapshot,cost,growth] [--growth 1,3,10]",
  );
  process.exit(0);
}
const share = values.quick ? 0.1 : 1;
const wanted = new Set(
  values.only?.split(",") ?? [
    "submit",
    "pickup",
    "runs",
    "memory",
    "audit",
    "isolation",
    "delivery",
    "recovery",
    "crash",
    "snapshot",
    "cost",
  ],
);
const backends: Backend[] = ["redis", "postgres"];
const rows: string[][] = [];
const noop = { DROVER_CONFIG: new URL("./noop.config.ts", import.meta.url).pathname, DROVER_MODEL: "noop/noop" };
const json = { "content-type": "application/json" };
const body = JSON.stringify({ query: "x".repeat(280) });

function row(what: string, backend: string, floor: string, ours: string, ratio: string, aim = ""): void {
  rows.push([what, backend, floor, ours, ratio, aim]);
  console.log(`${what} | ${backend} | raw ${floor} | drover ${ours} | ${ratio} ${aim && `(aim: ${aim})`}`);
}
const rate = (result: LoadResult) =>
  `${Math.round(result.perSecond)}/s, p50 ${result.p50.toFixed(2)}, p99 ${result.p99.toFixed(2)} ms`;
const raw = (stack: Stack, backend: Backend, env: Record<string, string>) =>
  run("bench/raw.ts", {
    ...(backend === "redis" ? { REDIS_URL: stack.redisUrl } : { DATABASE_URL: stack.databaseUrl }),
    ...env,
  });

/** Accepted submissions per second, no worker running: an HTTP server over `queue.add`, and Drover's API with its commit. */
async function submissions(stack: Stack, backend: Backend): Promise<void> {
  const requests = { 1: Math.round(3000 * share), 32: Math.round(30_000 * share) };
  const port = await freePort();
  const front = raw(stack, backend, { MODE: "front", PORT: String(port) });
  await front.line(/^ready/);
  const floor: Record<number, LoadResult> = {};
  const both = async (connections: 1 | 32, target: { url: string; path: string; headers: Record<string, string> }) =>
    load({ ...target, body, connections, requests: requests[connections], status: 202 });
  for (const connections of [1, 32] as const)
    floor[connections] = await both(connections, { url: `http://127.0.0.1:${port}`, path: "/", headers: json });
  await front.stop();
  const adder = raw(stack, backend, { MODE: "add", JOBS: String(requests[32]) });
  const [, direct] = await adder.line(/^add (\S+)/);
  await adder.stop("SIGKILL");
  const { url, process: api } = await startApi(stack, backend);
  for (const connections of [1, 32] as const) {
    const ours = await both(connections, {
      url,
      path: "/query",
      headers: { ...json, authorization: `Bearer ${apiKey}` },
    });
    const ratio = `${(ours.perSecond / floor[connections]!.perSecond).toFixed(2)} of raw over HTTP, ${(ours.perSecond / Number(direct)).toFixed(2)} of ${Math.round(Number(direct))}/s by queue.add alone`;
    row(
      `submissions, ${connections} connections`,
      backend,
      rate(floor[connections]!),
      rate(ours),
      ratio,
      connections === 32 && backend === "redis" ? "0.25" : "",
    );
  }
  await api.stop();
  await clear(stack);
}

/** From accepted to started on an idle system, one at a time. Ours from the log's own times, which are whole milliseconds. */
async function pickup(stack: Stack, backend: Backend): Promise<void> {
  const jobs = Math.max(50, Math.round(500 * share));
  const floor = raw(stack, backend, { MODE: "pickup", JOBS: String(jobs) });
  const [, p50, p99] = await floor.line(/^pickup (\S+) (\S+)/);
  await floor.stop("SIGKILL");
  const worker = await startWorker(stack, backend, noop);
  const { url, process: api } = await startApi(stack, backend);
  const headers = { ...json, authorization: `Bearer ${apiKey}`, prefer: "wait=10" };
  for (let index = 0; index < jobs + 20; index++)
    await (await fetch(`${url}/agent/query`, { method: "POST", headers, body })).text();
  const { rows: waits } = await stack.pool.query<{ ms: number }>(
    `SELECT (extract(epoch FROM started_at - created_at) * 1000)::float8 AS ms FROM runs ORDER BY id OFFSET 20`,
  );
  const ours = percentiles(waits.map((wait) => wait.ms));
  row(
    "accept to start, idle",
    backend,
    `p50 ${Number(p50).toFixed(2)}, p99 ${Number(p99).toFixed(2)} ms`,
    `p50 ${ours.p50.toFixed(0)}, p99 ${ours.p99.toFixed(0)} ms`,
    `+${(ours.p50 - Number(p50)).toFixed(1)} ms`,
    backend === "redis" ? "p50 under 5 ms" : "",
  );
  await Promise.all([api.stop(), worker.stop()]);
  await clear(stack);
}

/** A backlog of three-step runs, worked off by one worker: BullMQ jobs with three checkpoints, and Drover's log. */
async function runs(stack: Stack, backend: Backend): Promise<void> {
  const jobs = Math.round(20_000 * share);
  const floor = raw(stack, backend, { MODE: "work", JOBS: String(jobs) });
  const [, floorRate] = await floor.line(/^work (\S+)/);
  await floor.stop("SIGKILL");
  const { url, process: api } = await startApi(stack, backend);
  await submitBatches(url, jobs);
  const worker = await startWorker(stack, backend, { ...noop, WORKER_CONCURRENCY: "400" });
  await until(async () => (await count(stack.pool, "SELECT count(*) FROM runs WHERE finished_at IS NULL")) === 0, 250);
  const { rows: found } = await stack.pool.query<{ per_second: number; steps: number }>(
    `SELECT (count(*) / extract(epoch FROM max(finished_at) - min(started_at)))::float8 AS per_second, min(steps) AS steps
     FROM runs WHERE status = 'completed'`,
  );
  const { per_second, steps } = found[0]!;
  if (steps !== 3) throw new Error(`a run had ${steps} steps, not three`);
  row(
    "three-step runs",
    backend,
    `${Math.round(Number(floorRate))}/s`,
    `${Math.round(per_second)}/s`,
    (per_second / Number(floorRate)).toFixed(2),
    backend === "redis" ? "1,000/s" : "",
  );
  await Promise.all([api.stop(), worker.stop()]);
  await clear(stack);
}

async function submitBatches(url: string, jobs: number, more: Record<string, unknown> = {}): Promise<void> {
  const headers = { ...json, authorization: `Bearer ${apiKey}` };
  for (let at = 0; at < jobs; at += 10_000) {
    const queries = Array.from({ length: Math.min(10_000, jobs - at) }, () => "x".repeat(280));
    const answer = await fetch(`${url}/query/batch`, {
      method: "POST",
      headers,
      body: JSON.stringify({ queries, ...more }),
    });
    if (answer.status !== 202) throw new Error(`the batch was answered ${answer.status}: ${await answer.text()}`);
  }
}

/** What 2,000 runs cost one worker while they wait on a model, and what 2,000 bare `streamText` calls cost a process of their own. */
async function memory(stack: Stack): Promise<void> {
  const held = Math.round(2000 * share);
  const slots = { WORKER_CONCURRENCY: String(held) };
  const perRun = (before: Memory, after: Memory) => ({
    heap: (after.heap - before.heap) / held / 1024,
    rss: (after.rss - before.rss) / held / 1024,
  });
  const kb = (value: { heap: number; rss: number }) =>
    `${value.heap.toFixed(0)} kB heap, ${value.rss.toFixed(0)} kB RSS a run`;

  const { url, process: api } = await startApi(stack, "redis");
  const waiting = await startWorker(stack, "redis", { ...noop, DROVER_MODEL: "noop/never", ...slots });
  const empty = await memoryOf(waiting);
  await submitBatches(url, held);
  await until(async () => (await count(stack.pool, "SELECT count(*) FROM runs WHERE status = 'running'")) === held);
  const full = await memoryOf(waiting);
  row(
    `worker holding ${held} waiting runs`,
    "redis",
    "-",
    `${kb(perRun(empty, full))}; ${Math.round(full.rss / 2 ** 20)} MB in all`,
    "",
  );
  await waiting.stop("SIGKILL");
  await clear(stack);

  const server = run("bench/streams.ts", { MODE: "server" });
  const [, modelUrl] = await server.line(/^ready (\S+)/);
  const bare = run("bench/streams.ts", { MODE: "bare", COUNT: String(held), MODEL_URL: modelUrl! });
  await bare.line(/^ready/);
  const bareEmpty = await memoryOf(bare);
  bare.send("open");
  await open(server, held);
  const floor = perRun(bareEmpty, await memoryOf(bare));
  await bare.stop("SIGKILL");
  await open(server, 0);
  const streaming = await startWorker(stack, "redis", {
    ANTHROPIC_API_KEY: "sk-ant-scripted-0000000000000000",
    ANTHROPIC_BASE_URL: modelUrl!,
    DROVER_MODEL: "anthropic/claude-sonnet-4-5",
    MODEL_IDLE_TIMEOUT_SECONDS: "600",
    ...slots,
  });
  const streamingEmpty = await memoryOf(streaming);
  await submitBatches(url, held);
  await open(server, held);
  const ours = perRun(streamingEmpty, await memoryOf(streaming));
  row(
    `${held} open model streams`,
    "redis",
    kb(floor),
    kb(ours),
    `${(ours.heap - floor.heap).toFixed(0)} kB heap, ${(ours.rss - floor.rss).toFixed(0)} kB RSS more a run`,
    "at most 60 kB more",
  );
  await streaming.stop("SIGKILL");
  await Promise.all([api.stop(), server.stop("SIGKILL")]);
  await clear(stack);
}

/** Audit entries written as fast as 8 writers can, 20 a transaction, and chained meanwhile. */
async function audit(stack: Stack): Promise<void> {
  const { writtenPerSecond, chainedPerSecond, idle } = await auditRates(stack, Math.round(100_000 * share));
  const rates = `written ${Math.round(writtenPerSecond)}/s, chained ${Math.round(chainedPerSecond)}/s`;
  row("audit entries under load", "postgres", "-", rates, "", "5,000/s");
  row(
    "audit entry, commit to chained, idle",
    "postgres",
    "-",
    `p50 ${idle.p50.toFixed(0)}, p99 ${idle.p99.toFixed(0)} ms`,
    "",
    "100 ms",
  );
}

/** A tool's call in a process of its own, beside the same call in this one. */
async function isolation(): Promise<void> {
  const { direct, warm, perSecond, coldBare, cold, rss, pss } = await isolationCosts(
    Math.round(20_000 * share),
    cpus().length,
  );
  const ms = ({ p50, p99 }: { p50: number; p99: number }) => `p50 ${p50.toFixed(2)}, p99 ${p99.toFixed(2)} ms`;
  const figures: [what: string, figure: string, ratio: string][] = [
    ["tool call in the worker itself", ms(direct), ""],
    ["isolated call, warm", ms(warm), `+${(warm.p50 - direct.p50).toFixed(2)} ms`],
    ["isolated calls, a process for each core", `${Math.round(perSecond)}/s`, ""],
    ["isolated call with a process to start", ms(coldBare), "a module without imports"],
    ["isolated call with a process to start", ms(cold), "a module that imports the harness"],
    ["idle process", `${rss.toFixed(0)} MB RSS, ${pss.toFixed(0)} MB PSS`, "a module that imports the harness"],
  ];
  for (const [what, figure, ratio] of figures) row(what, "-", "-", figure, ratio);
}

/** Webhooks to a thousand endpoints of which one hundred hang, 50 runs a second for a minute. */
async function delivery(stack: Stack): Promise<void> {
  const { p50, p99, worst, delivered, hanging } = await deliveryLatency(stack, noop, Math.max(10, 60 * share));
  row(
    "settle to webhook request, 1 in 10 hangs",
    "redis",
    "-",
    `p50 ${p50}, p99 ${p99}, worst ${worst} ms (${delivered} webhooks, ${hanging} requests hanging at the end)`,
    "",
    "p99 under 250 ms",
  );
  await clear(stack);
}

/** One of three workers is lost with 200 runs in flight: how long until the last of its runs goes on. */
async function recoveries(stack: Stack): Promise<void> {
  const kills = Math.max(1, Math.round(10 * share));
  const pauses = Math.max(1, Math.round(3 * share));
  const times = (blow: Blow, count: number): Blow[] => Array.from({ length: count }, () => blow);
  const what = { kill: "kill -9", stop: "SIGSTOP", "cut off": "network cut" };
  const aims = { kill: "worst under 2 s", stop: "lease + 3 s (13 s)", "cut off": "lease + 3 s (13 s)" };
  for (const result of await recovery(stack, [
    ...times("kill", kills),
    ...times("stop", pauses),
    ...times("cut off", pauses),
  ])) {
    const { blow, lastMs, unsafeMs, takenOver } = result;
    row(
      `${what[blow]} of one of three workers, 200 runs in flight, to the last run's next step`,
      "redis",
      "-",
      `${spread(lastMs)}; ${lastMs.length} times, ${takenOver} runs taken over`,
      wrongs(result),
      aims[blow],
    );
    row(
      `… runs inside an unsafe call`,
      "redis",
      "-",
      `${spread(unsafeMs)}; ${unsafeMs.length} runs`,
      "",
      "lease + the call's limit (15 s)",
    );
    const { noticed, rescued, claimed, step } = result.phases;
    for (const [phase, ms] of Object.entries({ noticed, rescued, claimed, step }))
      console.log(`  ${phase}: ${spread(ms)}`);
  }
  await clear(stack);
}

const spread = (ms: number[]): string =>
  ms.length === 0 ? "none" : `median ${seconds(percentiles(ms).p50)}, worst ${seconds(Math.max(...ms))}`;
const seconds = (ms: number): string => `${(ms / 1000).toFixed(2)} s`;
const wrongs = ({ lost, repeated, unsafeTwice, late }: Recovery): string =>
  `${lost} lost, ${repeated} finished steps repeated, ${unsafeTwice} unsafe calls repeated${late ? `, ${late} late requests of a stopped process` : ""}`;

interface Memory {
  rss: number;
  heap: number;
}

async function memoryOf(running: Running): Promise<Memory> {
  await new Promise((resolve) => setTimeout(resolve, 2000));
  const told = running.line(/^memory (\d+) (\d+)/);
  running.send("memory");
  const [, rss, heap] = await told;
  return { rss: Number(rss), heap: Number(heap) };
}

/** What somebody with one worker waits after a crash, and what a run that kills its workers costs the others. */
async function crash(stack: Stack): Promise<void> {
  const runs = 50;
  const lone = await loneWorker(stack, runs);
  row(
    `kill -9 of a lone worker with ${runs} runs, started again at once: to all done`,
    "redis",
    "-",
    seconds(lone),
    "",
    "under 3 s",
  );
  await clear(stack);
  const innocents = Math.round(2000 * share);
  const { movingMs, endedMs } = await poison(stack, innocents);
  row(
    `${innocents} runs beside one that kills its worker: from its third death to all of them in a model stream again`,
    "redis",
    "-",
    `${seconds(movingMs)}; the culprit ended after ${seconds(endedMs)}`,
    "",
    "30 s",
  );
  await clear(stack);
}

/** Pages read while a snapshot is held over many ended runs. */
async function snapshot(stack: Stack): Promise<void> {
  const runs = Math.round(1_000_000 * share);
  const { pages, before } = await snapshotPages(stack, runs);
  const { beat, ...duties } = pages;
  console.log(pages);
  const [name, most] = Object.entries(duties).sort(([, a], [, b]) => b - a)[0]!;
  const what = `under a snapshot held over ${runs.toLocaleString("en")} ended runs and 3,600 heartbeats`;
  row(`heartbeat ${what}`, "-", "-", `${beat} pages`, "", "under 50");
  row(`the dearest duty ${what} (${name})`, "-", "-", `${most} pages; without its bound ${before}`, "", "under 500");
  await clear(stack);
}

/** What a run costs, process by process and statement by statement, on a server that counts them. */
async function costs(): Promise<string> {
  const stack = await startStack(counting);
  const tables: string[] = [];
  try {
    for (const backend of backends) {
      for (const lone of [false, true]) {
        const runs = Math.round((lone ? 1000 : 10_000) * share);
        const cost = await costOfRuns(stack, backend, { runs, lone, worker: noop });
        tables.push(costTable(`${lone ? "One after the other" : "A backlog"}, ${backend}`, cost));
        console.log(`\n${tables.at(-1)}`);
        await clear(stack);
      }
    }
  } finally {
    await stack.stop();
  }
  return tables.join("\n\n");
}

/** The daily statements over an empty database, and over millions of finished runs. */
async function growths(stack: Stack): Promise<void> {
  const empty = await growth(stack, noop);
  for (const millions of values.growth.split(",").map(Number)) {
    await fill(stack, Math.round(millions * 1_000_000 * share));
    const full = await growth(stack, noop);
    for (const [what, ms] of Object.entries(full))
      row(
        `${what}, over ${millions} million finished runs`,
        "redis",
        `${empty[what]!.toFixed(2)} over none`,
        ms.toFixed(2),
        (ms / empty[what]!).toFixed(2),
        "1.3",
      );
  }
  await clear(stack);
}

async function open(server: Running, streams: number): Promise<void> {
  await server.line(new RegExp(`^open ${streams}$`));
}

/** Each measurement begins on empty tables, and with the checkpoint of the one before behind it. */
async function clear(stack: Stack): Promise<void> {
  await stack.pool.query(
    "TRUNCATE runs, run_events, batches, messages, messages_unnumbered, message_feed, deliveries, blobs, idempotency_keys, workers CASCADE",
  );
  await stack.pool.query("UPDATE fair_classes SET started_tag = 0, base = 0, floor_tag = 0");
  await stack.pool.query("TRUNCATE fair_tenants");
  await stack.pool.query("CHECKPOINT");
}

/** Into the part of the results that has this name. */
function put(part: string, text: string): void {
  const file = new URL("./results.md", import.meta.url);
  const pattern = new RegExp(`(<!-- ${part} -->\\n)[\\s\\S]*?(<!-- end -->)`);
  writeFileSync(
    file,
    readFileSync(file, "utf8").replace(pattern, (_, begin, end) => `${begin}\n${text}\n${end}`),
  );
}

function table(versions: string): string {
  const head = ["What", "Backend", "Raw BullMQ", "Drover", "Ratio", "Aim"];
  const lines = [head, head.map(() => "---"), ...rows].map((cells) => `| ${cells.join(" | ")} |`);
  return `${versions}\n\n${lines.join("\n")}\n`;
}

const costTables = wanted.has("cost") ? await costs() : "";
const stack = await startStack();
try {
  for (const backend of backends) {
    if (wanted.has("submit")) await submissions(stack, backend);
    if (wanted.has("pickup")) await pickup(stack, backend);
    if (wanted.has("runs")) await runs(stack, backend);
  }
  if (wanted.has("memory")) await memory(stack);
  if (wanted.has("audit")) await audit(stack);
  if (wanted.has("isolation")) await isolation();
  if (wanted.has("recovery")) await recoveries(stack);
  if (wanted.has("crash")) await crash(stack);
  if (wanted.has("delivery")) await delivery(stack);
  if (wanted.has("growth")) await growths(stack);
  if (wanted.has("snapshot")) await snapshot(stack);
  const { rows: server } = await stack.pool.query<{ version: string }>(
    "SELECT current_setting('server_version') AS version",
  );
  const date = new Date().toISOString().slice(0, 10);
  const bullmq = JSON.parse(
    readFileSync(new URL("../node_modules/bullmq/package.json", import.meta.url), "utf8"),
  ).version;
  const versions = `${date}, ${cpus().length} cores, Node ${process.version}, Postgres ${server[0]!.version} (fsync and synchronous_commit on), Redis with AOF every second, BullMQ ${bullmq}; load driver and servers on the same cores.`;
  const text = table(versions);
  console.log(`\n${text}`);
  if (values.write) {
    if (rows.length > 0) put("newest", text);
    if (costTables !== "") put("cost", `${versions}\n\n${costTables}\n`);
  }
} finally {
  await stack.stop();
}
process.exit(0);
