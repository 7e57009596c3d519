/**
 * Postgres away while two worker processes hold fifty runs, half of them in a model stream and half in a tool: nobody is condemned for what hit
 * all, what runs is finished and recorded when it is back, nothing is paid for twice. And one worker cut off alone: it loses its runs, and lives on.
 */
import { setTimeout as delay } from "node:timers/promises";
import { fromWireId } from "@drover/protocol";
import { migrateQueue } from "@drover/queue";
import { readLog } from "@drover/runs";
import { migrate, openPool, type Pool, postgresBlobs } from "@drover/storage";
import pg from "pg";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { silent } from "../api/world.ts";
import { createGate, type ModelServer, startModelServer } from "../support/model-server.ts";
import { startPostgres, type TestPostgres } from "../support/postgres.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";
import { type FaultProxy, startProxy } from "../support/proxy.ts";
import { redisUrl } from "../support/redis.ts";
import { foundTwice } from "../support/twice.ts";
import { startToolEndpoint } from "./tools.ts";

const key = "drv_workers_000000000000000000000000000000";
const patience = { timeout: 40_000, interval: 50 };
const leaseSeconds = 4;
/** Longer than the lease. */
const outageMs = process.env.DROVER_CHAOS === "full" ? 60_000 : 6000;
const half = 25;
const root = new URL("../../", import.meta.url);
vi.setConfig({ testTimeout: 60_000 + outageMs, hookTimeout: 60_000 });

type Outage = "restarted" | "crashed" | "away" | "standing still" | "full";

/** Call it once in a test file. */
export function outages(backend: "redis" | "postgres", wanted: Outage[]): void {
  let postgres: TestPostgres;
  let pool: Pool;
  let models: ModelServer;
  let endpoint: Awaited<ReturnType<typeof startToolEndpoint>>;
  /** The way of one worker each to Postgres. */
  let proxies: FaultProxy[];
  let workers: SpawnedNode[];
  let api: SpawnedNode;
  let url: string;
  /** Ends the streams and tools that wait. */
  let goOn = () => {};

  beforeAll(async () => {
    [postgres, models, endpoint] = await Promise.all([
      startPostgres({ settings: { max_connections: 70 } }),
      startModelServer(),
      startToolEndpoint(),
    ]);
    await migrate(postgres.url);
    await migrateQueue(postgres.url);
    pool = openPool({ url: postgres.url, logger: silent });
    proxies = await Promise.all([startProxy(postgres.port), startProxy(postgres.port)]);
    const env = {
      REDIS_URL: backend === "redis" ? redisUrl() : undefined,
      DROVER_QUEUE_PREFIX: `{workers-${postgres.port}}`,
      DROVER_BOOTSTRAP_KEY: key,
      DROVER_CONFIG: new URL("postgres.config.ts", import.meta.url).pathname,
      DROVER_MODEL: "anthropic/claude-sonnet-4-5",
      TOOL_URL: endpoint.url,
      // So that both are full.
      WORKER_CONCURRENCY: String(half),
      LEASE_SECONDS: String(leaseSeconds),
      ...models.env(),
    };
    api = spawnNode(new URL("apps/api/src/main.ts", root), {
      env: { ...env, DATABASE_URL: postgres.url, PORT: "0", HOST: "127.0.0.1" },
    });
    workers = proxies.map((proxy) => {
      const throughProxy = new URL(postgres.url);
      throughProxy.host = `127.0.0.1:${proxy.port}`;
      return spawnNode(new URL("apps/worker/src/main.ts", root), { env: { ...env, DATABASE_URL: throughProxy.href } });
    });
    url = (JSON.parse(await api.waitForLine(/"url":"http/)) as { url: string }).url;
    await Promise.all(workers.map((worker) => worker.waitForLine("worker ready")));
  });
  afterEach(async () => {
    goOn();
    expect(await foundTwice(pool)).toEqual([]);
  });
  afterAll(async () => {
    await Promise.all([api, ...workers].map((process) => process.kill("SIGKILL")));
    await Promise.all([pool.end(), models.close(), endpoint.close(), ...proxies.map((proxy) => proxy.close())]);
    await postgres.stop();
  });

  const post = (body: unknown) =>
    fetch(`${url}/query`, {
      method: "POST",
      headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(5000),
    });
  async function submit(query: string): Promise<string> {
    const answer = await post({ query });
    expect(answer.status).toBe(202);
    return fromWireId("run", ((await answer.json()) as { task_id: string }).task_id)!;
  }

  const rowsOf = async (ids: string[]) =>
    (
      await pool.query(
        `SELECT r.id, r.status, r.epoch, r.attempt, r.crashes, r.worker FROM runs r WHERE r.id = ANY($1) ORDER BY r.id`,
        [ids],
      )
    ).rows;
  const liveWorkers = async () =>
    (await pool.query("SELECT id FROM workers WHERE dead_at IS NULL ORDER BY id")).rows.map((row) => row.id);
  /** Nobody new gets in. */
  async function closed(): Promise<boolean> {
    const client = new pg.Client({ connectionString: postgres.url, connectionTimeoutMillis: 1000 });
    client.on("error", () => {});
    return await client.connect().then(
      () => client.end().then(() => false),
      () => true,
    );
  }
  const log = (id: string) => readLog(pool, postgresBlobs(pool), { tenant: "default", runId: id });

  async function allEnd(ids: string[]): Promise<void> {
    const open = async () => {
      const rows = await rowsOf(ids).catch(() => undefined);
      return rows?.filter((row) => row.status !== "completed").map((row) => `${row.id} ${row.status}`);
    };
    await expect.poll(open, patience).toEqual([]);
  }

  /** Fifty runs under way, half in a stream that waits, half in a tool that waits; `goOn` ends both. */
  async function fiftyUnderWay(effects = ["pure", "idempotent", "unsafe"]) {
    models.reset();
    endpoint.calls.length = 0;
    endpoint.hold();
    const gate = createGate();
    models.script((call) => {
      const [kind, number] = call.query.split(" ");
      if (kind === "stream") return { text: "the whole answer", gate };
      if (call.turn > 0) return "the answer";
      return { toolCalls: [{ name: `${effects[Number(number) % effects.length]}_call`, input: { note: call.query } }] };
    });
    const queries = Array.from({ length: half }, (_, index) => [`stream ${index}`, `tool ${index}`]).flat();
    const ids = await Promise.all(queries.map(submit));
    goOn = () => {
      gate.open();
      endpoint.release();
    };
    await Promise.all([gate.arrived(half), endpoint.called(half)]);
    return ids;
  }

  /** Takes every connection that comes free, until it is told to stop. */
  async function takeAllConnections() {
    const taken: pg.Client[] = [];
    let stopped = false;
    const full = Promise.withResolvers<void>();
    const taking = (async () => {
      while (!stopped) {
        const client = new pg.Client({ connectionString: postgres.url });
        client.on("error", () => {});
        await client.connect().then(
          () => taken.push(client),
          () => {
            full.resolve();
            return delay(20);
          },
        );
      }
    })();
    await full.promise;
    return async () => {
      stopped = true;
      await taking;
      await Promise.all(taken.map((client) => client.end()));
    };
  }

  let stopTaking: () => Promise<void>;
  const ways: Record<Outage, { begin(): unknown; lastsMs: number; end(): unknown }> = {
    restarted: { begin: () => postgres.kill("SIGINT"), lastsMs: 0, end: () => postgres.restart() },
    crashed: { begin: () => postgres.kill("SIGKILL"), lastsMs: 0, end: () => postgres.restart() },
    away: { begin: () => postgres.kill("SIGINT"), lastsMs: outageMs, end: () => postgres.restart() },
    "standing still": { begin: () => postgres.freeze(true), lastsMs: outageMs, end: () => postgres.freeze(false) },
    full: {
      async begin() {
        for (const proxy of proxies) {
          proxy.refuse(true);
          proxy.cut();
        }
        stopTaking = await takeAllConnections();
        for (const proxy of proxies) proxy.refuse(false);
      },
      lastsMs: outageMs,
      end: () => stopTaking(),
    },
  };

  test.each(wanted)("Postgres is %s: everybody waits, nobody is condemned, every call is made once", async (outage) => {
    const { begin, lastsMs, end } = ways[outage];
    const ids = await fiftyUnderWay();
    const before = await liveWorkers();
    expect(before).toHaveLength(2);
    const held = await rowsOf(ids);
    expect(held.map((row) => row.status)).toEqual(ids.map(() => "running"));
    expect(new Set(held.map((row) => row.worker))).toEqual(new Set(before));
    const calls = models.count;
    expect(calls).toBe(2 * half);
    await begin();
    try {
      await expect.poll(closed, patience).toBe(true);
      // What is under way ends now; that it did can only be written down later, and nothing new begins before.
      goOn();
      await expect.poll(() => models.open, patience).toBe(0);
      await delay(lastsMs);
      expect(models.count).toBe(calls);
    } finally {
      await end();
    }
    await allEnd(ids);
    expect(models.count).toBe(3 * half);
    expect(endpoint.calls).toHaveLength(half);
    for (const row of await rowsOf(ids)) expect(row).toMatchObject({ epoch: 1, attempt: 1, crashes: 0 });
    for (const id of ids) expect((await log(id)).map((event) => event.type)).not.toContain("run.rescued");
    expect(await liveWorkers()).toEqual(before);
    for (const worker of workers) expect(worker.output()).not.toContain("declared dead");
    // And they take runs again.
    await allEnd([await submit("tool 1"), await submit("tool 2")]);
  });

  test("one worker alone is cut off for longer than the lease: its runs end elsewhere, and it comes back as a new one", async () => {
    // Who takes over an unsafe call asks a person.
    const ids = await fiftyUnderWay(["pure", "idempotent"]);
    const before = await liveWorkers();
    const first = JSON.parse(workers[0]!.lines.find((line) => line.includes("worker ready"))!) as { worker: string };
    expect(before).toContain(first.worker);
    const lost = (await rowsOf(ids)).filter((row) => row.worker === first.worker).map((row) => row.id);
    expect(lost.length).toBeGreaterThan(0);
    const network = proxies[0]!;
    // Its open connections never say anything again, new ones are swallowed.
    network.forget();
    network.blackhole(true);
    await expect.poll(async () => (await liveWorkers()).includes(first.worker), patience).toBe(false);
    // The one that is cut off ends its steps too, and must find that nobody wants them any more.
    goOn();
    await allEnd(ids);
    network.blackhole(false);
    await expect.poll(liveWorkers, patience).toHaveLength(2);
    const [anew] = (await liveWorkers()).filter((id) => !before.includes(id));
    expect(anew).toBeDefined();
    await workers[0]!.waitForLine("declared dead while away");

    for (const row of await rowsOf(ids))
      expect(row).toMatchObject({ epoch: lost.includes(row.id) ? 2 : 1, attempt: 1 });
    for (const id of ids) {
      const types = (await log(id)).map((event) => event.type);
      const count = (type: string) => types.filter((one) => one === type).length;
      expect([count("run.rescued"), count("run.completed")]).toEqual([lost.includes(id) ? 1 : 0, 1]);
      expect(count("tool.result")).toBe(count("model.call") - 1);
    }
    // Alone, it takes runs again.
    expect((await workers[1]!.kill("SIGTERM")).code).toBe(0);
    await allEnd([await submit("tool 1"), await submit("stream 1")]);
  });
}
