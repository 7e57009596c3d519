/** The wake queue when its server or a worker goes away and comes back: one suite for every backend. */
import { migrateQueue, openQueue, QueueAwayError, queueConfig } from "@drover/queue";
import { describe, expect, onTestFinished, test } from "vitest";
import { backends, type Place, postgresPlace, proxiedBackends } from "../conformance/queue-backends.ts";
import { answers, listener, logger, patience, quick, useServer } from "../conformance/queue-suite.ts";
import { createEmptyDatabase } from "../support/database.ts";
import { freePort } from "../support/ports.ts";
import { spawnNode } from "../support/process.ts";
import { startProxy } from "../support/proxy.ts";
import { startRedis } from "../support/redis.ts";

/** A bell whose ring is still being answered rings for nobody else. */
const idle = (place: Place) => expect.poll(() => place.jobs(), patience).toEqual([]);

describe.each(backends)("wake queue on $name in trouble", ({ start }) => {
  const { server, fresh } = useServer(start);

  test("comes back by itself after a restart of the server, with what rang, and leaves nothing behind", {
    timeout: 90_000,
  }, async () => {
    const { place, queue } = await fresh();
    await queue.wake(10_000);
    await server().restart();
    const { hear, heard } = listener();
    queue.consume({ hear, ...quick });
    await heard(8);
    await server().restart();
    await answers(() => queue.wake(1));
    await heard(9);
    await expect.poll(() => place.jobs().catch(() => undefined), patience).toEqual([]);
  });

  test("rings go on over three crashes of the server", { timeout: 120_000 }, async () => {
    const { place, queue } = await fresh();
    const { counted, hear, heard } = listener();
    queue.consume({ hear, ...quick });
    for (let crash = 0; crash < 3; crash++) {
      const before = counted.heard;
      await expect
        .poll(async () => {
          await queue.wake(10_000).catch(() => {});
          return counted.heard - before;
        }, patience)
        .toBeGreaterThan(100);
      await server().crash();
    }
    const before = counted.heard;
    await answers(() => queue.wake(10_000));
    await heard(before + 1);
    const ended = { timeout: 60_000, interval: 100 };
    await expect.poll(() => place.jobs().catch(() => undefined), ended).toEqual([]);
  });

  test("comes back by itself when the server was away while it idled", { timeout: 90_000 }, async () => {
    const { place, queue } = await fresh();
    const { hear, heard } = listener();
    queue.consume({ hear });
    await queue.wake(1);
    await heard(1);
    await idle(place);
    await server().halt();
    await expect(queue.check()).rejects.toBeInstanceOf(QueueAwayError);
    await server().restart();
    await answers(() => queue.wake(1));
    await heard(2);
  });

  test("fails a ring fast while the server is down, and keeps nothing of it", async () => {
    const { place, queue } = await fresh();
    const { counted, hear, heard } = listener();
    queue.consume({ hear });
    await server().halt();
    // Each on its own, and all would take 50 s, if one waited for another's second.
    for (let times = 0; times < 50; times++) await expect(queue.wake(1)).rejects.toBeInstanceOf(QueueAwayError);
    await expect(queue.check()).rejects.toBeInstanceOf(QueueAwayError);
    await expect(queue.isPaused()).rejects.toBeInstanceOf(QueueAwayError);
    expect(queue.counters.wakesLost).toBe(50);
    await server().restart();
    await answers(() => queue.check());
    expect(await place.jobs()).toEqual([]);
    await answers(() => queue.wake(1));
    await heard(1);
    expect(counted.heard).toBe(1);
  });

  test("says so while the server answers and takes no write, and goes on afterwards", async () => {
    const { place, queue } = await fresh();
    const { counted, hear, heard } = listener();
    queue.consume({ hear });
    await queue.wake(1);
    await heard(1);
    await idle(place);
    await server().refuseWrites(true);
    for (const ask of [() => queue.wake(1), () => queue.check()]) {
      // By asking, not from memory: who has just failed does not ask again for a moment.
      const refusal = () =>
        ask().then(
          () => undefined,
          (error: QueueAwayError) => error.name + (error.cause ? " asked" : ""),
        );
      await expect.poll(refusal, patience).toBe("QueueAwayError asked");
    }
    await server().refuseWrites(false);
    const before = counted.heard;
    await answers(() => queue.wake(1));
    await heard(before + 1);
    await expect.poll(() => place.jobs().catch(() => undefined), patience).toEqual([]);
  });

  test("closes while the server is away", async () => {
    const { queue } = await fresh();
    const { hear, heard } = listener();
    queue.consume({ hear });
    await queue.wake(1);
    await heard(1);
    await server().halt();
    await queue.close();
    await expect(queue.wake(1)).rejects.toBeInstanceOf(QueueAwayError);
    await server().restart();
  });

  test("a ring that a worker was killed with is heard by another, and its bell rings again", async () => {
    const { place, queue } = await fresh();
    await queue.wake(1);
    const [taken] = await place.jobs();
    const victim = spawnNode(new URL("./queue-victim.ts", import.meta.url), { env: place.env });
    await victim.waitForLine("took it");
    // It is out of order meanwhile, and the seven others are not.
    await queue.wake(10_000);
    expect((await place.jobs()).map(({ id }) => id)).toContain(taken!.id);
    await victim.kill("SIGKILL");
    const { counted, hear, heard } = listener();
    queue.consume({ hear, ...quick });
    await heard(8);
    expect(queue.counters.stalled).toBe(1);
    await expect.poll(() => place.jobs(), patience).toEqual([]);
    await queue.wake(10_000);
    await heard(16);
    expect(counted.heard).toBe(16);
  });
});

describe.each(proxiedBackends)("wake queue on $name over a bad network", ({ start }) => {
  const at = useServer(start);

  test("fails a ring fast when the network swallows it, and recovers", async () => {
    const place = await at.server().place();
    const proxy = await startProxy(at.server().port);
    onTestFinished(() => proxy.close());
    const queue = await at.openAt(place.through(proxy.port));
    await queue.wake(1);
    proxy.blackhole(true);
    // One second for the first, and not 50 for all: who has just waited in vain does not make the next one wait.
    for (let times = 0; times < 50; times++) {
      await expect(queue.wake(1)).rejects.toBeInstanceOf(QueueAwayError);
    }
    await expect(queue.check()).rejects.toBeInstanceOf(QueueAwayError);
    proxy.blackhole(false);
    await answers(() => queue.wake(1));
    proxy.cut();
    await answers(() => queue.wake(1));
  });

  test("notices a connection that was dropped without a word", { timeout: 90_000 }, async () => {
    const place = await at.server().place();
    const proxy = await startProxy(at.server().port);
    onTestFinished(() => proxy.close());
    const near = await at.openAt(place);
    const far = await at.openAt(place.through(proxy.port));
    const { counted, hear, heard } = listener();
    far.consume({ hear });
    await near.wake(1);
    await heard(1);
    await idle(place);
    proxy.forget();
    await near.wake(1);
    await expect.poll(() => counted.heard, { timeout: 60_000, interval: 100 }).toBe(2);
  });
});

test("a ring that was taken on Postgres, and whose answer got lost, is handed out again", {
  timeout: 90_000,
}, async () => {
  const { url, drop } = await createEmptyDatabase();
  onTestFinished(drop);
  await migrateQueue(url);
  const place = postgresPlace(url);
  const proxy = await startProxy(Number(new URL(url).port));
  onTestFinished(() => proxy.close());
  const through = new URL(url);
  through.host = `127.0.0.1:${proxy.port}`;
  const [near, far] = await Promise.all(
    [url, through.href].map((at) => openQueue(queueConfig.parse({}), { logger, postgresUrl: at })),
  );
  onTestFinished(async () => void (await Promise.all([near!.close(), far!.close()])));
  const { counted, hear, heard } = listener();
  far!.consume({ hear });
  await near!.wake(1);
  await heard(1);
  await idle(place);
  const lost = proxy.loseAnswerTo("move_to_active");
  await near!.wake(1);
  await lost;
  expect(await place.jobs()).toHaveLength(1);
  expect(counted.heard).toBe(1);
  // Its lock, and the two looks that find it without one.
  await expect.poll(() => counted.heard, { timeout: 60_000, interval: 100 }).toBe(2);
});

describe("starting", () => {
  test("on Redis that is away: the queue opens, and its consumer begins when Redis comes", async () => {
    const port = await freePort();
    const config = queueConfig.parse({ REDIS_URL: `redis://127.0.0.1:${port}` });
    const queue = await openQueue(config, { logger, postgresUrl: "postgres://127.0.0.1:1/none" });
    onTestFinished(() => queue.close());
    const { hear, heard } = listener();
    queue.consume({ hear });
    await expect(queue.wake(1)).rejects.toBeInstanceOf(QueueAwayError);
    const redis = await startRedis({ port });
    onTestFinished(() => redis.stop());
    await answers(() => queue.wake(1));
    await heard(1);
  });

  test("closes before Redis ever came", async () => {
    const config = queueConfig.parse({ REDIS_URL: `redis://127.0.0.1:${await freePort()}` });
    const queue = await openQueue(config, { logger, postgresUrl: "postgres://127.0.0.1:1/none" });
    queue.consume({ hear: () => true });
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
    await queue.check();
    await queue.close();
  });

  test("on Postgres that is away: says so", async () => {
    const postgresUrl = `postgres://127.0.0.1:${await freePort()}/none`;
    await expect(openQueue(queueConfig.parse({}), { logger, postgresUrl })).rejects.toThrow();
  });
});
