/** Redis forgets everything while runs are queued and running: all end, and what is running notices nothing. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { createGate } from "../support/model-server.ts";
import { redisCommand, startRedis, type TestRedis } from "../support/redis.ts";
import { queueChaos, tell } from "./redis-world.ts";

const world = queueChaos();
let redis: TestRedis;
const at = () => ({ REDIS_URL: redis.url, DROVER_QUEUE_PREFIX: "{drover}" });
beforeAll(async () => {
  redis = await startRedis();
});
afterAll(() => redis.stop());

test.each([
  ["FLUSHALL", () => redisCommand(redis.url, "FLUSHALL")],
  ["a restart without persistence", () => redis.restart()],
  ["SIGKILL, and a start with an empty memory", () => redis.kill("SIGKILL").then(() => redis.restart())],
])("%s, with 200 runs queued and running", async (name, forget) => {
  const gate = createGate();
  world.threeSteps(gate);
  const workers = await Promise.all([world.worker(at()), world.worker(at())]);
  const queue = await world.open(at());
  const ids = await world.submit(queue, 200);
  await gate.arrived(80);
  await forget();
  const since = performance.now();
  gate.open();
  const runs = await world.ended(ids);
  tell(`${name}: all ended`, since);
  expect(runs.filter((run) => run.epoch !== 1)).toEqual([]);
  expect(world.models.count).toBe(400);
  expect(world.endpoint.calls).toHaveLength(200);
  await world.ringsReach(at(), workers);
});
