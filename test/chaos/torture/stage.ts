/** The stage of a torture run: Postgres, Redis, API and worker processes, each with network paths of its own that can be broken. */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { migrateQueue } from "@drover/queue";
import { migrate, openPool, type Pool } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { bootstrap } from "../../../apps/api/src/index.ts";
import { freePort } from "../../support/ports.ts";
import { startPostgres, type TestPostgres } from "../../support/postgres.ts";
import { type FaultProxy, startProxy } from "../../support/proxy.ts";
import { startRedis, type TestRedis } from "../../support/redis.ts";
import type { Ledger } from "./ledger.ts";
import type { PlanOptions } from "./plan.ts";
import { type Life, Supervised } from "./supervised.ts";

export const apiKey = "drv_torture_00000000000000000000000000000000";
export const webhookSecret = "whsec_dG9ydHVyZS10b3J0dXJlLXRvcnR1cmUtMDEyMw==";

/** A process, and its only ways to the servers. */
export interface Actor {
  process: Supervised;
  postgres: FaultProxy;
  redis: FaultProxy | null;
}

export interface Stage {
  /** Straight to the database, past all proxies. */
  pool: Pool;
  databaseUrl: string;
  redisUrl: string | null;
  postgres: TestPostgres;
  redis: TestRedis | null;
  /** By name: `api0`, `worker2`. */
  actors: ReadonlyMap<string, Actor>;
  apiUrls: readonly string[];
  /** Of the processes' output; gone after `close`, unless it is to be kept. */
  folder: string;
  /** SIGTERM to all, APIs last; resolves with their last lives. */
  stopProcesses(): Promise<Life[]>;
  close(options: { keepFolder: boolean }): Promise<void>;
}

const entries = {
  api: new URL("../../../apps/api/src/main.ts", import.meta.url),
  worker: new URL("../../../apps/worker/src/main.ts", import.meta.url),
};
const config = new URL("./drover.config.ts", import.meta.url).pathname;

const through = (url: string, port: number): string => Object.assign(new URL(url), { port: String(port) }).href;

export async function setStage(options: PlanOptions, ledger: Ledger, onLife: (life: Life) => void): Promise<Stage> {
  const undo: (() => Promise<unknown>)[] = [];
  let keep = false;
  try {
    const folder = await mkdtemp(join(tmpdir(), "drover-torture-"));
    undo.push(async () => {
      if (!keep) await rm(folder, { recursive: true, force: true });
    });
    await mkdir(join(folder, "workspaces"));
    const postgres = await startPostgres({ settings: { max_connections: 400 } });
    undo.push(() => postgres.stop());
    const redis = options.backend === "redis" ? await startRedis() : null;
    if (redis) undo.push(() => redis.stop());
    await migrate(postgres.url);
    await migrateQueue(postgres.url);
    const pool = openPool({ url: postgres.url, logger: createLogger({ name: "torture", level: "silent" }), max: 4 });
    undo.push(() => pool.end());
    await bootstrap(pool, { DROVER_BOOTSTRAP_KEY: apiKey, DROVER_WEBHOOK_SECRET: webhookSecret });

    const actors = new Map<string, Actor>();
    const apiUrls: string[] = [];
    undo.push(() =>
      Promise.all([...actors.values()].flatMap(({ postgres, redis }) => [postgres.close(), redis?.close()])),
    );
    undo.push(() => Promise.all([...actors.values()].map((actor) => actor.process.close())));
    const add = async (kind: "api" | "worker", name: string, more: Record<string, string>) => {
      const paths = { postgres: await startProxy(postgres.port), redis: redis && (await startProxy(redis.port)) };
      const supervised = new Supervised({
        name,
        entry: entries[kind],
        folder,
        onLife,
        env: (life) => ({
          DATABASE_URL: through(postgres.url, paths.postgres.port),
          ...(redis && paths.redis && { REDIS_URL: through(redis.url, paths.redis.port) }),
          ...ledger.env(life),
          DROVER_CONFIG: config,
          DROVER_EGRESS_ALLOW: "127.0.0.0/8",
          DROVER_BOOTSTRAP_KEY: apiKey,
          DROVER_WEBHOOK_SECRET: webhookSecret,
          DROVER_WORKSPACES: join(folder, "workspaces"),
          SHUTDOWN_GRACE_SECONDS: "5",
          LEASE_SECONDS: String(options.leaseMs / 1000),
          PARTIAL_EVERY_SECONDS: "0.5",
          LOG_LEVEL: "info",
          ...more,
        }),
      });
      actors.set(name, { process: supervised, ...paths });
    };
    for (let index = 0; index < options.apis; index++) {
      const port = await freePort();
      apiUrls.push(`http://127.0.0.1:${port}`);
      await add("api", `api${index}`, { PORT: String(port), HOST: "127.0.0.1" });
    }
    for (let index = 0; index < options.workers; index++) await add("worker", `worker${index}`, {});
    await Promise.all([...actors.values()].map((actor) => actor.process.ready(AbortSignal.timeout(60_000))));

    const stopProcesses = async () => {
      const close = async (kind: string) =>
        await Promise.all(
          [...actors].flatMap(([name, actor]) => (name.startsWith(kind) ? [actor.process.close()] : [])),
        );
      return [...(await close("worker")), ...(await close("api"))].flatMap((life) => life ?? []);
    };
    return {
      pool,
      databaseUrl: postgres.url,
      redisUrl: redis?.url ?? null,
      postgres,
      redis,
      actors,
      apiUrls,
      folder,
      stopProcesses,
      async close({ keepFolder }) {
        keep = keepFolder;
        await unwind(undo);
      },
    };
  } catch (error) {
    await unwind(undo);
    throw error;
  }
}

/** What was begun last ends first; one that cannot end holds up no other. */
async function unwind(undo: (() => Promise<unknown>)[]): Promise<void> {
  for (const step of undo.splice(0).reverse()) await step().catch((error) => console.error(error));
}
