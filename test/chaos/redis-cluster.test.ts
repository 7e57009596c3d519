/**
 * A master of Redis dies and another takes over, or nobody does until it is back: everything accepted ends, and no worker is left behind
 * that wake-ups do not reach any more.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { createGate } from "../support/model-server.ts";
import type { TestRedis } from "../support/redis.ts";
import { startRedisCluster, type TestCluster } from "../support/redis-cluster.ts";
import { queueChaos, tell } from "./redis-world.ts";

const world = queueChaos();

describe.each([
  { what: "without replicas", replicas: false },
  { what: "with a replica each", replicas: true },
])("a Redis Cluster of three masters $what", ({ replicas }) => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await startRedisCluster({ replicas });
  });
  afterAll(() => cluster.stop());

  /** A prefix whose keys live on this master, or on another. */
  async function prefixOn(master: TestRedis, wanted: boolean): Promise<string> {
    for (let number = 0; ; number++) {
      const prefix = `{drover${number}}`;
      if (((await cluster.masterOf(prefix)) === master) === wanted) return prefix;
    }
  }

  test.each([
    { what: "that has the queue", own: true },
    { what: "that has not", own: false },
  ])("the master $what is killed", async ({ what, own }) => {
    const victim = (await cluster.masterOf("{any}"))!;
    const at = { REDIS_URL: cluster.url, DROVER_QUEUE_PREFIX: await prefixOn(victim, own) };
    const home = async () => (await cluster.masterOf(at.DROVER_QUEUE_PREFIX))?.url ?? victim.url;
    const gate = createGate();
    world.threeSteps(gate);
    const [api, ...workers] = await Promise.all([world.api(at), world.worker(at), world.worker(at)]);
    const queue = await world.open(at);
    const ids = await world.submit(queue, 150);
    await gate.arrived(80);
    await victim.kill("SIGKILL");
    const since = performance.now();
    gate.open();
    ids.push(...(await api.submit(50)));
    const runs = await world.ended(ids);
    tell(`the master ${what}, replicas ${replicas}: all ended`, since);
    expect(runs.filter((run) => run.epoch !== 1)).toEqual([]);
    expect(world.models.count).toBe(400);

    if (replicas && own) await expect.poll(home, { timeout: 20_000 }).not.toBe(victim.url);
    if (!replicas) await victim.restart().then(() => cluster.up());
    const back = performance.now();
    await world.ringsReach(at, workers);
    tell(`the master ${what}, replicas ${replicas}: wake-ups flow`, back);
    if (replicas) await victim.restart().then(() => cluster.up());
  });
});
