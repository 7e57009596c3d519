/**
 * The main job over HTTP, with API and worker as processes of their own, for every provider's wire and both queue backends: submit,
 * follow live, receive the signed webhook, read the result.
 */
import { toWireId, uuidv7 } from "@drover/protocol";
import pg from "pg";
import { Webhook } from "standardwebhooks";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, test } from "vitest";
import { startToolEndpoint } from "../chaos/tools.ts";
import { createDatabase } from "../support/database.ts";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { startPgBouncer, type TestPooler } from "../support/pgbouncer.ts";
import { freePort } from "../support/ports.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";
import { startReceiver } from "../support/receiver.ts";

const key = "drv_journey_000000000000000000000000000000";
const root = new URL("../../", import.meta.url);
const models = {
  anthropic: "anthropic/claude-sonnet-4-5",
  openai: "openai/gpt-5-mini",
  google: "google/gemini-2.5-flash",
  "openai-compatible": "ollama/qwen3",
} as const;

/** Others of the same pooler: ten clients, each with a transaction of 50 ms after the other, so that there is always a queue. */
function startLoad(url: string): { stop(): Promise<void> } {
  const pool = new pg.Pool({ connectionString: url, max: 10 });
  pool.on("error", () => {});
  let stopped = false;
  const all = Array.from({ length: 10 }, async () => {
    while (!stopped) await pool.query("SELECT pg_sleep(0.05)");
  });
  return {
    async stop() {
      stopped = true;
      await Promise.all(all);
      await pool.end();
    },
  };
}

describe.each([
  ["redis", "directly"],
  ["postgres", "directly"],
  ["redis", "through a busy PgBouncer"],
] as const)("BullMQ on %s, Postgres %s", (backend, way) => {
  let server: ModelServer;
  let endpoint: Awaited<ReturnType<typeof startToolEndpoint>>;
  let receiver: Awaited<ReturnType<typeof startReceiver>>;
  let database: Awaited<ReturnType<typeof createDatabase>>;
  let api: SpawnedNode;
  let worker: SpawnedNode;
  let url: string;
  let pooler: TestPooler | undefined;
  let load: { stop(): Promise<void> } | undefined;

  beforeAll(async () => {
    [server, endpoint, database] = await Promise.all([startModelServer(), startToolEndpoint(), createDatabase()]);
    if (way !== "directly") {
      pooler = await startPgBouncer(database.url);
      load = startLoad(pooler.url);
    }
    const env = {
      DATABASE_URL: pooler?.url ?? database.url,
      DATABASE_DIRECT_URL: database.url,
      REDIS_URL: backend === "redis" ? inject("redisUrl") : undefined,
      DROVER_QUEUE_PREFIX: `{${database.name}}`,
      DROVER_BOOTSTRAP_KEY: key,
      DROVER_EGRESS_ALLOW: "127.0.0.0/8",
      DROVER_CONFIG: new URL("test/journeys/drover.config.ts", root).pathname,
      TOOL_URL: endpoint.url,
      LEASE_SECONDS: "2",
      ...server.env(),
    };
    const port = await freePort();
    url = `http://127.0.0.1:${port}`;
    api = spawnNode(new URL("apps/api/src/main.ts", root), { env: { ...env, PORT: String(port), HOST: "127.0.0.1" } });
    worker = spawnNode(new URL("apps/worker/src/main.ts", root), { env });
    await Promise.all([api.waitForLine(/listening on/), worker.waitForLine(/worker ready/)]);
  });
  afterAll(async () => {
    await Promise.all([api.kill(), worker.kill()]);
    await load?.stop();
    await pooler?.stop();
    await Promise.all([server.close(), endpoint.close()]);
    await database.drop();
  });
  beforeEach(async () => {
    receiver = await startReceiver();
  });
  afterEach(() => receiver.close());

  const call = async (method: string, path: string, body?: unknown, headers: Record<string, string> = {}) => {
    const answer = await fetch(url + path, {
      method,
      headers: {
        authorization: `Bearer ${key}`,
        ...(body !== undefined && { "content-type": "application/json" }),
        ...headers,
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
    const text = await answer.text();
    return {
      status: answer.status,
      headers: answer.headers,
      text,
      body: text.startsWith("{") ? JSON.parse(text) : null,
    };
  };

  /** The whole live stream, parsed. */
  const stream = async (path: string, after?: number) => {
    const { text } = await call("GET", path, undefined, {
      accept: "text/event-stream",
      ...(after !== undefined && { "last-event-id": String(after) }),
    });
    return text
      .split("\n\n")
      .filter((frame) => frame.includes("data:"))
      .map(
        (frame) =>
          Object.fromEntries(frame.split("\n").map((line) => line.split(/: (.*)/s).slice(0, 2))) as Record<
            string,
            string
          >,
      );
  };

  test.each(Object.entries(models))(
    "over the wire of %s: two tools side by side, live stream, webhook, result, cost",
    async (wire, model) => {
      server.reset();
      server.script((request) =>
        request.turn === 0
          ? {
              text: "Let me look.",
              toolCalls: [
                { name: "look_up", input: { what: "a" } },
                { name: "calculate", input: { expression: "17 * 23" } },
              ],
              usage: { input: 1000, output: 50, cached: 200 },
            }
          : {
              text: `It is ${request.results.map((result) => result.content).join(" and ")}.`,
              usage: { input: 1100, output: 60 },
            },
      );
      const submitted = await call("POST", "/query", {
        query: "What is it?",
        model,
        callback_url: `${receiver.url}/hook`,
        metadata: { order: "42" },
        user_id: "u1",
      });
      expect(submitted.status).toBe(202);
      const { task_id } = submitted.body;
      expect(submitted.headers.get("location")).toBe(`/query/status/${task_id}`);

      const frames = await stream(`/query/${task_id}/events`);
      const events = frames.filter((frame) => frame.id !== undefined);
      expect(events.map((frame) => Number(frame.id))).toEqual(events.map((_, index) => index + 1));
      expect(events[0]!.event).toBe("run.queued");
      expect(events.at(-1)!.event).toBe("run.completed");
      expect(await stream(`/query/${task_id}/events`, 3)).toHaveLength(events.length - 3);

      const [delivered] = await receiver.waitFor(1);
      const { body: secret } = await call("GET", "/webhooks/secret");
      const payload = new Webhook(secret.secret).verify(
        delivered!.body,
        delivered!.headers as Record<string, string>,
      ) as { data: { result: { output: string } } };
      expect(payload).toMatchObject({
        type: "query.completed",
        data: { task_id, status: "completed", metadata: { order: "42" } },
      });

      const { body: result } = await call("GET", `/query/result/${task_id}?include=tool_calls`);
      expect(result).toMatchObject({
        status: "success",
        iterations: 2,
        tools_called: ["look_up", "calculate"],
        tool_calls: [
          { tool_name: "look_up", output: { found: "done" }, status: "ok" },
          { tool_name: "calculate", output: { result: "391" }, status: "ok" },
        ],
        tokens_used: { input: 2100, output: 110, total: 2210 },
      });
      expect(result.output).toMatch(/391/);
      // A local model has no known price: null, never 0.
      if (wire === "openai-compatible") expect(result.cost_usd).toBeNull();
      else expect(result.cost_usd).toBeGreaterThan(0);
      expect(payload.data.result.output).toBe(result.output);
      expect(server.count).toBe(2);

      // The receiver has it before its answer is written down.
      await expect
        .poll(async () => (await call("GET", `/query/${task_id}/deliveries`)).body.data)
        .toMatchObject([{ status: "delivered", type: "query.completed", attempts: [{ status_code: 200 }] }]);
    },
  );

  test("a batch with a callback: one webhook when the last item is final, results in order", async () => {
    server.reset();
    server.script((request) =>
      request.query === "two" ? { status: 400, message: "no" } : { text: `answer to ${request.query}` },
    );
    const { status, body } = await call("POST", "/query/batch", {
      queries: ["one", "two", { query: "three", metadata: { n: "3" } }],
      model: models.anthropic,
      callback_url: `${receiver.url}/batch`,
      events: ["batch.completed"],
    });
    expect(status).toBe(202);
    const requests = await receiver.waitFor(1);
    expect(JSON.parse(requests[0]!.body)).toMatchObject({
      type: "batch.completed",
      data: { batch_id: body.batch_id, counts: { completed: 2, failed: 1 } },
    });
    const { body: batch } = await call("GET", `/query/batch/${body.batch_id}`);
    expect(batch).toMatchObject({ status: "completed", completed_count: 3, total: 3, progress: 1 });
    expect(batch.data.map((item: { query: string; status: string }) => [item.query, item.status])).toEqual([
      ["one", "completed"],
      ["two", "failed"],
      ["three", "completed"],
    ]);
  });

  test("a synchronous query answers with the result; cancel over HTTP stops a stream in the worker", async () => {
    server.reset();
    server.script((request) => (request.query === "forever" ? { text: "on and on", stallAfter: 2 } : "at once"));
    const sync = await call("POST", "/agent/query", { query: "now", model: models.openai });
    expect(sync).toMatchObject({ status: 200, body: { status: "success", output: "at once" } });
    const { body } = await call("POST", "/query", { query: "forever", model: models.anthropic });
    await server.called(2);
    const cancelled = await call("POST", `/query/${body.task_id}/cancel`);
    expect([200, 202]).toContain(cancelled.status);
    const final = await call("GET", `/query/status/${body.task_id}?wait=20`);
    expect(final.body).toMatchObject({ status: "cancelled" });
    expect((await call("GET", `/query/result/${body.task_id}`)).status).toBe(409);
    expect(await server.calls[1]!.closed).toBe(true);
  });

  test("the worker is killed in the middle: the supervisor's next one goes on, and the webhook still comes, once", async () => {
    server.reset();
    endpoint.hold();
    server.script((request) =>
      request.turn === 0 ? { toolCalls: [{ name: "look_up", input: { what: "slow" } }] } : { text: "after the crash" },
    );
    const { body } = await call("POST", "/query", { query: "q", model: models.anthropic, callback_url: receiver.url });
    const before = endpoint.calls.length;
    await endpoint.called(before + 1);
    await worker.kill("SIGKILL");
    endpoint.release();
    worker = spawnNode(new URL("apps/worker/src/main.ts", root), {
      env: {
        DATABASE_URL: database.url,
        REDIS_URL: backend === "redis" ? inject("redisUrl") : undefined,
        DROVER_QUEUE_PREFIX: `{${database.name}}`,
        DROVER_EGRESS_ALLOW: "127.0.0.0/8",
        DROVER_CONFIG: new URL("test/journeys/drover.config.ts", root).pathname,
        TOOL_URL: endpoint.url,
        LEASE_SECONDS: "2",
        ...server.env(),
      },
    });
    const requests = await receiver.waitFor(1);
    expect(JSON.parse(requests[0]!.body)).toMatchObject({
      type: "query.completed",
      data: { result: { output: "after the crash" } },
    });
    expect(server.count).toBe(2);
    const { body: events } = await call("GET", `/query/${body.task_id}/events`);
    expect(events.data.map((event: { type: string }) => event.type)).toContain("run.rescued");
  });

  test("what is not there, not allowed or not right is told plainly", async () => {
    expect((await call("GET", `/query/status/${toWireId("run", uuidv7())}`)).body).toMatchObject({
      status: 404,
      code: "not_found",
    });
    expect((await fetch(`${url}/query`, { method: "POST" })).status).toBe(401);
    const bad = await call("POST", "/query", {
      query: "",
      max_iterations: 99,
      session_id: "ses_1",
    });
    expect(bad.status).toBe(400);
    expect(bad.body.errors.map((error: { path: string }) => error.path).sort()).toEqual([
      "max_iterations",
      "query",
      "session_id",
    ]);
    const inward = await call("POST", "/query", { query: "q", callback_url: "http://10.0.0.1/" });
    expect(inward.body).toMatchObject({ code: "invalid_input", errors: [{ path: "callback_url" }] });
  });

  test("metrics and readiness tell of what happened", async () => {
    const ready = await call("GET", "/ready");
    expect(ready.status).toBe(200);
    const { text } = await call("GET", "/metrics");
    expect(text).toMatch(/drover_runs_submitted_total\{[^}]*\} [1-9]/);
  });
});
