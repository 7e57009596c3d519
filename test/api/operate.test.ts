import { once } from "node:events";
import { connect } from "node:net";
import { type Api, type ApiDeps, apiProcessConfig, startApi } from "@drover/api";
import { fromWireId, loadConfig } from "@drover/protocol";
import { migrateQueue } from "@drover/queue";
import { ensurePartitions, migrate, openPool } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { workersLockClass } from "../../packages/runs/src/liveness/lock.ts";
import { createDatabase, createEmptyDatabase } from "../support/database.ts";
import { startPostgres } from "../support/postgres.ts";
import { startProxy } from "../support/proxy.ts";
import { startRedis } from "../support/redis.ts";
import { environment, redisEnvironment, silent, startWorld, type World } from "./world.ts";

const bootstrapKey = "operate-0123456789abcdef";
const start = (databaseUrl: string, env: Record<string, string> = {}, deps: ApiDeps = {}): Promise<Api> =>
  startApi(loadConfig(apiProcessConfig, environment(databaseUrl, { DROVER_BOOTSTRAP_KEY: bootstrapKey, ...env })), {
    logger: silent,
    ...deps,
  });

async function ask(url: string, init: RequestInit & { key?: string } = {}) {
  const { key = bootstrapKey, ...rest } = init;
  const response = await fetch(url, {
    signal: AbortSignal.timeout(patienceMs),
    ...rest,
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json", ...rest.headers },
  });
  const text = await response.text();
  return {
    status: response.status,
    headers: response.headers,
    text,
    // biome-ignore lint/suspicious/noExplicitAny: whatever came.
    body: (text.startsWith("{") ? JSON.parse(text) : text) as any,
  };
}
/** Nothing may hang: a second is promised where Postgres is away, the rest is for a busy machine. */
const patienceMs = 10_000;
const submit = (url: string) => ask(`${url}/query`, { method: "POST", body: '{"query":"x"}' });

describe.each(["redis", "postgres"] as const)("with BullMQ on %s", (queue) => {
  let world: World;
  beforeAll(async () => {
    world = await startWorld({ queue });
  });
  afterAll(() => world.close());

  test("/health and /ready need no key; no live worker is degraded, not unready", async () => {
    expect((await world.get("/health", { key: null })).body).toEqual({ status: "ok" });
    const { status, body } = await world.get("/ready", { key: null });
    expect(status).toBe(200);
    expect(body).toEqual({ status: "ready", degraded: [expect.stringContaining("no live worker")] });
    await world.own(await world.submit());
    expect((await world.get("/ready", { key: null })).body).toEqual({ status: "ready" });
  });

  test("a worker whose process has died is no live worker at once, long before its lease is over", async () => {
    // The workers of the other tests are silent meanwhile.
    await world.pool.query("UPDATE workers SET heartbeat_at = heartbeat_at - interval '1 day'");
    const workers = async () => metric(await world.get("/metrics", { key: null }), "drover_workers_live");
    const process = await world.pool.connect();
    const { rows } = await process.query(
      "INSERT INTO workers (id, host, pid, slots, lease_ms, lock_id) VALUES (gen_random_uuid(), 'test', 1, 1, 3600000, 7) RETURNING id",
    );
    await process.query("SELECT pg_advisory_lock($1, 7)", [workersLockClass]);
    expect((await world.get("/ready", { key: null })).body).toEqual({ status: "ready" });
    process.release(true);
    await expect
      .poll(async () => (await world.get("/ready", { key: null })).body.degraded)
      .toEqual([expect.stringContaining("no live worker")]);
    await expect.poll(workers).toBe(0);
    await world.pool.query("DELETE FROM workers WHERE id = $1", [rows[0].id]);
    await world.pool.query("UPDATE workers SET heartbeat_at = heartbeat_at + interval '1 day'");
  });

  test("a missing partition is told before it is needed", async () => {
    const next =
      "'run_events_' || to_char(date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month', 'YYYY_MM')";
    const { rows } = await world.pool.query<{ name: string }>(`SELECT ${next} AS name`);
    await world.pool.query(`DROP TABLE ${rows[0]!.name}`);
    expect((await world.get("/ready", { key: null })).body).toMatchObject({
      status: "ready",
      degraded: [expect.stringContaining("partition")],
    });
    await ensurePartitions(world.pool);
    expect((await world.get("/ready", { key: null })).body).toEqual({ status: "ready" });
  });

  test("submitting wakes the queue and counts", async () => {
    const submitted = async () =>
      metric(
        await world.get("/metrics", { key: null }),
        'drover_runs_submitted_total{agent="researcher",kind="single"}',
      );
    const before = await submitted();
    await world.submit({ agent: "researcher" });
    expect(await submitted()).toBe(before + 1);
  });

  test("the board is for operators, by header or by a browser's Basic credentials", async () => {
    const board = "/admin/queues/api/queues";
    const basic = (key: string) => ({ authorization: `Basic ${Buffer.from(`me:${key}`).toString("base64")}` });
    for (const path of [board, "/admin/queues/", "/admin/queues"]) {
      const { status, headers } = await fetch(world.url + path);
      expect(status, path).toBe(401);
      expect(headers.get("www-authenticate")).toMatch(/^Basic realm="drover"/);
    }
    for (const role of ["submitter", "approver"] as const) {
      const key = await world.keyOf(role);
      expect((await fetch(world.url + board, { headers: basic(key) })).status).toBe(403);
      expect((await fetch(world.url + board, { headers: { authorization: `Bearer ${key}` } })).status).toBe(403);
    }
    const key = await world.keyOf("operator");
    expect((await fetch(world.url + board, { headers: basic(`${key}x`) })).status).toBe(401);
    const page = await fetch(`${world.url}/admin/queues`, { headers: basic(key) });
    expect(page.status).toBe(200);
    expect(await page.text()).toContain("Drover");
    expect((await fetch(world.url + board, { headers: { "x-api-key": key } })).status).toBe(200);
  });

  test("the board shows each job's run, its status and the way to it", async () => {
    const id = await world.submit({ delay_seconds: 0, priority: 9 });
    const headers = { authorization: `Bearer ${await world.keyOf("operator")}` };
    type Job = { id: string; data: { task_id: string; status: string }; externalUrl?: { href: string } };
    const jobs = async () => {
      const response = await fetch(
        `${world.url}/admin/queues/api/queues?activeQueue=runs&status=latest&jobsPerPage=50`,
        { headers },
      );
      const { queues } = (await response.json()) as { queues: { jobs: Job[] }[] };
      return queues[0]!.jobs;
    };
    const mine = async () => (await jobs()).find((job) => job.data.task_id === id);
    await expect.poll(mine).toBeDefined();
    expect((await mine())!.data).toEqual({ task_id: id, status: "queued" });
    await world.post(`/query/${id}/cancel`);
    const job = (await mine())!;
    expect(job.data.status).toBe("cancelled");
    expect(job.externalUrl?.href).toBe(`/execution/${id}`);
    const single = await fetch(`${world.url}/admin/queues/api/queues/runs/${job.id}`, { headers });
    expect(await single.json()).toMatchObject({ job: { data: { task_id: id, status: "cancelled" } } });
    const record = await fetch(`${world.url}/execution/${id}`, {
      headers: { authorization: `Basic ${Buffer.from(`x:${world.adminKey}`).toString("base64")}` },
    });
    expect(record.status).toBe(200);
  });

  test("the board pauses and resumes, and changes nothing else", async () => {
    const headers = { authorization: `Bearer ${await world.keyOf("operator")}`, "content-type": "application/json" };
    const put = (path: string, method = "PUT", body?: string) =>
      fetch(`${world.url}/admin/queues/api/queues/runs${path}`, { method, headers, ...(body && { body }) });
    expect((await put("/pause")).status).toBe(200);
    expect((await put("/resume")).status).toBe(200);
    for (const [path, method, body] of [
      ["/empty", "PUT"],
      ["/obliterate", "PUT"],
      ["/clean/completed", "PUT"],
      ["/add", "POST", '{"jobName":"run","jobData":{},"jobOptions":{}}'],
    ] as const) {
      const answer = await put(path, method, body);
      expect(answer.status, path).toBe(405);
      expect(await answer.text()).not.toContain("node_modules");
    }
  });
});

const metric = ({ text }: { text: string }, series: string): number => {
  const line = text.split("\n").find((line) => line.startsWith(`${series} `));
  return line === undefined ? 0 : Number(line.slice(series.length + 1));
};

test("/metrics asks for its token when it has one, and for no API key", async () => {
  const database = await createDatabase();
  const api = await start(database.url, { ...redisEnvironment(), METRICS_TOKEN: "scrape-me" });
  expect((await ask(`${api.url}/metrics`)).status).toBe(401);
  expect((await fetch(`${api.url}/metrics`)).status).toBe(401);
  const { status, headers, text } = await ask(`${api.url}/metrics`, { key: "scrape-me" });
  expect(status).toBe(200);
  expect(headers.get("content-type")).toMatch(/^text\/plain/);
  expect(text).toContain("# TYPE drover_queue_depth gauge");
  expect(text).toContain("process_cpu_seconds_total");
  await api.close();
  await database.drop();
});

test("the queue's depth and its oldest age are counted in the database", async () => {
  const world = await startWorld();
  const id = await world.submit();
  await world.submit({ delay_seconds: 60 });
  await world.own(await world.submit());
  const aside = await world.submit();
  await world.pool.query("UPDATE runs SET woken = false, set_aside_at = now() WHERE id = $1", [
    fromWireId("run", aside),
  ]);
  await world.pool.query(
    "UPDATE runs SET available_at = now() - interval '90 seconds' WHERE status = 'queued' AND woken",
  );
  expect(id).toBeTruthy();
  const answer = await world.get("/metrics", { key: null });
  expect(metric(answer, 'drover_queue_depth{state="due"}')).toBe(1);
  expect(metric(answer, 'drover_queue_depth{state="delayed"}')).toBe(1);
  expect(metric(answer, 'drover_queue_depth{state="running"}')).toBe(1);
  expect(metric(answer, "drover_queue_oldest_age_seconds")).toBeGreaterThanOrEqual(90);
  expect(metric(answer, "drover_workers_live")).toBe(1);
  expect(metric(answer, 'drover_runs_unclaimable{agent="default"}')).toBe(1);
  const { body } = await world.get(`/query/status/${aside}`);
  expect(body.reason).toEqual({
    code: "no_worker",
    text: 'No worker takes the agent "default".',
    since: expect.any(String),
  });
  await world.close();
});

describe("while Postgres is away", () => {
  test("requests are told so within a second, /ready says why, and everything works when it is back", async () => {
    const postgres = await startPostgres();
    await migrate(postgres.url);
    const api = await start(postgres.url, redisEnvironment());
    const accepted = await submit(api.url);
    expect(accepted.status).toBe(202);
    const id = accepted.body.task_id;
    await postgres.kill("SIGINT");

    const refused = await Promise.all([
      submit(api.url),
      ask(`${api.url}/query/status/${id}`),
      ask(`${api.url}/query`),
      ask(`${api.url}/query`, { key: "a-key-nobody-knows" }),
      ask(`${api.url}/query/batch`, { method: "POST", body: '{"queries":["a"]}' }),
      ask(`${api.url}/query/${id}/cancel`, { method: "POST" }),
    ]);
    for (const { status, headers, body, text } of refused) {
      expect(status).toBe(503);
      expect(headers.get("retry-after")).toMatch(/^\d+$/);
      expect(body).toMatchObject({ code: "service_unavailable", title: "Service unavailable" });
      expect(text).not.toMatch(/ECONNREFUSED|SELECT|127\.0\.0\.1|stack/);
    }
    const ready = await ask(`${api.url}/ready`);
    expect(ready.status).toBe(503);
    expect(ready.body).toEqual({ status: "not_ready", reasons: ["Postgres does not answer"] });
    expect((await ask(`${api.url}/health`)).status).toBe(200);
    expect((await ask(`${api.url}/metrics`)).status).toBe(200);
    expect((await submit(api.url)).text).not.toContain("Error");

    await postgres.restart();
    await expect.poll(async () => (await ask(`${api.url}/ready`)).status, { timeout: 10_000 }).toBe(200);
    expect((await submit(api.url)).status).toBe(202);
    await api.close();
    await postgres.stop();
  });

  test("cut connections and a silent network are told as well", async () => {
    const database = await createDatabase();
    const { hostname, port } = new URL(database.url);
    const proxy = await startProxy(Number(port), hostname);
    const through = new URL(database.url);
    through.hostname = "127.0.0.1";
    through.port = String(proxy.port);
    const api = await start(through.href, { ...redisEnvironment(), DATABASE_POOL_SIZE: "2" }, { answerTimeoutMs: 300 });
    const isRefused = async () => {
      const answers = await Promise.all([
        submit(api.url),
        submit(api.url),
        ask(`${api.url}/query`),
        ask(`${api.url}/query`),
      ]);
      for (const { status, body } of answers) {
        expect(status).toBe(503);
        expect(body.code).toBe("service_unavailable");
      }
    };
    const isAccepted = () => expect.poll(async () => (await submit(api.url)).status, { timeout: 10_000 }).toBe(202);
    await isAccepted();
    proxy.refuse(true);
    proxy.cut();
    await isRefused();
    proxy.refuse(false);
    await isAccepted();
    proxy.blackhole(true);
    await isRefused();
    proxy.blackhole(false);
    await isAccepted();
    await api.close();
    await proxy.close();
    await database.drop();
  });

  test("a database that only reads is not ready", async () => {
    const database = await createDatabase();
    const api = await start(database.url, redisEnvironment());
    const readOnly = new URL(database.url);
    readOnly.searchParams.set("options", "-c default_transaction_read_only=on");
    const onReplica = await start(readOnly.href, redisEnvironment());
    const ready = await ask(`${onReplica.url}/ready`);
    expect(ready.status).toBe(503);
    expect(ready.body.reasons).toContain("Postgres is not writable");
    expect((await submit(onReplica.url)).status).toBe(503);
    expect((await submit(api.url)).status).toBe(202);
    await onReplica.close();
    await api.close();
    await database.drop();
  });
});

test("an API that starts before the migrations waits for them, and says so", async () => {
  const database = await createEmptyDatabase();
  const api = await start(database.url);
  const ready = await ask(`${api.url}/ready`);
  expect(ready.status).toBe(503);
  expect(ready.body.reasons).toEqual([expect.stringContaining("migrations are missing")]);
  const refused = await submit(api.url);
  expect(refused.status).toBe(503);
  expect(refused.body.code).toBe("service_unavailable");
  expect((await fetch(`${api.url}/admin/queues/api/queues`)).status).toBe(503);
  expect((await ask(`${api.url}/metrics`)).status).toBe(200);
  await migrate(database.url);
  await migrateQueue(database.url);
  await expect.poll(async () => (await ask(`${api.url}/ready`)).status, { timeout: 10_000 }).toBe(200);
  expect((await submit(api.url)).status).toBe(202);
  await api.close();
  await database.drop();
});

test("an API that starts while Postgres is away gets ready when it is there", async () => {
  const postgres = await startPostgres();
  await migrate(postgres.url);
  await postgres.kill("SIGINT");
  const api = await start(postgres.url, redisEnvironment());
  expect((await submit(api.url)).status).toBe(503);
  await postgres.restart();
  await expect.poll(async () => (await submit(api.url)).status, { timeout: 10_000 }).toBe(202);
  await api.close();
  await postgres.stop();
});

test("an API whose database never comes still stops", async () => {
  const postgres = await startPostgres();
  const url = postgres.url;
  await postgres.stop();
  const api = await start(url, redisEnvironment());
  expect((await ask(`${api.url}/ready`)).body.reasons).toContain("Postgres does not answer");
  await api.close();
});

test("while Redis is away queries are accepted, and /ready says what is degraded", async () => {
  const redis = await startRedis();
  const database = await createDatabase();
  const api = await start(database.url, { REDIS_URL: redis.url });
  await expect.poll(async () => (await ask(`${api.url}/ready`)).body.degraded).toHaveLength(1);
  await redis.kill("SIGKILL");
  const { status, body } = await submit(api.url);
  expect(status).toBe(202);
  expect((await ask(`${api.url}/query/status/${body.task_id}`)).body.status).toBe("queued");
  const ready = await ask(`${api.url}/ready`);
  expect(ready.status).toBe(200);
  expect(ready.body.degraded).toContainEqual(expect.stringContaining("the queue does not answer"));
  const board = await ask(`${api.url}/admin/queues/api/queues`);
  expect(board.status).toBe(500);
  expect(board.body.message).toBe("The queue does not answer.");
  expect(board.text).not.toMatch(/ECONN|127\.0\.0\.1|node_modules/);
  await api.close();
  await redis.stop();
  await database.drop();
});

test("what is not even HTTP is told so, as a problem document", async () => {
  const database = await createDatabase();
  const api = await start(database.url, redisEnvironment());
  const socket = connect(Number(new URL(api.url).port), "127.0.0.1");
  socket.end("HELLO\r\n\r\n");
  let text = "";
  socket.on("data", (chunk) => {
    text += chunk;
  });
  await once(socket, "close");
  expect(text).toMatch(/^HTTP\/1\.1 400 /);
  expect(text).toMatch(/content-type: application\/problem\+json/);
  expect(text).toMatch(/x-request-id: req_/);
  expect(JSON.parse(text.slice(text.indexOf("\r\n\r\n") + 4))).toMatchObject({ code: "invalid_input", status: 400 });
  await api.close();
  await database.drop();
});

test("an error of ours says nothing about its cause, and its request id finds it in the log", async () => {
  const database = await createDatabase();
  const lines: string[] = [];
  const logger = createLogger({ name: "api", to: { write: (line: string) => void lines.push(line) } });
  const env = environment(database.url, { DROVER_BOOTSTRAP_KEY: bootstrapKey, ...redisEnvironment() });
  const api = await startApi(loadConfig(apiProcessConfig, env), { logger });
  const { body } = await submit(api.url);
  const pool = openPool({ url: database.url, logger: silent });
  await pool.query("UPDATE run_events SET type = 'model.partial'");
  const broken = await ask(`${api.url}/execution/${body.task_id}`);
  expect(broken.status).toBe(500);
  expect(broken.body).toEqual({
    type: "urn:drover:error:internal_error",
    title: "Internal error",
    status: 500,
    detail: "Something went wrong on our side.",
    code: "internal_error",
    request_id: broken.headers.get("x-request-id"),
  });
  const line = lines.find((one) => one.includes(broken.body.request_id));
  expect(JSON.parse(line!)).toMatchObject({ level: 50, task_id: body.task_id, route: "/execution/:id" });
  expect(lines.join("")).not.toContain(bootstrapKey);
  await pool.end();
  await api.close();
  await database.drop();
});
