/** Everything in BullMQ is lost while every slot is busy, or together with the workers: nothing of it is missed. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Place, postgresPlace, type Server, startRedisServer } from "../conformance/queue-backends.ts";
import { createGate } from "../support/model-server.ts";
import { queueChaos, tell } from "./redis-world.ts";
import { workerIdOf } from "./world.ts";

const world = queueChaos();
let server: Server;
beforeAll(async () => {
  server = await startRedisServer(false);
});
afterAll(() => server.stop());

const environment = (place: Place) => ({
  REDIS_URL: place.config.REDIS_URL ?? "",
  DROVER_QUEUE_PREFIX: place.config.DROVER_QUEUE_PREFIX,
});
const places: [string, () => Place | Promise<Place>][] = [
  ["Redis", () => server.place()],
  ["Postgres", () => postgresPlace(world.bench.url)],
];

test.each(places)("on %s, under full load: slots that come free take what is next", async (name, open) => {
  const place = await open();
  const at = environment(place);
  const gate = createGate();
  world.threeSteps(gate);
  await world.worker(at, { WORKER_CONCURRENCY: "10" });
  const queue = await world.open(at);
  const running = await world.submit(queue, 10);
  await gate.arrived(10);
  const queued = await world.submit(queue, 40);
  await place.flush();
  const since = performance.now();
  gate.open();
  const runs = await world.ended([...running, ...queued]);
  tell(`${name}, all ended after the slots came free`, since);
  expect(runs.filter((run) => run.epoch !== 1 || run.wake !== 1)).toEqual([]);
  expect(world.models.count).toBe(100);
});

test.each(places)("on %s, with runs in workers that are killed: each run goes on where it was", async (name, open) => {
  const place = await open();
  const at = environment(place);
  const gate = createGate();
  world.threeSteps(gate);
  const slots = { WORKER_CONCURRENCY: "20", LEASE_SECONDS: "2" };
  const victims = await Promise.all([world.worker(at, slots), world.worker(at, slots)]);
  const queue = await world.open(at);
  const ids = await world.submit(queue, 60);
  await gate.arrived(40);
  const heirs = await Promise.all([world.worker(at, slots), world.worker(at, slots)]);
  await gate.arrived(60);
  await Promise.all(victims.map((victim) => victim.kill("SIGKILL")));
  await place.flush();
  const since = performance.now();
  gate.open();
  const runs = await world.ended(ids);
  tell(`${name}, all ended after the kill`, since);
  const heirIds = heirs.map(workerIdOf);
  const rescued = runs.filter((run) => run.rescues > 0).length;
  expect(rescued).toBeGreaterThanOrEqual(40);
  for (const run of runs) {
    expect(run.epoch).toBe(1 + run.rescues);
    expect(heirIds).toContain(run.workers.at(-1));
  }
  // Their second model call was under way when their workers died. Nothing else was asked for twice.
  const twice = world.askedAgain();
  expect(twice.length).toBeLessThanOrEqual(rescued);
  expect(twice.every((step) => step.endsWith(" 1"))).toBe(true);
  expect(world.endpoint.calls).toHaveLength(60);
});
