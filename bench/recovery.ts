/**
 * How long runs are without an owner: of three worker processes with 200 runs in flight, one is killed, stopped, or cut off from Postgres and
 * Redis. Measured from that moment, by the log's times, to the last taken-over run's first new step; counted by the model server and the tools'
 * endpoint is whether anything finished was done twice. What was in flight elsewhere stays in flight meanwhile.
 */
import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { createGate, type Gate, type ModelServer, startModelServer } from "../test/support/model-server.ts";
import { type FaultProxy, startProxy } from "../test/support/proxy.ts";
import { apiKey, type Running, type Stack, startApi, startWorker, until } from "./stack.ts";

export type Blow = "kill" | "stop" | "cut off";

export interface Recovery {
  blow: Blow;
  /** From the blow to the last run's first new step, one for each blow, ms. */
  lastMs: number[];
  /** Of the runs taken over: from the blow to where it was noticed, to the take-over, to the claim, to the first new step, ms. */
  phases: Record<"noticed" | "rescued" | "claimed" | "step", number[]>;
  /** Runs that were inside unsafe calls, which are not taken up before the lease and the call's own limit have passed: to their next step, ms. */
  unsafeMs: number[];
  takenOver: number;
  /** All of these must be 0. */
  lost: number;
  repeated: number;
  unsafeTwice: number;
  /** Requests that a stopped process sent when it woke up: no fence can hold them back. */
  late: number;
}

const inFlight = { stream: 70, pure: 40, idempotent: 40, unsafe: 15, steps: 35 };
type Kind = keyof typeof inFlight;
const kindOf = (label: string) => label.split("-")[1] as Kind;
/** The default; so the figures are those of the product as it comes. */
const leaseMs = 10_000;
const stepMs = 50;

interface Request {
  label: string;
  turn: number;
  sender: string;
  at: number;
}

interface World {
  stack: Stack;
  apiUrl: string;
  models: ModelServer;
  modelRequests: Request[];
  toolRequests: Request[];
  /** What comes before the blow stays open until `release`; what comes after it is answered at once. */
  hold(): { arrived(): Promise<void>; blow(): void; release(): void };
  toolUrl: string;
}

interface Victim {
  name: string;
  process: Running;
  id: string;
  postgres: FaultProxy;
  redis: FaultProxy;
}

export async function recovery(stack: Stack, blows: Blow[]): Promise<Recovery[]> {
  const world = await openWorld(stack);
  const { world: w, close } = world;
  const { url, process: api } = await startApi(stack, "redis");
  w.apiUrl = url;
  const workers: Victim[] = [];
  let started = 0;
  const add = async () => workers.push(await startVictim(w, `w${++started}`));
  const results = new Map<Blow, Recovery>();
  try {
    await stack.pool.query("TRUNCATE workers");
    while (workers.length < 3) await add();
    for (const [round, blow] of blows.entries()) {
      const result = results.get(blow) ?? emptyRecovery(blow);
      results.set(blow, result);
      // Everybody must have watched the others for a lease before anybody is condemned.
      await delay(leaseMs + 1000);
      const victim = workers.shift()!;
      await oneBlow(w, round, victim, result);
      console.log(`${blow} ${round + 1}: last run's next step after ${Math.round(result.lastMs.at(-1)!)} ms`);
      await victim.process.stop("SIGKILL").catch(() => {});
      await Promise.all([victim.postgres.close(), victim.redis.close()]);
      await add();
    }
  } finally {
    await Promise.all(workers.map((worker) => worker.process.stop("SIGKILL")));
    await Promise.all(workers.flatMap((worker) => [worker.postgres.close(), worker.redis.close()]));
    await api.stop();
    await close();
  }
  return [...results.values()];
}

const emptyRecovery = (blow: Blow): Recovery => ({
  blow,
  lastMs: [],
  phases: { noticed: [], rescued: [], claimed: [], step: [] },
  unsafeMs: [],
  takenOver: 0,
  lost: 0,
  repeated: 0,
  unsafeTwice: 0,
  late: 0,
});

async function oneBlow(world: World, round: number, victim: Victim, result: Recovery): Promise<void> {
  const { pool } = world.stack;
  const held = world.hold();
  const submit = async (kinds: Kind[]) => {
    const queries = kinds.flatMap((kind) =>
      Array.from({ length: inFlight[kind] }, (_, n) => ({ query: `r${round}-${kind}-${n}`, max_iterations: 50 })),
    );
    const answer = await fetch(`${world.apiUrl}/query/batch`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${apiKey}` },
      body: JSON.stringify({ queries }),
    });
    if (answer.status !== 202) throw new Error(`the batch was answered ${answer.status}: ${await answer.text()}`);
  };
  await submit(["stream", "pure", "idempotent"]);
  await held.arrived();
  // Last, so that they are still at it: these end by themselves.
  await submit(["unsafe", "steps"]);
  const begun = (kind: Kind, turn: number) =>
    new Set(
      world.toolRequests.flatMap((it) =>
        it.label.startsWith(`r${round}-${kind}-`) && it.turn >= turn ? it.label : [],
      ),
    ).size === inFlight[kind];
  await until(async () => begun("unsafe", 0) && begun("steps", 1), 10);

  const at = Date.now();
  if (result.blow === "cut off") for (const path of [victim.postgres, victim.redis]) path.blackhole(true);
  else process.kill(victim.process.pid, result.blow === "kill" ? "SIGKILL" : "SIGSTOP");
  held.blow();

  const query = `r${round}-%`;
  const openOnes = async () => {
    const { rows } = await pool.query<{ left: number; taken: number }>(
      `SELECT count(*) FILTER (WHERE NOT EXISTS (SELECT FROM run_events s WHERE s.run_id = x.run_id AND s.seq > x.seq AND s.type IN ${steps})) AS left, count(*) AS taken
       FROM run_events q JOIN run_events x ON x.run_id = q.run_id AND x.type = 'run.rescued' AND x.data->>'worker' = $2
       WHERE q.seq = 1 AND q.data->>'query' LIKE $1`,
      [query, victim.id],
    );
    return rows[0]!;
  };
  const owned = async () =>
    (await pool.query("SELECT FROM runs WHERE worker = $1 AND status = 'running'", [victim.id])).rowCount;
  await until(async () => (await owned()) === 0 && (await openOnes()).left === 0, 100);
  if (result.blow === "stop") process.kill(victim.process.pid, "SIGCONT");
  if (result.blow === "cut off") for (const path of [victim.postgres, victim.redis]) path.blackhole(false);
  held.release();
  await until(async () => (await pool.query("SELECT FROM runs WHERE finished_at IS NULL")).rowCount === 0, 100);
  await judge(world, query, victim, at, result);
}

const steps = "('model.call', 'tool.result', 'tool.intent', 'tool.verified', 'model.partial')";

async function judge(world: World, query: string, victim: Victim, blowAt: number, result: Recovery): Promise<void> {
  const { pool } = world.stack;
  const { rows } = await pool.query<{ label: string; status: string; log: LoggedEvent[] }>(
    `SELECT q.data->>'query' AS label, r.status, json_agg(json_build_object('seq', e.seq, 'type', e.type, 'at', (extract(epoch FROM e.at) * 1000)::float8,
       'worker', e.data->>'worker', 'iteration', (e.data->>'iteration')::int, 'step', e.type IN ${steps}) ORDER BY e.seq) AS log
     FROM run_events q JOIN runs r ON r.id = q.run_id JOIN run_events e ON e.run_id = r.id
     WHERE q.seq = 1 AND q.data->>'query' LIKE $1 GROUP BY 1, 2`,
    [query],
  );
  const noticed = await pool.query<{ at: number }>(
    "SELECT (extract(epoch FROM dead_at) * 1000)::float8 AS at FROM workers WHERE id = $1",
    [victim.id],
  );
  const requests = Map.groupBy([...world.modelRequests, ...world.toolRequests], ({ label }) => label);
  let lastMs = 0;
  for (const { label, status, log } of rows) {
    if (status !== "completed") result.lost++;
    const end = (type: string, turn: number) =>
      log.find((event) => event.type === type && event.iteration === turn + 1)?.at ?? Number.POSITIVE_INFINITY;
    for (const request of requests.get(label) ?? []) {
      const doneAt = end(world.modelRequests.includes(request) ? "model.call" : "tool.result", request.turn);
      if (request.at <= doneAt) continue;
      if (result.blow === "stop" && request.sender === victim.name) result.late++;
      else result.repeated++;
    }
    if (kindOf(label) === "unsafe" && world.toolRequests.filter((request) => request.label === label).length > 1)
      result.unsafeTwice++;
    const rescued = log.find((event) => event.type === "run.rescued" && event.worker === victim.id);
    if (!rescued) continue;
    const claimed = log.find(({ seq, type }) => seq > rescued.seq && type === "run.started")!;
    const step = log.find((event) => event.seq > claimed.seq && event.step);
    if (!step) continue;
    if (kindOf(label) === "unsafe") {
      result.unsafeMs.push(step.at - blowAt);
      continue;
    }
    result.takenOver++;
    lastMs = Math.max(lastMs, step.at - blowAt);
    const { phases } = result;
    phases.noticed.push(noticed.rows[0]!.at - blowAt);
    phases.rescued.push(rescued.at - noticed.rows[0]!.at);
    phases.claimed.push(claimed.at - rescued.at);
    phases.step.push(step.at - claimed.at);
  }
  const submitted = Object.values(inFlight).reduce((sum, n) => sum + n, 0);
  result.lost += submitted - rows.length;
  result.lastMs.push(lastMs);
}

interface LoggedEvent {
  seq: number;
  type: string;
  at: number;
  worker: string | null;
  iteration: number | null;
  step: boolean;
}

async function startVictim(world: World, name: string): Promise<Victim> {
  const { stack } = world;
  const portOf = (url: string) => Number(new URL(url).port);
  const through = (url: string, { port }: FaultProxy) => Object.assign(new URL(url), { port: String(port) }).href;
  const postgres = await startProxy(portOf(stack.databaseUrl));
  const redis = await startProxy(portOf(stack.redisUrl));
  const before = new Set((await stack.pool.query<{ id: string }>("SELECT id FROM workers")).rows.map(({ id }) => id));
  const running = await startWorker(stack, "redis", {
    DATABASE_URL: through(stack.databaseUrl, postgres),
    REDIS_URL: through(stack.redisUrl, redis),
    ...world.models.env(),
    ANTHROPIC_API_KEY: `${keyPrefix}${name}`,
    DROVER_MODEL: "anthropic/claude-sonnet-4-5",
    DROVER_CONFIG: new URL("./recovery.config.ts", import.meta.url).pathname,
    TOOL_URL: world.toolUrl,
    TOOL_SENDER: name,
    LEASE_SECONDS: String(leaseMs / 1000),
  });
  const { rows } = await stack.pool.query<{ id: string }>("SELECT id FROM workers WHERE dead_at IS NULL");
  return { name, process: running, id: rows.find(({ id }) => !before.has(id))!.id, postgres, redis };
}

const keyPrefix = "sk-ant-scripted-";

async function openWorld(stack: Stack): Promise<{ world: World; close(): Promise<void> }> {
  const modelRequests: Request[] = [];
  const toolRequests: Request[] = [];
  const waiting = new Set<ServerResponse>();
  let holding = false;
  let gate: Gate = createGate();

  const models = await startModelServer({ record: false });
  models.script(({ query: label, turn, headers }) => {
    modelRequests.push({ label, turn, sender: String(headers["x-api-key"]).slice(keyPrefix.length), at: Date.now() });
    const kind = kindOf(label);
    if (kind === "stream") return holding ? { text: "half a reply", gate } : "done";
    if (kind === "steps" ? holding && turn < 45 : turn === 0)
      return { toolCalls: [{ name: kind === "steps" ? "pure" : kind, input: { label, turn } }] };
    return "done";
  });

  const server = createServer(async (request, response) => {
    try {
      let body = "";
      for await (const piece of request) body += piece;
      const { label, turn } = JSON.parse(body) as { label: string; turn: number };
      if (request.url === "/verify") {
        response.end(toolRequests.some((call) => call.label === label) ? "done" : "not done");
        return;
      }
      toolRequests.push({ label, turn, sender: String(request.headers["x-sender"]), at: Date.now() });
      if (kindOf(label) === "steps") await delay(stepMs);
      else if (holding) {
        waiting.add(response);
        response.on("close", () => waiting.delete(response));
        return;
      }
      response.end("done");
    } catch {
      // Its process was killed while it spoke.
      response.destroy();
    }
  }).listen(0, "127.0.0.1");
  await once(server, "listening");

  const world: World = {
    stack,
    apiUrl: "",
    models,
    modelRequests,
    toolRequests,
    toolUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    hold() {
      holding = true;
      gate = createGate();
      const { stream, pure, idempotent } = inFlight;
      return {
        async arrived() {
          await gate.arrived(stream);
          await until(async () => waiting.size === pure + idempotent, 10);
        },
        blow: () => {
          holding = false;
        },
        release: () => {
          gate.open();
          for (const response of waiting) response.end("done");
        },
      };
    },
  };
  return {
    world,
    async close() {
      server.closeAllConnections();
      server.close();
      await models.close();
    },
  };
}
