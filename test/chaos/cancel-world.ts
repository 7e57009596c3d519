/**
 * API and worker processes as they are deployed, over one database, and a model that does what a run's query says: `name: word word …`, a turn
 * for each word, then "done". A word is the name of a tool, `stream` (words, the last of which wait at the run's gate) or `busy` (a provider
 * that wants to be left alone for an hour).
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fromWireId } from "@drover/protocol";
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject } from "vitest";
import { createGate, type Gate, type ModelServerCall, type ScriptAnswer } from "../support/model-server.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";
import { chaos, withMore } from "./world.ts";

const apiEntry = new URL("../../apps/api/src/main.ts", import.meta.url);
const workerEntry = new URL("../../apps/worker/src/main.ts", import.meta.url);
const configFile = new URL("./cancel.config.ts", import.meta.url).pathname;
const compileCache = new URL("../../node_modules/.cache/drover-tests", import.meta.url).pathname;
const key = "cancel-0123456789abcdef";
const patience = { timeout: 40_000, interval: 20 };

interface Answered {
  status: number;
  // biome-ignore lint/suspicious/noExplicitAny: as the API answers.
  body: any;
}

export interface ApiProcess {
  call(method: string, path: string, body?: unknown): Promise<Answered>;
  submit(query: string, more?: object): Promise<string>;
  cancel(taskId: string): Promise<Answered>;
  status(taskId: string): Promise<Answered["body"]>;
}

export interface WorkerProcess extends SpawnedNode {
  /** Its id when it started. */
  id: string;
}

/** Call it once at the top of a test file. */
export function cancelling() {
  const world = chaos();
  const processes: SpawnedNode[] = [];
  let gates = new Map<string, Gate>();
  let folder = "";

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "drover-cancel-"));
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));
  beforeEach(() => {
    gates = new Map();
    world.models.script(answer);
  });
  afterEach(async () => {
    world.endpoint.release();
    await Promise.all(processes.splice(0).map((process) => process.kill("SIGKILL")));
    await world.bench.pool.query("DELETE FROM workers");
  });

  const gate = (name: string): Gate => {
    const known = gates.get(name) ?? createGate();
    gates.set(name, known);
    return known;
  };

  function answer({ query, turn }: ModelServerCall): ScriptAnswer {
    const [, name = "", words = ""] = /^([\w-]+): ([\w ]*)/.exec(query) ?? [];
    const word = words.split(" ")[turn];
    if (!word) return "done";
    if (word === "busy") return { status: 503, headers: { "retry-after": "3600" } };
    if (word === "stream") return { text: [`the beginning of ${name}, `, "and ", "its end"], gate: gate(name) };
    return { toolCalls: [{ name: word, input: { note: name } }] };
  }

  const environment = (more: Record<string, string>) => ({
    ...world.models.env(),
    DATABASE_URL: world.bench.url,
    REDIS_URL: inject("redisUrl"),
    DROVER_QUEUE_PREFIX: `{${new URL(world.bench.url).pathname.slice(1)}}`,
    DROVER_MODEL: "anthropic/claude-sonnet-4-5",
    DROVER_CONFIG: configFile,
    DROVER_WORKSPACES: join(folder, "workspaces"),
    DROVER_BOOTSTRAP_KEY: key,
    HOST: "127.0.0.1",
    PORT: "0",
    NODE_COMPILE_CACHE: compileCache,
    TOOL_URL: world.endpoint.url,
    PARTIAL_EVERY_SECONDS: "0.05",
    ...more,
  });

  async function spawn(entry: URL, more: Record<string, string>): Promise<SpawnedNode> {
    const child = spawnNode(entry, { env: environment(more) });
    processes.push(child);
    return child;
  }

  return withMore(world, {
    gate,
    async api(more: Record<string, string> = {}): Promise<ApiProcess> {
      const child = await spawn(apiEntry, more);
      const { url } = JSON.parse(await child.waitForLine('"url":"http')) as { url: string };
      const call: ApiProcess["call"] = async (method, path, body) => {
        const response = await fetch(url + path, {
          method,
          headers: {
            authorization: `Bearer ${key}`,
            ...(body !== undefined && { "content-type": "application/json" }),
          },
          ...(body !== undefined && { body: JSON.stringify(body) }),
        });
        return { status: response.status, body: await response.json() };
      };
      return {
        call,
        async submit(query, more = {}) {
          const { status, body } = await call("POST", "/query", { query, ...more });
          expect(status, JSON.stringify(body)).toBe(202);
          return body.task_id;
        },
        cancel: (taskId) => call("POST", `/query/${taskId}/cancel`),
        status: async (taskId) => (await call("GET", `/query/status/${taskId}`)).body,
      };
    },
    async worker(more: Record<string, string> = {}): Promise<WorkerProcess> {
      const child = await spawn(workerEntry, more);
      const { worker } = JSON.parse(await child.waitForLine('"worker ready"')) as { worker: string };
      return Object.assign(child, { id: worker });
    },
    log: (taskId: string) => world.log(fromWireId("run", taskId)!),
    /** Resolves when the run's log has an event of this type. */
    logged: (taskId: string, type: Parameters<typeof world.logged>[1]) =>
      world.logged(fromWireId("run", taskId)!, type),
    /** The run once it is final. Its log is whole. */
    ended: (taskId: string) => world.ended(fromWireId("run", taskId)!),
    /** Requests of the runs of this name that the model server has had so far. */
    asked: (name: string) => world.models.calls.filter(({ query }) => query.startsWith(`${name}:`)),
    /** Calls of tools in the runs of this name that the endpoint has had so far. */
    called: (name: string) => world.endpoint.calls.filter(({ note }) => note === name),
    /** Resolves when what is read is what is expected. */
    until: (read: () => unknown, expected: unknown) => expect.poll(read, patience).toEqual(expected),
    /** While `meanwhile` goes on, nobody reads the large contents of logs. */
    async withoutContents(meanwhile: () => Promise<void>): Promise<void> {
      const client = await world.bench.pool.connect();
      try {
        await client.query("BEGIN");
        await client.query("LOCK TABLE blobs IN ACCESS EXCLUSIVE MODE");
        await meanwhile();
      } finally {
        await client.query("ROLLBACK");
        client.release();
      }
    },
    /** The types of the run's events, without their contents. */
    async types(taskId: string): Promise<string[]> {
      const { rows } = await world.bench.pool.query<{ type: string }>(
        "SELECT type FROM run_events WHERE run_id = $1 ORDER BY seq",
        [fromWireId("run", taskId)],
      );
      return rows.map(({ type }) => type);
    },
  });
}
