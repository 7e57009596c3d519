/**
 * Starts the two servers every test run needs, one Postgres and one Redis, and stops them at its end. Tests get their
 * addresses through `inject` and share the servers, never a database: see `database.ts`.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { migrateQueue } from "@drover/queue";
import { migrate, startEmbeddedPostgres } from "@drover/storage";
import type { TestProject } from "vitest/node";
import { adminQuery, createEmptyDatabase, template } from "./database.ts";
import { startRedis } from "./redis.ts";

declare module "vitest" {
  interface ProvidedContext {
    /** Superuser URL of the run's Postgres server. */
    postgresUrl: string;
    /** The run's Redis server. */
    redisUrl: string;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  if (Number(process.versions.node.split(".")[0]) < 24) {
    throw new Error(`The tests need Node 24, this is ${process.version}. Run them with "npm test" or "npx vitest".`);
  }
  // The processes that tests start, and there are hundreds, need not compile again what the last one has.
  process.env.NODE_COMPILE_CACHE ??= new URL("../../node_modules/.cache/compiled", import.meta.url).pathname;
  const undo: (() => Promise<void>)[] = [];
  const teardown = async () => {
    for (const step of undo.reverse()) await step();
  };
  try {
    const folder = await mkdtemp(join(tmpdir(), "drover-test-"));
    undo.push(() => rm(folder, { recursive: true, force: true }));

    const postgres = await startEmbeddedPostgres({
      dataDir: join(folder, "postgres"),
      settings: { fsync: "off", synchronous_commit: "off", full_page_writes: "off", max_connections: 300 },
    });
    undo.push(() => postgres.stop());
    const empty = await createEmptyDatabase({ server: postgres.url, name: template });
    await migrate(empty.url);
    await migrateQueue(empty.url);
    await adminQuery(postgres.url, `ALTER DATABASE ${template} IS_TEMPLATE true`);

    let redisUrl = process.env.REDIS_URL;
    if (!redisUrl) {
      const redis = await startRedis({ dir: join(folder, "redis") });
      undo.push(() => redis.stop());
      redisUrl = redis.url;
    }
    project.provide("postgresUrl", postgres.url);
    project.provide("redisUrl", redisUrl);
  } catch (error) {
    await teardown();
    throw error;
  }
  return teardown;
}
