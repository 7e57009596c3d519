/** A ring for nothing does nothing but a look, whatever states runs are in. */
import { cancelRun } from "@drover/runs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Place, postgresPlace, type Server, startRedisServer } from "../conformance/queue-backends.ts";
import { input } from "../runs/bench.ts";
import { createGate } from "../support/model-server.ts";
import { queueChaos } from "./redis-world.ts";
import { workerIdOf } from "./world.ts";

const world = queueChaos();
let server: Server;
beforeAll(async () => {
  server = await startRedisServer(false);
});
afterAll(() => server.stop());

/** Everything that an owner or a rescuer could have changed. */
async function everything() {
  const { rows: runs } = await world.bench.pool.query("SELECT * FROM runs ORDER BY id");
  const { rows: events } = await world.bench.pool.query(
    "SELECT run_id, seq, type FROM run_events ORDER BY run_id, seq",
  );
  return { runs, events, asked: world.models.count, called: world.endpoint.calls.length };
}

const places: [string, () => Place | Promise<Place>][] = [
  ["Redis", () => server.place()],
  ["Postgres", () => postgresPlace(world.bench.url)],
];

test.each(places)("on %s", async (_name, open) => {
  const place = await open();
  const at = { REDIS_URL: place.config.REDIS_URL ?? "", DROVER_QUEUE_PREFIX: place.config.DROVER_QUEUE_PREFIX };
  const gate = createGate();
  world.models.script(({ query, turn }) => {
    if (query === "ask a person") return { toolCalls: [{ name: "send_call", input: { note: "may I?" } }] };
    if (turn === 0) return { toolCalls: [{ name: "pure_call", input: { note: query } }] };
    return query === "hold" ? { text: "done", gate } : "done";
  });
  const queue = await world.open(at);
  const submit = async (query: string, delayMs = 0) => {
    const id = await world.bench.submit({ input: input({ query }), delayMs });
    if (delayMs === 0) await queue.wake(1);
    return id;
  };
  // One slot each: the first holds the running run, and what comes late goes to the second.
  const owner = await world.worker(at, { WORKER_CONCURRENCY: "1" });
  const ended = await submit("end");
  await world.ended([ended]);
  const waiting = await submit("ask a person");
  await world.waiting(waiting);
  await submit("later", 3_600_000);
  const cancelled = await submit("never", 3_600_000);
  await cancelRun(world.bench.pool, "default", cancelled, "key_person");
  const running = await submit("hold");
  await gate.arrived(1);
  const other = await world.worker(at, { WORKER_CONCURRENCY: "1" });

  const before = await everything();
  await world.ringsReach(at, [other], { withRun: false });
  for (let times = 0; times < 20; times++) await queue.wake(1000);
  await expect.poll(() => place.jobs(), { timeout: 20_000 }).toEqual([]);
  expect(await everything()).toEqual(before);

  gate.open();
  const [run] = await world.ended([running]);
  expect(run).toMatchObject({ epoch: 1, wake: 1, workers: [workerIdOf(owner)] });
  expect(world.models.count).toBe(before.asked);

  // The owner, who was full, hears rings again.
  await other.kill("SIGTERM");
  const next = await submit("after all");
  expect((await world.ended([next]))[0]).toMatchObject({ epoch: 1, workers: run!.workers });
});
