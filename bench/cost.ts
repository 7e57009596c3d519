/**
 * What a three-step run costs, from submission to its end: processor time of every process, and Postgres' statements one by one. `loaded`: a backlog
 * worked off by one worker, and the API that took it in single submissions. `lone`: one after the other, each waited for.
 */
import { readdirSync, readFileSync } from "node:fs";
import { load } from "./load.ts";
import { apiKey, type Backend, count, type Stack, startApi, startWorker, until } from "./stack.ts";

/** Settings of a server that counts statements. */
export const counting = {
  shared_preload_libraries: "pg_stat_statements",
  "pg_stat_statements.track_planning": true,
  "pg_stat_statements.max": 5000,
};

export interface Cost {
  runs: number;
  /** Processor time a run, ms, by process. */
  cpu: { api: number; worker: number; postgres: number; redis: number };
  /** A run's share of them, the dearest first. */
  statements: Statement[];
  /** Flushes of the WAL to disk a run. */
  flushes: number;
  walBytes: number;
}

interface Statement {
  text: string;
  calls: number;
  rows: number;
  walBytes: number;
  planMs: number;
  runMs: number;
}

const clockTickMs = 10;

/** User and system time of a process, with `children` also of those it had and has, ms. */
export function cpuOf(pid: number, children = false): number {
  const ticks = (of: number, ended: boolean) => {
    const fields = readFileSync(`/proc/${of}/stat`, "utf8")
      .replace(/^.*\) /s, "")
      .split(" ")
      .map(Number);
    // utime, stime, cutime, cstime are fields 14 to 17 of proc(5).
    return fields.slice(11, ended ? 15 : 13).reduce((sum, value) => sum + value, 0);
  };
  let sum = ticks(pid, children);
  if (children) for (const child of childrenOf(pid)) sum += ticks(child, true);
  return sum * clockTickMs;
}

function childrenOf(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task/${pid}`).includes("children")
    ? readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number)
    : [];
}

export async function costOfRuns(
  stack: Stack,
  backend: Backend,
  how: { runs: number; lone: boolean; worker: Record<string, string> },
): Promise<Cost> {
  const { pool } = stack;
  await pool.query("CREATE EXTENSION IF NOT EXISTS pg_stat_statements");
  const { url, process: api } = await startApi(stack, backend);
  const startOne = () => startWorker(stack, backend, { ...how.worker, WORKER_CONCURRENCY: how.lone ? "10" : "400" });
  const target = {
    url,
    body: JSON.stringify({ query: "x".repeat(280) }),
    headers: { "content-type": "application/json", authorization: `Bearer ${apiKey}` },
  };
  let worker = how.lone ? await startOne() : undefined;
  // What the first runs pay for everybody is not theirs alone.
  const warm = { ...target, path: "/agent/query", connections: 1, requests: 20, status: 200 };
  if (worker) await load({ ...warm, headers: { ...target.headers, prefer: "wait=10" } });
  await pool.query("SELECT pg_stat_statements_reset(), pg_stat_reset_shared('wal')");
  await pool.query("CHECKPOINT");
  const measure = () => ({
    api: cpuOf(api.pid),
    worker: worker ? cpuOf(worker.pid) : 0,
    postgres: cpuOf(stack.postgresPid, true),
    redis: cpuOf(stack.redisPid),
  });
  const runsBefore = await count(pool, "SELECT count(*) FROM runs");
  const before = measure();
  const walBefore = await flushesSoFar(stack);
  if (how.lone) {
    await load({ ...warm, requests: how.runs, headers: { ...target.headers, prefer: "wait=10" } });
  } else {
    await load({ ...target, path: "/query", connections: 32, requests: how.runs, status: 202 });
    worker = await startOne();
    await until(async () => (await count(pool, "SELECT count(*) FROM runs WHERE finished_at IS NULL")) === 0, 250);
  }
  const after = measure();
  const runs = (await count(pool, "SELECT count(*) FROM runs")) - runsBefore;
  const wal = await flushesSoFar(stack);
  const { rows: statements } = await pool.query<Statement>(
    `SELECT regexp_replace(query, '\\s+', ' ', 'g') AS text, calls / $1::float8 AS calls, rows / $1::float8 AS rows, (wal_bytes / $1)::float8 AS "walBytes",
            total_plan_time / $1 AS "planMs", total_exec_time / $1 AS "runMs"
     FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat%' AND query NOT LIKE 'SELECT count(*) FROM runs%' ORDER BY total_plan_time + total_exec_time DESC`,
    [runs],
  );
  await Promise.all([api.stop(), worker!.stop()]);
  const perRun = (of: keyof Cost["cpu"]) => (after[of] - before[of]) / runs;
  return {
    runs,
    cpu: { api: perRun("api"), worker: perRun("worker"), postgres: perRun("postgres"), redis: perRun("redis") },
    statements,
    flushes: (wal.flushes - walBefore.flushes) / runs,
    walBytes: (wal.bytes - walBefore.bytes) / runs,
  };
}

async function flushesSoFar({ pool }: Stack): Promise<{ flushes: number; bytes: number }> {
  const { rows } = await pool.query<{ flushes: number; bytes: number }>(
    `SELECT (SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal') AS flushes, (SELECT wal_bytes FROM pg_stat_wal) AS bytes`,
  );
  return rows[0]!;
}

/** The costs as markdown: a line of processor times, and a table of statements down to a hundredth of the whole. */
export function costTable(name: string, cost: Cost): string {
  const { api, worker, postgres, redis } = cost.cpu;
  const ms = (value: number) => value.toFixed(3);
  const whole = cost.statements.reduce((sum, { planMs, runMs }) => sum + planMs + runMs, 0);
  const lines = cost.statements
    .filter(({ planMs, runMs }) => (planMs + runMs) / whole > 0.01)
    .map(
      ({ text, calls, rows, walBytes, planMs, runMs }) =>
        `| \`${text.replace(/[|`]/g, "").slice(0, 90)}\` | ${calls.toFixed(2)} | ${rows.toFixed(1)} | ${Math.round(walBytes)} | ${ms(planMs)} | ${ms(runMs)} |`,
    );
  const calls = cost.statements.reduce((sum, statement) => sum + statement.calls, 0);
  return [
    `**${name}** (${cost.runs} runs): processor ms a run: API ${ms(api)}, worker ${ms(worker)}, Postgres ${ms(postgres)}, Redis ${ms(redis)}, together ${ms(api + worker + postgres + redis)}; ${calls.toFixed(1)} statements taking ${ms(whole)} ms, ${cost.flushes.toFixed(2)} flushes, ${Math.round(cost.walBytes)} bytes of WAL.`,
    "",
    "| Statement | calls | rows | WAL bytes | plan ms | run ms |",
    "| --- | --- | --- | --- | --- | --- |",
    ...lines,
  ].join("\n");
}
