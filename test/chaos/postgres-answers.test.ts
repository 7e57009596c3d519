/**
 * The connection is cut between a commit and its answer, at every statement that matters: whoever sent it looks what became of it, or says
 * that it does not know. Nothing is done twice, nothing is lost, and nothing is claimed that may not be.
 */
import { type Api, apiProcessConfig, startApi } from "@drover/api";
import { defaultAgent, ToolRegistry } from "@drover/harness";
import { createModels, modelConfig } from "@drover/llm";
import { fromWireId, loadConfig } from "@drover/protocol";
import { openSignals, queueConfig, type Signals } from "@drover/queue";
import { type RunWorker, readLog, readRun, setBudget, startWorker } from "@drover/runs";
import { openPool, type Pool } from "@drover/storage";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { createBench, logger } from "../runs/bench.ts";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { type FaultProxy, startProxy } from "../support/proxy.ts";
import { redisUrl } from "../support/redis.ts";
import { foundTwice } from "../support/twice.ts";
import { endpointTools, startToolEndpoint } from "./tools.ts";

const key = "drv_answers_000000000000000000000000000000";
const patience = { timeout: 20_000, interval: 25 };
let bench: Awaited<ReturnType<typeof createBench>>;
let signals: Signals;
let proxy: FaultProxy;
let pool: Pool;
let api: Api;
let models: ModelServer;
let endpoint: Awaited<ReturnType<typeof startToolEndpoint>>;
let worker: RunWorker | undefined;

beforeAll(async () => {
  bench = await createBench();
  const url = new URL(bench.url);
  proxy = await startProxy(Number(url.port), url.hostname);
  url.host = `127.0.0.1:${proxy.port}`;
  // A trap of the proxy knows a statement by its text.
  pool = openPool({ url: url.href, logger, prepared: false });
  signals = await openSignals(queueConfig.parse({}), { logger, directUrl: bench.url });
  const env = {
    DATABASE_URL: url.href,
    DATABASE_DIRECT_URL: bench.url,
    DATABASE_PREPARED_STATEMENTS: "false",
    REDIS_URL: redisUrl(),
    DROVER_QUEUE_PREFIX: `{${url.pathname.slice(1)}}`,
    DROVER_BOOTSTRAP_KEY: key,
    PORT: "0",
    HOST: "127.0.0.1",
  };
  api = await startApi(loadConfig(apiProcessConfig, env), { logger });
});
afterAll(async () => {
  await Promise.all([api.close(), signals.close(), pool.end()]);
  await Promise.all([proxy.close(), bench.close()]);
});
beforeEach(async () => {
  [models, endpoint] = await Promise.all([startModelServer(), startToolEndpoint()]);
});
afterEach(async () => {
  await worker?.stop(0);
  worker = undefined;
  await Promise.all([models.close(), endpoint.close()]);
  expect(await foundTwice(bench.pool)).toEqual([]);
});

async function start(): Promise<void> {
  const source = createModels(modelConfig.parse({ ...models.env(), DROVER_MODEL: "anthropic/claude-sonnet-4-5" }));
  worker = await startWorker({
    pool,
    directUrl: bench.url,
    blobs: bench.blobs,
    queue: bench.queue,
    signals,
    logger,
    agents: {
      agent: () => defaultAgent,
      model: (id) => source.resolve(id ?? source.default),
      tools: new ToolRegistry(endpointTools(endpoint.url)),
      policies: [],
    },
    slots: 10,
    leaseMs: 4000,
    partialEveryMs: 60_000,
    workspaces: "unused",
  });
}

/** One call of this tool, then an answer. */
const script = (tool?: string) =>
  models.script((call) =>
    tool && call.turn === 0 ? { toolCalls: [{ name: tool, input: { note: "once" } }] } : "the answer",
  );

async function post(path: string, body: unknown, headers: Record<string, string> = {}) {
  const response = await fetch(api.url + path, {
    method: "POST",
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  // biome-ignore lint/suspicious/noExplicitAny: tests look at what came.
  return { status: response.status, headers: response.headers, body: (await response.json()) as any };
}

/** The run once it has this status; its log has no gap and ends where the run says. */
async function rested(id: string, status: string) {
  await expect.poll(async () => (await readRun(bench.pool, "default", id))!.status, patience).toBe(status);
  const run = (await readRun(bench.pool, "default", id))!;
  const log = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: id });
  expect(log.map((event) => event.seq)).toEqual(log.map((_, index) => index + 1));
  expect(run.lastSeq).toBe(log.length);
  const count = (type: string) => log.filter((event) => event.type === type).length;
  return { run, log, count };
}

const runIds = async (): Promise<string[]> =>
  (await bench.pool.query("SELECT id FROM runs ORDER BY id")).rows.map((row) => row.id);
const newRuns = async (before: string[]) => (await runIds()).filter((id) => !before.includes(id));

test("a submission: 503 and never a false 202; repeated with its Idempotency-Key it gives that one run", async () => {
  const before = await runIds();
  const lost = proxy.loseAnswerTo("INSERT INTO runs");
  const first = await post("/query", { query: "x" }, { "idempotency-key": "cut" });
  await lost;
  expect([first.status, first.body.code]).toEqual([503, "service_unavailable"]);
  const made = await newRuns(before);
  expect(made).toHaveLength(1);
  const again = await post("/query", { query: "x" }, { "idempotency-key": "cut" });
  expect([again.status, again.headers.get("idempotent-replayed")]).toEqual([202, "true"]);
  expect(fromWireId("run", again.body.task_id)).toBe(made[0]);
  expect(await newRuns(before)).toEqual(made);
  script();
  await start();
  await rested(made[0]!, "completed");
  expect(models.count).toBe(1);
});

test("a submission without a key: 503, and what was committed runs once, without a wake-up", async () => {
  const before = await runIds();
  const lost = proxy.loseAnswerTo("INSERT INTO runs");
  expect((await post("/query", { query: "x" })).status).toBe(503);
  await lost;
  const made = await newRuns(before);
  expect(made).toHaveLength(1);
  script();
  await start();
  await rested(made[0]!, "completed");
  expect(models.count).toBe(1);
});

test("a batch: 503, and repeated with its key it is that one batch", async () => {
  const before = await runIds();
  const body = { queries: ["x", "y", "z"] };
  const lost = proxy.loseAnswerTo("INSERT INTO batches", "COMMIT");
  expect((await post("/query/batch", body, { "idempotency-key": "cut batch" })).status).toBe(503);
  await lost;
  expect(await newRuns(before)).toHaveLength(3);
  const again = await post("/query/batch", body, { "idempotency-key": "cut batch" });
  expect([again.status, again.headers.get("idempotent-replayed")]).toEqual([202, "true"]);
  expect(await newRuns(before)).toHaveLength(3);
  const { rows } = await bench.pool.query("SELECT DISTINCT batch_id FROM runs WHERE NOT id = ANY($1)", [before]);
  expect(rows).toEqual([{ batch_id: fromWireId("batch", again.body.batch_id) }]);
  script();
  await start();
  for (const id of await newRuns(before)) await rested(id, "completed");
  expect(models.count).toBe(3);
});

const appending = "AS i(id, epoch, event_id, type, data, steps";

test.each([
  ["a claim", ["left_aside"], "idempotent_call"],
  ["the end of a model call", [appending, "model.call"], "idempotent_call"],
  ["the intent of an unsafe call", [appending, "tool.call"], "unsafe_call"],
  ["the outcome of an unsafe call", [appending, "tool.result"], "unsafe_call"],
  ["the end of a run", ["AS i(id, epoch, event_id, status, stop_reason"], "idempotent_call"],
])("%s: it is read back, nothing is done or written twice", async (_, texts, tool) => {
  script(tool);
  const lost = proxy.loseAnswerTo(...texts);
  await start();
  const id = await bench.submit();
  await lost;
  const { run, count } = await rested(id, "completed");
  expect(run).toMatchObject({ attempt: 1, steps: 3, iterations: 2 });
  expect((await bench.row(id)).epoch).toBe(1);
  expect([models.count, endpoint.calls.length]).toEqual([2, 1]);
  expect([count("run.started"), count("model.call"), count("tool.result"), count("run.completed")]).toEqual([
    1, 2, 1, 1,
  ]);
  expect((await bench.pool.query("SELECT FROM messages WHERE run_id = $1", [id])).rowCount).toBe(1);
});

test("a park, and then the decision: it waits once, is asked once, and goes on once", async () => {
  script("send_call");
  const parked = proxy.loseAnswerTo("'waiting' ELSE 'queued' END AS to", "COMMIT");
  await start();
  const id = await bench.submit();
  await parked;
  const waiting = await rested(id, "waiting");
  expect([waiting.count("approval.requested"), waiting.count("run.waiting")]).toEqual([1, 1]);

  const { rows } = await bench.pool.query("SELECT id FROM approvals WHERE run_id = $1", [id]);
  expect(rows).toHaveLength(1);
  const path = `/approvals/apr_${rows[0].id.replaceAll("-", "")}`;
  const decided = proxy.loseAnswerTo("UPDATE approvals SET status", "COMMIT");
  expect((await post(path, { decision: "approve" })).status).toBe(503);
  await decided;
  // It holds, and who asks again is told so.
  const again = await post(path, { decision: "approve" });
  expect(again.status).toBe(409);
  expect(again.body.detail).toMatch(/^It is approved already, by key_/);
  const { run, count } = await rested(id, "completed");
  expect(run.attempt).toBe(1);
  expect([count("approval.requested"), count("approval.decided"), count("run.waiting")]).toEqual([1, 1, 1]);
  expect([models.count, endpoint.calls.length]).toEqual([2, 1]);
});

test("a reservation of money: set aside once, and given back to the last cent", async () => {
  await setBudget(bench.pool, "default", { month: 1e12 }, "key_admin");
  script("idempotent_call");
  const lost = proxy.loseAnswerTo("INSERT INTO budget_reservations", "COMMIT");
  await start();
  const id = await bench.submit();
  await lost;
  await rested(id, "completed");
  expect([models.count, endpoint.calls.length]).toEqual([2, 1]);
  const { rows } = await bench.pool.query("SELECT used_nanos, reserved_nanos FROM budget_accounts");
  const { rows: spent } = await bench.pool.query("SELECT sum(cost_nanos) AS nanos FROM runs");
  expect(rows).toEqual([{ used_nanos: spent[0].nanos, reserved_nanos: 0 }]);
  expect((await bench.pool.query("SELECT FROM budget_reservations")).rowCount).toBe(0);
  await setBudget(bench.pool, "default", { month: null }, "key_admin");
});
