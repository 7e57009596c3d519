/** The wake queue when its server or a worker goes away and comes back: one suite for every backend. */

import { setTimeout as delay } from "node:timers/promises";
import { migrateQueue, openQueue, QueueAwayError, queueConfig } from "@drover/queue";
import { describe, expect, onTestFinished, test } from "vitest";
import { createEmptyDatabase } from "../support/database.ts";
import { freePort } from "../support/ports.ts";
import { spawnNode } from "../support/process.ts";
import { startProxy } from "../support/proxy.ts";
import { startRedis } from "../support/redis.ts";
import { backends, proxiedBackends } from "./queue-backends.ts";
import { answers, gate, logger, patience, quick, recorder, run, useServer } from "./queue-suite.ts";

describe.each(backends)("wake queue on $name in trouble", ({ start }) => {
  const { server, fresh } = useServer(start);

  test("comes back by itself after a restart of the server, with everything that waited", {
    timeout: 90_000,
  }, async () => {
    const { queue } = await fresh();
    const items = Array.from({ length: 500 }, () => run(1));
    await queue.wake(items);
    const { open: goOn, opened } = gate();
    const { seen, handle, all } = recorder(async () => {
      if (seen.length > 100) await opened;
      return "done";
    });
    queue.consume({ concurrency: 10, handle, ...quick });
    await expect.poll(() => seen.length, patience).toBeGreaterThan(100);
    await server().restart();
    goOn();
    await all(items);
    await expect.poll(() => queue.depth().catch(() => undefined), patience).toMatchObject({ waiting: 0, active: 0 });

    const later = run();
    await answers(() => queue.wake([later]));
    await all([later]);
  });

  test("handles everything, and fails nothing, over three crashes of the server", { timeout: 120_000 }, async () => {
    const { queue } = await fresh();
    const items = Array.from({ length: 4000 }, () => run(1));
    await queue.wake(items);
    const { seen, handle } = recorder(() => delay(10, "done" as const));
    queue.consume({ concurrency: 50, handle, ...quick });
    for (const handled of [500, 1500, 2500]) {
      await expect.poll(() => seen.length, patience).toBeGreaterThan(handled);
      await server().crash();
    }
    const ended = { timeout: 60_000, interval: 100 };
    await expect.poll(() => new Set(seen).size, ended).toBe(4000);
    await expect
      .poll(() => queue.depth().catch(() => undefined), ended)
      .toMatchObject({ waiting: 0, active: 0, failed: 0 });
  });

  test("comes back by itself when the server was away while it idled", { timeout: 90_000 }, async () => {
    const { queue } = await fresh();
    const { handle, all } = recorder();
    queue.consume({ concurrency: 2, handle });
    const before = run();
    await queue.wake([before]);
    await all([before]);
    await server().halt();
    await expect(queue.depth()).rejects.toBeInstanceOf(QueueAwayError);
    await server().restart();
    const after = run();
    await answers(() => queue.wake([after]));
    await all([after]);
  });

  test("fails a wake-up fast while the server is down, and keeps nothing of it", async () => {
    const { queue } = await fresh();
    const { seen, handle, all } = recorder();
    queue.consume({ concurrency: 1, handle });
    await server().halt();
    const lost = Array.from({ length: 50 }, () => run());
    // Each on its own, and all would take 50 s, if one waited for another's second.
    for (const item of lost) await expect(queue.wake([item])).rejects.toBeInstanceOf(QueueAwayError);
    await expect(queue.known(lost)).rejects.toBeInstanceOf(QueueAwayError);
    expect(queue.counters.wakesLost).toBe(50);
    await server().restart();
    const after = run();
    await answers(() => queue.wake([after]));
    await all([after]);
    expect(seen).toEqual([after.runId]);
  });

  test("says so while the server answers and takes no write, and goes on afterwards", async () => {
    const { queue } = await fresh();
    const { seen, handle, all } = recorder();
    queue.consume({ concurrency: 2, handle });
    const before = run();
    await queue.wake([before]);
    await all([before]);
    await server().refuseWrites(true);
    for (const ask of [() => queue.wake([run()]), () => queue.known([before]), () => queue.depth()]) {
      // By asking, not from memory: who has just failed does not ask again for a moment.
      const refusal = () =>
        ask().then(
          () => undefined,
          (error: QueueAwayError) => error.name + (error.cause ? " asked" : ""),
        );
      await expect.poll(refusal, patience).toBe("QueueAwayError asked");
    }
    await server().refuseWrites(false);
    const after = run();
    await answers(() => queue.wake([after]));
    await all([after]);
    await expect.poll(() => queue.depth().catch(() => undefined), patience).toMatchObject({ waiting: 0, active: 0 });
    expect(seen).toHaveLength(new Set(seen).size);
  });

  test("a handler that returns while the server is away is done when it is back", { timeout: 90_000 }, async () => {
    const { queue } = await fresh();
    const { open: finish, opened } = gate();
    const { seen, handle, all } = recorder(async () => {
      await opened;
      return "done";
    });
    const item = run();
    const consumer = queue.consume({ concurrency: 2, handle });
    await queue.wake([item]);
    await all([item]);
    await server().halt();
    finish();
    await expect.poll(() => consumer.running, patience).toBe(0);
    await server().restart();
    // Well before its lock runs out, which would hand it out again.
    await expect
      .poll(() => queue.depth().catch(() => undefined), patience)
      .toMatchObject({ waiting: 0, active: 0, completed: 1 });
    expect(seen).toHaveLength(1);
  });

  test("closes while the server is away", async () => {
    const { queue } = await fresh();
    const { open: finish, opened } = gate();
    const { handle, all } = recorder(async () => {
      await opened;
      return "done";
    });
    const item = run();
    queue.consume({ concurrency: 2, handle });
    await queue.wake([item]);
    await all([item]);
    await server().halt();
    const closing = queue.close();
    finish();
    await closing;
    await expect(queue.wake([item])).rejects.toBeInstanceOf(QueueAwayError);
    await server().restart();
  });

  test("hands out the job of a worker that was killed", async () => {
    const { place, queue } = await fresh();
    const item = run();
    await queue.wake([item]);
    const victim = spawnNode(new URL("./queue-victim.ts", import.meta.url), { env: place.env });
    await victim.waitForLine(`took ${item.runId}`);
    await victim.kill("SIGKILL");
    const { handle, all } = recorder();
    queue.consume({ concurrency: 1, handle, ...quick });
    await all([item]);
  });
});

describe.each(proxiedBackends)("wake queue on $name over a bad network", ({ start }) => {
  const at = useServer(start);

  test("fails a wake-up fast when the network swallows it, and recovers", async () => {
    const place = await at.server().place();
    const proxy = await startProxy(at.server().port);
    onTestFinished(() => proxy.close());
    const queue = await at.openAt(place.through(proxy.port));
    await queue.wake([run()]);
    proxy.blackhole(true);
    // One second for the first, and not 50 for all: who has just waited in vain does not make the next one wait.
    for (let times = 0; times < 50; times++) {
      await expect(queue.wake([run()])).rejects.toBeInstanceOf(QueueAwayError);
    }
    await expect(queue.known([run()])).rejects.toBeInstanceOf(QueueAwayError);
    proxy.blackhole(false);
    await answers(() => queue.wake([run()]));
    proxy.cut();
    await answers(() => queue.wake([run()]));
  });

  test("notices a connection that was dropped without a word", { timeout: 90_000 }, async () => {
    const place = await at.server().place();
    const proxy = await startProxy(at.server().port);
    onTestFinished(() => proxy.close());
    const near = await at.openAt(place);
    const far = await at.openAt(place.through(proxy.port));
    const { seen, handle, all } = recorder();
    far.consume({ concurrency: 1, handle });
    const before = run();
    await near.wake([before]);
    await all([before]);
    proxy.forget();
    const after = run();
    await near.wake([after]);
    await expect.poll(() => seen.includes(after.runId), { timeout: 60_000, interval: 100 }).toBe(true);
  });
});

describe("starting", () => {
  test("on Redis that is away: the queue opens, and its consumer begins when Redis comes", async () => {
    const port = await freePort();
    const config = queueConfig.parse({ REDIS_URL: `redis://127.0.0.1:${port}` });
    const queue = await openQueue(config, { logger, postgresUrl: "postgres://127.0.0.1:1/none" });
    onTestFinished(() => queue.close());
    const { handle, all } = recorder();
    queue.consume({ concurrency: 1, handle });
    await expect(queue.wake([run()])).rejects.toBeInstanceOf(QueueAwayError);
    const redis = await startRedis({ port });
    onTestFinished(() => redis.stop());
    const item = run();
    await answers(() => queue.wake([item]));
    await all([item]);
  });

  test("closes before Redis ever came", async () => {
    const config = queueConfig.parse({ REDIS_URL: `redis://127.0.0.1:${await freePort()}` });
    const queue = await openQueue(config, { logger, postgresUrl: "postgres://127.0.0.1:1/none" });
    queue.consume({ concurrency: 1, handle: async () => "done" });
    await queue.close();
  });

  test("on Postgres: needs its tables, which many may make at once", async () => {
    const { url, drop } = await createEmptyDatabase();
    onTestFinished(drop);
    const config = queueConfig.parse({});
    await expect(openQueue(config, { logger, postgresUrl: url })).rejects.toThrow(/not initialized/);
    await Promise.all(Array.from({ length: 5 }, () => migrateQueue(url)));
    await migrateQueue(url);
    const queue = await openQueue(config, { logger, postgresUrl: url });
    expect(await queue.depth()).toMatchObject({ waiting: 0 });
    await queue.close();
  });

  test("on Postgres that is away: says so", async () => {
    const postgresUrl = `postgres://127.0.0.1:${await freePort()}/none`;
    await expect(openQueue(queueConfig.parse({}), { logger, postgresUrl })).rejects.toThrow();
  });
});
