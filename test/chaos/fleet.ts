/**
 * What tests share that make real worker processes (`apps/worker/src/main.ts`) misbehave: a database, a scripted model that reads what a run is to
 * do in its query, the tools' endpoint, and what must hold in the end. The tools are in `fleet.config.ts`.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { EventType, LogEvent, RunInput } from "@drover/harness";
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, vi } from "vitest";
import { type SupervisedChild, supervise } from "../../apps/cli/src/service/supervise.ts";
import { input } from "../runs/bench.ts";
import { createGate, type Gate, type ModelServerCall, type ScriptAnswer } from "../support/model-server.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";
import { chaos, dataOf, withMore } from "./world.ts";

const entry = new URL("../../apps/worker/src/main.ts", import.meta.url);
const configFile = new URL("./fleet.config.ts", import.meta.url).pathname;
const compileCache = new URL("../../node_modules/.cache/drover-tests", import.meta.url).pathname;
const finals = "('completed', 'partial', 'failed', 'cancelled')";
const patience = { timeout: 60_000, interval: 25 };

type Env = Record<string, string>;

export interface FleetWorker extends SpawnedNode {
  /** Its id when it started. */
  id: string;
}

export interface Supervised {
  /** Everything its processes printed. */
  lines: string[];
  /** What the supervisor had to say. */
  news: string[];
  /** Resolves with the lines that match, once there are so many. */
  line(pattern: RegExp, count?: number): Promise<string[]>;
}

/** One submitted run. Its `name` is the `note` of its tool calls, with the turn: `r0.1`. */
export interface Submitted {
  id: string;
  name: string;
}

type Wanted = Partial<RunInput> & { priority?: number };

export interface EndedRun extends Submitted {
  status: string;
  stopReason: string | null;
  attempt: number;
  epoch: number;
  crashes: number;
  activeMs: number;
  finishedAt: Date;
  log: LogEvent[];
}

/** Call it once at the top of a test file. */
export function fleet() {
  const world = chaos();
  // Each test starts a handful of processes, one after the other.
  vi.setConfig({ testTimeout: 120_000 });
  const processes: SpawnedNode[] = [];
  const children: SupervisedChild[] = [];
  let gates = new Map<string, Gate>();
  /** Every request of a named run, as the model server saw it. */
  let asks: { name: string; turn: number; at: number }[] = [];
  let names = 0;
  let folder = "";

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "drover-fleet-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));
  beforeEach(() => {
    gates = new Map();
    asks = [];
    world.models.script(answer);
  });
  afterEach(async () => {
    await Promise.all(children.splice(0).map((child) => child.kill()));
    await Promise.all(processes.splice(0).map((worker) => worker.kill("SIGKILL")));
    await world.bench.pool.query("DELETE FROM workers");
  });

  const gate = (name: string): Gate => {
    const known = gates.get(name) ?? createGate();
    gates.set(name, known);
    return known;
  };

  /**
   * `r0: pure_call stream:a+calm stream:b`: a turn for each word, which is a tool's name or a text that waits at a gate, the latter with a call
   * at its end or as the final answer; then "done". The wrap-up turn of a run whose last word is `hang` never comes.
   */
  function answer({ query, turn, messages }: ModelServerCall): ScriptAnswer {
    const [, name, words] = /^(r\d+): (.*)$/.exec(query) ?? [];
    if (name === undefined) {
      const first = messages.find((message) => /^r\d+: /.test(message.text))!.text;
      return first.endsWith(" hang") ? { connection: "hang" } : { text: "wrapped up" };
    }
    asks.push({ name, turn, at: Date.now() });
    const word = words!.split(" ")[turn];
    if (word === undefined) return { text: "done" };
    if (word.startsWith("stall:")) return { text: `some words of ${name}`, stallAfter: Number(word.slice(6)) };
    const [, stream, tool] = /^(stream:\w+)?\+?(\w+)?$/.exec(word)!;
    return {
      ...(stream && { text: `the whole answer of ${name}`, gate: gate(stream) }),
      ...(tool && { toolCalls: [{ name: tool, input: { note: `${name}.${turn}` } }] }),
    };
  }

  const environment = (more: Env): Env => ({
    ...world.models.env(),
    DATABASE_URL: world.bench.url,
    REDIS_URL: inject("redisUrl"),
    DROVER_QUEUE_PREFIX: `{${new URL(world.bench.url).pathname.slice(1)}}`,
    DROVER_MODEL: "anthropic/claude-sonnet-4-5",
    DROVER_CONFIG: configFile,
    DROVER_WORKSPACES: join(folder, "workspaces"),
    NODE_COMPILE_CACHE: compileCache,
    TOOL_URL: world.endpoint.url,
    LOG_LEVEL: "info",
    LEASE_SECONDS: "3",
    PARTIAL_EVERY_SECONDS: "0.1",
    ...more,
  });

  async function spawn(more: Env = {}): Promise<FleetWorker> {
    const worker = spawnNode(entry, { env: environment(more) });
    processes.push(worker);
    const ready = JSON.parse(await worker.waitForLine('"worker ready"')) as { worker: string };
    return Object.assign(worker, { id: ready.worker });
  }

  const until = (sql: string, values: unknown[], expected: unknown) =>
    expect.poll(async () => (await world.bench.pool.query(sql, values)).rows, patience).toEqual(expected);

  /** A run with a turn for each of these words; see `answer`. It has time enough, unless it wants less. */
  async function submit(words: string, { priority = 0, ...more }: Wanted = {}): Promise<Submitted> {
    const name = `r${names++}`;
    const limits = { soft_seconds: 250, hard_seconds: 300 };
    const run = input({ query: `${name}: ${words}`, limits, ...more });
    return { id: await world.bench.submit({ input: run, priority }), name };
  }

  async function ended(runs: readonly Submitted[]): Promise<EndedRun[]> {
    const ids = runs.map(({ id }) => id);
    const open = async () => {
      const { rows } = await world.bench.pool.query(
        `SELECT id, status, crashes FROM runs WHERE id = ANY($1) AND status NOT IN ${finals}`,
        [ids],
      );
      return rows;
    };
    await expect.poll(open, patience).toEqual([]);
    const { rows } = await world.bench.pool.query(
      `SELECT id, status, stop_reason AS "stopReason", attempt, epoch, crashes, active_ms AS "activeMs", finished_at AS "finishedAt",
              (SELECT count(*) FROM messages m WHERE m.run_id = r.id AND m.type <> 'query.waiting') AS owed
       FROM runs r WHERE id = ANY($1)`,
      [ids],
    );
    const found = new Map(rows.map(({ owed, ...row }) => [row.id, { row, owed }]));
    return await Promise.all(
      runs.map(async ({ id, name }) => {
        const { row, owed } = found.get(id)!;
        expect(owed, `messages owed by ${name}`).toBe(1);
        const log = await world.log(id);
        expectWhole({ id, name }, log);
        return { ...row, name, log };
      }),
    );
  }

  /** Its log is gap-free and ends once; no step stands in it twice, or was asked for again after its end was in it. */
  function expectWhole({ name }: Submitted, log: LogEvent[]): void {
    expect(
      log.map(({ seq }) => seq),
      name,
    ).toEqual(log.map((_, index) => index + 1));
    const ends = log.filter(({ type }) => /^run\.(completed|partial|failed|cancelled)$/.test(type));
    expect(ends, name).toEqual([log.at(-1)]);
    const steps = new Set<string>();
    for (const { type, data, at } of log) {
      if (type !== "model.call" && type !== "tool.result") continue;
      const { iteration, index } = data as { iteration: number; index?: number };
      const step = `${type} ${iteration} ${index ?? ""}`;
      expect(steps, name).not.toContain(step);
      steps.add(step);
      const turn = iteration - 1;
      const begun =
        type === "model.call"
          ? asks.filter((ask) => ask.name === name && ask.turn === turn)
          : world.endpoint.calls.filter((call) => call.note === `${name}.${turn}` && !call.effect.startsWith("verify"));
      for (const one of begun) expect(one.at, `${name}: ${step} was begun again`).toBeLessThanOrEqual(Date.parse(at));
    }
  }

  return withMore(world, {
    gate,
    environment,
    spawn,
    until,
    ended,
    /** A worker that is started again whenever it ends. */
    async supervise(more: Env = {}): Promise<Supervised> {
      const lines: string[] = [];
      const news: string[] = [];
      const env = { ...process.env, ...environment(more) };
      for (const name of Object.keys(env)) if (name.startsWith("VITEST")) delete env[name];
      const child = supervise({
        name: "worker",
        entry: entry.href,
        env,
        graceSeconds: 5,
        orphanGraceSeconds: 0,
        firstPauseMs: 20,
        onLine: (line) => lines.push(line),
        onNews: (message) => news.push(message),
      });
      children.push(child);
      const matching = (pattern: RegExp) => lines.filter((line) => pattern.test(line));
      const line = async (pattern: RegExp, count = 1) => {
        await expect
          .poll(() => matching(pattern).length, { ...patience, message: lines.slice(-20).join("\n") })
          .toBeGreaterThanOrEqual(count);
        return matching(pattern);
      };
      await line(/"worker ready"/);
      return { lines, news, line };
    },
    submit,
    /** So many of them at once. */
    many: (count: number, words: string, more: Wanted = {}): Promise<Submitted[]> =>
      Promise.all(Array.from({ length: count }, () => submit(words, more))),
    /** How often the model was asked for this turn of a run. */
    asked: (name: string, turn: number) => asks.filter((ask) => ask.name === name && ask.turn === turn).length,
    /** How often the endpoint was called by the tool of this turn of a run. */
    called: (name: string, turn: number) =>
      world.endpoint.calls.filter((call) => call.note === `${name}.${turn}` && !call.effect.startsWith("verify"))
        .length,
    /** Resolves when the log of a run has so many events of this type. */
    logged: ({ id }: Submitted, type: EventType, count = 1) =>
      expect
        .poll(async () => (await world.log(id)).filter((event) => event.type === type).length, patience)
        .toBeGreaterThanOrEqual(count),
    /** The row of a worker, with the session that holds its lock. */
    async worker(id: string) {
      const { rows } = await world.bench.pool.query(
        `SELECT w.*, (SELECT l.pid FROM pg_locks l WHERE l.locktype = 'advisory' AND l.objid::bigint = w.lock_id AND l.granted LIMIT 1) AS session
         FROM workers w WHERE id = $1`,
        [id],
      );
      return rows[0];
    },
  });
}

export const rescues = (log: LogEvent[]) => dataOf(log, "run.rescued");
