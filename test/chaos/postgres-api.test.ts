/** Postgres away, in every way it can be: the API says so at once on every route that needs it, and works again when it is back. */
import { migrate, openPool } from "@drover/storage";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { openStream } from "../api/sse.ts";
import { silent } from "../api/world.ts";
import { startPostgres, type TestPostgres } from "../support/postgres.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";
import { type FaultProxy, startProxy } from "../support/proxy.ts";
import { redisUrl } from "../support/redis.ts";

const key = "drv_outage_0000000000000000000000000000000";
const patience = { timeout: 20_000, interval: 25 };
/** Of the API's pool. */
const connections = 4;
let postgres: TestPostgres;
let proxy: FaultProxy;
let api: SpawnedNode;
let url: string;

beforeAll(async () => {
  postgres = await startPostgres({ settings: { max_connections: 20 } });
  await migrate(postgres.url);
  proxy = await startProxy(postgres.port);
  const throughProxy = new URL(postgres.url);
  throughProxy.host = `127.0.0.1:${proxy.port}`;
  api = spawnNode(new URL("../../apps/api/src/main.ts", import.meta.url), {
    env: {
      DATABASE_URL: throughProxy.href,
      DATABASE_POOL_SIZE: String(connections),
      REDIS_URL: redisUrl(),
      DROVER_QUEUE_PREFIX: `{outage-${postgres.port}}`,
      DROVER_BOOTSTRAP_KEY: key,
      PORT: "0",
      HOST: "127.0.0.1",
    },
  });
  url = (JSON.parse(await api.waitForLine(/"url":"http/)) as { url: string }).url;
});
afterAll(async () => {
  await api.kill();
  await proxy.close();
  await postgres.stop();
});

async function call(method: string, path: string, body?: unknown, headers: Record<string, string> = {}) {
  const response = await fetch(url + path, {
    method,
    headers: {
      authorization: `Bearer ${key}`,
      ...(body !== undefined && { "content-type": "application/json" }),
      ...headers,
    },
    ...(body !== undefined && { body: JSON.stringify(body) }),
    // Far above the second that is meant, and far below any time limit of a statement.
    signal: AbortSignal.timeout(5000),
  });
  // biome-ignore lint/suspicious/noExplicitAny: tests look at what came.
  const answer = (await response.json()) as any;
  return { status: response.status, headers: response.headers, body: answer };
}

const submit = async (headers?: Record<string, string>) => call("POST", "/query", { query: "x" }, headers);
const accepted = async () => (await submit()).body.task_id as string;

/** One of each kind: writing, reading, listing, waiting, streaming, and who comes in. */
const requests = (id: string): Parameters<typeof call>[] => [
  ["POST", "/query", { query: "x" }],
  ["POST", "/query", { query: "x" }, { "idempotency-key": "again" }],
  ["POST", "/agent/query", { query: "x" }],
  ["POST", "/query/batch", { queries: ["x", "y"] }],
  ["GET", `/query/status/${id}`],
  ["GET", `/query/status/${id}?wait=30`],
  ["GET", `/query/result/${id}`],
  ["GET", `/execution/${id}`],
  ["GET", "/query"],
  ["GET", `/query/${id}/events`],
  ["GET", `/query/${id}/events`, undefined, { accept: "text/event-stream" }],
  ["POST", `/query/${id}/cancel`],
  ["GET", "/webhooks"],
  ["GET", `/query/${id}/approvals`],
  ["GET", "/budget"],
  ["GET", "/audit"],
  ["GET", "/query", undefined, { authorization: "Bearer a key that nobody has looked up" }],
];

/** The API during a fault: it lives, it says why it is not ready, and every route turns away at once. */
async function expectTurnedAway(id: string): Promise<void> {
  const answers = await Promise.all(requests(id).map((request) => call(...request)));
  for (const [index, answer] of answers.entries()) {
    expect([requests(id)[index], answer.status]).toEqual([requests(id)[index], 503]);
    expect(answer.body.code).toBe("service_unavailable");
    expect(Number(answer.headers.get("retry-after"))).toBeGreaterThan(0);
  }
  expect((await call("GET", "/health")).status).toBe(200);
  const ready = await call("GET", "/ready");
  expect([ready.status, ready.body]).toEqual([503, { status: "not_ready", reasons: ["Postgres does not answer"] }]);
}

async function expectBack(id: string): Promise<void> {
  await expect.poll(async () => (await call("GET", `/query/status/${id}`)).status, patience).toBe(200);
  expect((await call("GET", "/ready")).status).toBe(200);
  expect((await submit()).status).toBe(202);
}

describe("while Postgres is away", () => {
  const faults: [string, () => unknown, () => unknown][] = [
    ["stopped in good order", () => postgres.kill("SIGINT"), () => postgres.restart()],
    ["killed", () => postgres.kill("SIGKILL"), () => postgres.restart()],
    ["standing still", () => postgres.freeze(true), () => postgres.freeze(false)],
    ["behind a network that swallows everything", () => proxy.blackhole(true), () => proxy.blackhole(false)],
    [
      "gone, and its connections are forgotten",
      () => {
        proxy.forget();
        proxy.refuse(true);
      },
      () => proxy.refuse(false),
    ],
  ];
  test.each(faults)("%s", { timeout: 60_000 }, async (_, begin, end) => {
    const id = await accepted();
    await begin();
    try {
      // The children of a server that was killed may answer once more.
      await expect.poll(async () => (await call("GET", `/query/status/${id}`)).status, patience).toBe(503);
      await expectTurnedAway(id);
      // Also those who come later.
      await expectTurnedAway(id);
    } finally {
      await end();
    }
    await expectBack(id);
  });

  test("requests under way when it falls silent are told as well", async () => {
    const id = await accepted();
    const holder = await hold(id);
    const stuck = Array.from({ length: connections - 1 }, () => call("POST", `/query/${id}/cancel`));
    await waitingForLocks(connections - 1);
    postgres.freeze(true);
    try {
      for (const answer of await Promise.all(stuck)) expect(answer.status).toBe(503);
    } finally {
      postgres.freeze(false);
    }
    await holder.end();
    await expectBack(id);
  });

  test("a live stream outlives it, without a gap or a repetition", async () => {
    const id = await accepted();
    const stream = await openStream(`${url}/query/${id}/events`, { authorization: `Bearer ${key}` });
    await stream.next((event) => event.event === "run.queued");
    postgres.freeze(true);
    await expect.poll(async () => (await call("GET", "/ready")).status, patience).toBe(503);
    postgres.freeze(false);
    await expectBack(id);
    expect((await call("POST", `/query/${id}/cancel`)).status).toBe(200);
    await stream.next((event) => event.event === "run.cancelled");
    await stream.ended;
    expect(stream.events.filter((event) => event.id).map((event) => event.id)).toEqual(["1", "2"]);
  });
});

test("all its connections are taken by others: told at once, and back when there is room", async () => {
  const id = await accepted();
  const others: pg.Client[] = [];
  proxy.refuse(true);
  proxy.cut();
  for (;;) {
    const client = new pg.Client({ connectionString: postgres.url });
    client.on("error", () => {});
    try {
      await client.connect();
      others.push(client);
    } catch (error) {
      expect((error as { code?: string }).code).toBe("53300");
      break;
    }
  }
  proxy.refuse(false);
  await expectTurnedAway(id);
  await Promise.all(others.map((client) => client.end()));
  await expectBack(id);
});

test("all connections of the pool are stuck: others are told at once, and those go on when they can", async () => {
  const id = await accepted();
  const holder = await hold(id);
  const stuck = Array.from({ length: connections }, () => call("POST", `/query/${id}/cancel`));
  await waitingForLocks(connections);
  for (const answer of await Promise.all([call("GET", "/query"), submit(), call("GET", `/query/status/${id}`)])) {
    expect(answer.status).toBe(503);
    expect(answer.body.code).toBe("service_unavailable");
  }
  await holder.end();
  for (const answer of await Promise.all(stuck)) expect(answer.status).toBe(200);
  await expectBack(id);
});

test("a queue of work is no outage: hundreds of clients at once, and big batches, get no 503", {
  timeout: 60_000,
}, async () => {
  const outages = () => api.lines.filter((line) => line.includes("everybody is told at once")).length;
  const before = outages();
  const batch = { queries: Array.from({ length: 5000 }, (_, index) => `query ${index}`) };
  const big = Array.from({ length: 3 }, () =>
    fetch(`${url}/query/batch`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: JSON.stringify(batch),
    }),
  );
  const statuses = await Promise.all(
    Array.from({ length: 300 }, async () => {
      const answer = await fetch(`${url}/query`, {
        method: "POST",
        headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
        body: '{"query":"x"}',
      });
      const { task_id } = (await answer.json()) as { task_id: string };
      const status = await fetch(`${url}/query/status/${task_id}`, { headers: { authorization: `Bearer ${key}` } });
      await status.body?.cancel();
      return [answer.status, status.status];
    }),
  );
  expect(statuses.filter(([made, read]) => made !== 202 || read !== 200)).toEqual([]);
  for (const answer of await Promise.all(big)) expect(answer.status).toBe(202);
  expect(before).toBeGreaterThan(0);
  expect(outages()).toBe(before);
});

/** Holds the run's row until `end`. */
async function hold(taskId: string): Promise<{ end(): Promise<void> }> {
  const client = new pg.Client({ connectionString: postgres.url });
  await client.connect();
  await client.query("BEGIN");
  const { rowCount } = await client.query("SELECT FROM runs WHERE replace(id::text, '-', '') = $1 FOR UPDATE", [
    taskId.replace("run_", ""),
  ]);
  expect(rowCount).toBe(1);
  return { end: () => client.end() };
}

async function waitingForLocks(count: number): Promise<void> {
  const pool = openPool({ url: postgres.url, logger: silent, max: 1 });
  const waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
  await expect.poll(async () => (await pool.query(waiting)).rowCount, patience).toBe(count);
  await pool.end();
}
