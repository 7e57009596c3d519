/**
 * Redis is away, silent, or takes no write while queries are submitted over HTTP: each is accepted, and runs while the outage lasts,
 * because workers with a free slot look into Postgres. Afterwards wake-ups carry runs again.
 */
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { freePort } from "../support/ports.ts";
import { type FaultProxy, startProxy } from "../support/proxy.ts";
import { redisCommand, startRedis, type TestRedis } from "../support/redis.ts";
import { full, queueChaos, tell } from "./redis-world.ts";

const world = queueChaos();
let redis: TestRedis;
let proxy: FaultProxy;
const at = () => ({ REDIS_URL: `redis://127.0.0.1:${proxy.port}`, DROVER_QUEUE_PREFIX: "{drover}" });
const command = (...words: (string | number)[]) => redisCommand(redis.url, ...words);
beforeAll(async () => {
  redis = await startRedis();
  proxy = await startProxy(redis.port);
});
afterAll(async () => {
  await proxy.close();
  await redis.stop();
});

/** Error replies of this kind since the last restart. */
async function errors(code: string): Promise<number> {
  const stats = (await command("INFO", "errorstats")) as string;
  return Number(new RegExp(`errorstat_${code}:count=(\\d+)`).exec(stats)?.[1] ?? 0);
}

interface Outage {
  name: string;
  begin(): unknown;
  end(): unknown;
  seconds: number;
  /** The error Redis answers every write with, where it answers. */
  refusal?: string;
}

const outages: Outage[] = [
  { name: "killed", begin: () => redis.kill("SIGKILL"), end: () => redis.restart(), seconds: 6 },
  { name: "black-holed", begin: () => proxy.blackhole(true), end: () => proxy.blackhole(false), seconds: 6 },
  {
    name: "read-only, the replica of a master that is gone",
    begin: async () => command("REPLICAOF", "127.0.0.1", await freePort()),
    end: () => command("REPLICAOF", "NO", "ONE"),
    seconds: 2,
    refusal: "READONLY",
  },
  {
    name: "without the replicas it must write to",
    begin: () => command("CONFIG", "SET", "min-replicas-to-write", 1),
    end: () => command("CONFIG", "SET", "min-replicas-to-write", 0),
    seconds: 2,
    refusal: "NOREPLICAS",
  },
  {
    name: "out of memory",
    begin: () => command("CONFIG", "SET", "maxmemory", 1),
    end: () => command("CONFIG", "SET", "maxmemory", 0),
    seconds: 2,
    refusal: "OOM",
  },
];

test.each(outages)(
  "Redis $name while queries are submitted",
  { timeout: full ? 240_000 : 120_000 },
  async ({ name, begin, end, seconds, refusal }) => {
    world.threeSteps();
    const [api, ...workers] = await Promise.all([world.api(at()), world.worker(at()), world.worker(at())]);
    await world.ringsReach(at(), workers);
    expect(await api.ready()).toEqual({ code: 200, degraded: [] });
    const before = refusal ? await errors(refusal) : 0;
    const asked = world.models.count;

    const ids = await api.submit(20);
    await begin();
    const began = performance.now();
    try {
      const lastsMs = seconds * 1000 * (full ? 10 : 1);
      let slowest = 0;
      while (performance.now() - began < lastsMs) {
        const sent = performance.now();
        ids.push(...(await api.submit(2)));
        slowest = Math.max(slowest, performance.now() - sent);
        await delay(50);
      }
      const submitted = performance.now();
      const runs = await world.ended(ids);
      tell(`Redis ${name}: ${ids.length} accepted, two in ${Math.round(slowest)} ms at worst`);
      tell(`Redis ${name}: all ended after the last was accepted`, submitted);
      expect(runs.filter((run) => run.epoch !== 1)).toEqual([]);
      expect(world.models.count - asked).toBe(2 * ids.length);
      // By now the API has no failed wake-up in mind any more: it finds out by asking.
      expect(await api.ready()).toEqual({
        code: 200,
        degraded: [expect.stringContaining("the queue does not answer")],
      });
      if (refusal) {
        const refused = (await errors(refusal)) - before;
        const perSecond = (refused / (performance.now() - began)) * 1000;
        tell(`Redis ${name}: ${Math.round(perSecond)} refused writes per second`);
        // Two workers and an API ask a few times a second each, not thousands of times.
        expect(perSecond).toBeLessThan(200);
      }
    } finally {
      await end();
    }
    await world.ringsReach(at(), workers);
    await expect.poll(() => api.ready()).toEqual({ code: 200, degraded: [] });
  },
);
