/** All workers are killed at once with thousands of runs queued, and new ones start: none is missed, and the new ones stay small. */
import { readFile } from "node:fs/promises";
import { expect, test } from "vitest";
import type { SpawnedNode } from "../support/process.ts";
import { redisUrl } from "../support/redis.ts";
import { full, queueChaos, tell } from "./redis-world.ts";

const world = queueChaos();
const count = full ? 10_000 : 2000;
const slots = 50;

/** Resident memory of a process, MB. */
async function residentMb({ pid }: SpawnedNode): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, "utf8");
  return Number(/VmRSS:\s+(\d+)/.exec(status)![1]) / 1024;
}

test("all workers killed and started anew", { timeout: full ? 900_000 : 240_000 }, async () => {
  const at = { REDIS_URL: redisUrl(), DROVER_QUEUE_PREFIX: `{${new URL(world.bench.url).pathname.slice(1)}}` };
  const { pool } = world.bench;
  // Every tenth run has three steps, the others one.
  const isLong = (index: number) => index % 10 === 0;
  world.models.script(({ query, turn }) =>
    turn === 0 && isLong(Number(query.slice(1)))
      ? { toolCalls: [{ name: "pure_call", input: { note: query } }] }
      : "done",
  );
  const queue = await world.open(at);
  const ids: string[] = [];
  while (ids.length < count) ids.push(...(await world.submit(queue, 500)));
  const three = () =>
    Promise.all([1, 2, 3].map(() => world.worker(at, { WORKER_CONCURRENCY: String(slots), LEASE_SECONDS: "2" })));
  const victims = await three();
  await world.models.called(count / 4);
  await Promise.all(victims.map((victim) => victim.kill("SIGKILL")));
  const callsBefore = world.models.calls.length;
  const { rows: finished } = await pool.query<{ step: string }>(
    `SELECT q.data->>'query' || ' ' || ((e.data->>'iteration')::int - 1) AS step
     FROM run_events e JOIN run_events q ON q.run_id = e.run_id AND q.seq = 1 WHERE e.type = 'model.call'`,
  );

  tell(`killed with ${finished.length} model calls recorded`);
  const since = performance.now();
  const workers = await three();
  await world.models.called(callsBefore + count / 5);
  const early = await Promise.all(workers.map(residentMb));
  const runs = await world.ended(ids, {
    steps: (index) => (isLong(index) ? 3 : 1),
    timeout: full ? 600_000 : 180_000,
  });
  const late = await Promise.all(workers.map(residentMb));
  tell(`${count} runs, all ended after the kill`, since);
  tell(`resident MB of the new workers: ${early.map(Math.round)} -> ${late.map(Math.round)}`);

  const rescues = runs.reduce((sum, run) => sum + run.rescues, 0);
  expect(rescues).toBeGreaterThan(0);
  expect(rescues).toBeLessThanOrEqual(3 * slots);
  for (const run of runs) expect(run.epoch).toBe(1 + run.rescues);
  expect(runs.filter((run) => run.rescues === 0 && run.wake !== 1)).toEqual([]);

  const askedAfter = new Set(world.models.calls.slice(callsBefore).map(({ query, turn }) => `${query} ${turn}`));
  expect(finished.filter(({ step }) => askedAfter.has(step))).toEqual([]);
  expect(world.models.count).toBeLessThanOrEqual(1.1 * count + rescues);
  for (const [index, mb] of late.entries()) expect(mb).toBeLessThan(early[index]! * 1.5 + 50);
});
