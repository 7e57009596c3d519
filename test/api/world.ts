/** What tests of the API share: a server over a database of its own, keys of every role, clients, and an owner for runs. */
import { randomBytes } from "node:crypto";
import {
  type Api,
  type ApiDeps,
  type ApiProcessConfig,
  apiProcessConfig,
  createKey,
  type Role,
  startApi,
} from "@drover/api";
import type { EventData, EventType, NewEvent } from "@drover/harness";
import { knownModels } from "@drover/llm/known";
import { fromWireId, loadConfig, type Problem, uuidv7 } from "@drover/protocol";
import { migrateQueue, openSignals, type Signals } from "@drover/queue";
import { openPool, type Pool, postgresBlobs } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { createLogWriter } from "../../packages/runs/src/log/append.ts";
import { leaveRuns } from "../../packages/runs/src/moves/leave.ts";
import { claimRuns } from "../support/claim.ts";
import { createDatabase } from "../support/database.ts";
import { redisUrl } from "../support/redis.ts";
import { type Check, contractOf, type OpenApi } from "./contract.ts";

interface Call {
  /** Sent as JSON. */
  body?: unknown;
  /** Sent as it is. */
  raw?: string | Buffer;
  headers?: Record<string, string>;
  /** null: none. Default: the admin's of tenant `default`. */
  key?: string | null;
  signal?: AbortSignal;
}

interface Answered {
  status: number;
  headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: tests look at what came, and the contract has checked its shape.
  body: any;
  text: string;
}

/** One ownership of a run, as a worker has it. */
interface Owner {
  epoch: number;
  append<T extends EventType>(type: T, data: EventData[T]): Promise<number>;
  /** A finished model call that says `text`. */
  say(text: string, usage?: Partial<{ input: number; output: number; cached: number }>): Promise<number>;
  end(status: "completed" | "partial" | "failed", data: EventData["run.completed"]): Promise<void>;
  /** Back to the queue, as before a retry. */
  retryIn(delayMs: number): Promise<void>;
}

export interface World {
  api: Api;
  url: string;
  config: ApiProcessConfig;
  pool: Pool;
  databaseUrl: string;
  /** Of a process beside the API, as a worker has them. */
  signals: Signals;
  adminKey: string;
  document: OpenApi;
  /** A request whose answer is held against the OpenAPI document. */
  call(method: string, path: string, call?: Call): Promise<Answered>;
  get(path: string, call?: Call): Promise<Answered>;
  post(path: string, body?: unknown, call?: Call): Promise<Answered>;
  /** Submits and returns the id. */
  submit(body?: Record<string, unknown>, call?: Call): Promise<string>;
  keyOf(role: Role, tenant?: string): Promise<string>;
  own(taskId: string): Promise<Owner>;
  close(): Promise<void>;
}

export interface WorldOptions {
  queue?: "redis" | "postgres";
  deps?: ApiDeps;
  env?: Record<string, string>;
}

export const silent = createLogger({ name: "test", level: process.env.TEST_LOG ?? "silent" });

/** The environment of an API on `databaseUrl`. */
export function environment(databaseUrl: string, more: Record<string, string> = {}): Record<string, string> {
  return { DATABASE_URL: databaseUrl, PORT: "0", HOST: "127.0.0.1", ...more };
}

export function redisEnvironment(): Record<string, string> {
  return { REDIS_URL: redisUrl(), DROVER_QUEUE_PREFIX: `{test-${randomBytes(6).toString("hex")}}` };
}

export async function startWorld(options: WorldOptions = {}): Promise<World> {
  const database = await createDatabase();
  if (options.queue === "postgres") await migrateQueue(database.url);
  const adminKey = `test-${randomBytes(16).toString("hex")}`;
  const env = environment(database.url, {
    ...(options.queue !== "postgres" && redisEnvironment()),
    DROVER_BOOTSTRAP_KEY: adminKey,
    ...options.env,
  });
  const config = loadConfig(apiProcessConfig, env);
  const api = await startApi(config, {
    logger: silent,
    agents: { default: {}, researcher: { maxIterations: 20 } },
    models: knownModels(),
    ...options.deps,
  });
  const pool = openPool({ url: database.url, logger: silent });
  const blobs = postgresBlobs(pool);
  const signals = await openSignals(config, { logger: silent, directUrl: database.url });
  const closing = new AbortController();
  const write = createLogWriter(pool, blobs, closing.signal);
  const document = (await (await fetch(`${api.url}/openapi.json`)).json()) as OpenApi;
  const check: Check = contractOf(document);
  const keys = new Map<string, Promise<string>>();
  let workerId: string | undefined;

  const world: World = {
    api,
    url: api.url,
    config,
    pool,
    databaseUrl: database.url,
    signals,
    adminKey,
    document,
    async call(method, path, { body, raw, headers, key = adminKey, signal } = {}) {
      const content = raw ?? (body === undefined ? undefined : JSON.stringify(body));
      const response = await fetch(api.url + path, {
        method,
        headers: {
          ...(key !== null && { authorization: `Bearer ${key}` }),
          ...(content !== undefined && { "content-type": "application/json" }),
          ...headers,
        },
        ...(content !== undefined && { body: content }),
        ...(signal && { signal }),
      });
      const text = await response.text();
      const answer = { status: response.status, headers: response.headers, text };
      check(method, path, answer);
      const isJson = response.headers.get("content-type")?.includes("json");
      return { ...answer, body: isJson ? JSON.parse(text) : text };
    },
    get: (path, call) => world.call("GET", path, call),
    post: (path, body, call) => world.call("POST", path, { ...call, ...(body !== undefined && { body }) }),
    async submit(body = {}, call) {
      const { status, body: answer } = await world.post("/query", { query: "What is 17 * 23?", ...body }, call);
      if (status !== 202) throw new Error(`not accepted: ${JSON.stringify(answer)}`);
      return answer.task_id as string;
    },
    keyOf(role, tenant = "default") {
      const name = `${tenant} ${role}`;
      let key = keys.get(name);
      if (!key) {
        key = createKey(pool, { tenant, role }).then((made) => made.key);
        keys.set(name, key);
      }
      return key;
    },
    async own(taskId) {
      const runId = fromWireId("run", taskId)!;
      if (!workerId) {
        workerId = uuidv7();
        await pool.query(
          "INSERT INTO workers (id, host, pid, slots, lease_ms, heartbeat_at) VALUES ($1, 'test', 1, 1, 3600000, now() + interval '1 hour')",
          [workerId],
        );
      }
      const [claimed] = await claimRuns(pool, workerId, [runId]);
      if (!claimed) throw new Error(`${taskId} cannot be claimed`);
      const { epoch, tenant } = claimed;
      signals.news(runId);
      const append = async (event: NewEvent) => {
        const { seq } = await write({ runId, epoch, tenant, event });
        signals.news(runId);
        return seq;
      };
      const leave = async (
        status: "completed" | "partial" | "failed" | "queued",
        type: string,
        data: object,
        delayMs: number,
      ) => {
        const stopReason = (data as { stop_reason?: string | null }).stop_reason ?? null;
        const [left] = await leaveRuns(pool, [
          {
            runId,
            epoch,
            eventId: uuidv7(),
            status,
            stopReason,
            eventType: type,
            data: JSON.stringify(data),
            cancelledData: JSON.stringify({ output: null, stop_reason: null, error: null }),
            delayMs,
            attempt: status === "queued" ? 2 : null,
          },
        ]);
        if (!left) throw new Error(`${taskId} is not owned any more`);
        signals.news(runId);
      };
      let iteration = 0;
      return {
        epoch,
        append: (type, data) => append({ type, data } as NewEvent),
        say: (text, usage) =>
          append({
            type: "model.call",
            data: {
              iteration: iteration++,
              model: "demo/demo",
              text,
              tool_calls: [],
              finish_reason: "stop",
              usage: { input: 10, output: 5, cached: 0, ...usage },
              cost_usd: 0.001,
              duration_ms: 12,
            },
          }),
        end: (status, data) => leave(status, `run.${status}`, data, 0),
        retryIn: (delayMs) =>
          leave(
            "queued",
            "run.retrying",
            { attempt: 2, delay_ms: delayMs, error: { code: "model_error", message: "The provider answered 503." } },
            delayMs,
          ),
      };
    },
    async close() {
      closing.abort();
      await api.close();
      await signals.close();
      await pool.end();
      await database.drop();
    },
  };
  return world;
}

/** The paths that a validation error names. */
export const paths = (problem: Problem): string[] => (problem.errors ?? []).map((error) => error.path);
