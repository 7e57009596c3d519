import fc from "fast-check";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import {
  advanceClock,
  classes,
  moveBases,
  queuePriority,
  readBases,
  tagEach,
  takeTags,
  windowSize,
} from "../../packages/runs/src/fair.ts";
import { claimNext } from "../../packages/runs/src/moves.ts";
import { addTenant, createBench, submission } from "./bench.ts";

let bench: Awaited<ReturnType<typeof createBench>>;
beforeAll(async () => {
  bench = await createBench();
  for (const tenant of ["a", "b", "c"]) await addTenant(bench.pool, tenant);
});
afterEach(async () => {
  await bench.pool.query(
    "UPDATE runs SET status = 'cancelled', finished_at = now(), worker = NULL WHERE finished_at IS NULL",
  );
  await bench.pool.query("UPDATE fair_classes SET started_tag = 0, base = 0");
  await bench.pool.query("DELETE FROM fair_tenants");
});
afterAll(() => bench.close());

const batchOf = (tenant: string, count: number) =>
  bench.submitter.submitBatch({
    tenant,
    items: Array.from({ length: count }, () => submission({ tenant })),
    callbackUrl: null,
    callbackEvents: null,
    metadata: {},
  });

test("with 10,000 runs of one tenant queued, another's first starts before the second of those not yet started", async () => {
  const worker = await bench.addWorker();
  await batchOf("a", 10_000);
  const started = await claimNext(bench.pool, worker, 137, 0);
  expect(new Set(started.map((run) => run.tenant))).toEqual(new Set(["a"]));
  await advanceClock(bench.pool, new Map([[0, started.at(-1)!.tag]]));
  await bench.submit({ tenant: "b" });
  const next = await claimNext(bench.pool, worker, 2, 0);
  expect(next.map((run) => run.tenant)).toContain("b");
});

test("tenants with a backlog take turns, whoever filled the queue first", async () => {
  const worker = await bench.addWorker();
  await batchOf("a", 300);
  await batchOf("b", 100);
  await batchOf("c", 100);
  const tenants = (await claimNext(bench.pool, worker, 30, 0)).map((run) => run.tenant);
  expect(Object.groupBy(tenants, (tenant) => tenant)).toMatchObject({
    a: { length: 10 },
    b: { length: 10 },
    c: { length: 10 },
  });
});

test("after a spike, under sustained load, the order within a tenant stays what it was", async () => {
  const worker = await bench.addWorker();
  const submitted: string[] = [];
  const push = async (count: number) => {
    for (let index = 0; index < count; index++) submitted.push(await bench.submit({ tenant: "a" }));
  };
  await push(60);
  const order: string[] = [];
  // Full load: as many come as go, the clock always late by one round.
  for (let round = 0; round < 20; round++) {
    const claimed = await claimNext(bench.pool, worker, 5, 0);
    await push(5);
    await advanceClock(bench.pool, new Map([[0, claimed.at(-1)!.tag]]));
    order.push(...claimed.map((run) => run.id));
  }
  expect(order).toEqual(submitted.slice(0, order.length));
});

test("a delayed run that was never started gets its place when it is due", async () => {
  const [block] = await takeTags(bench.pool, [{ tenant: "a", priority: 0, count: 1 }]);
  await advanceClock(bench.pool, new Map([[0, 5000]]));
  const [later] = await tagEach(bench.pool, [{ tenant: "a", priority: 0 }]);
  expect(block!.first).toBe(1);
  expect(later!.tag).toBe(5001);
});

test("concurrent takers never share a tag, and each block is in one piece", async () => {
  const blocks = await Promise.all(
    Array.from({ length: 40 }, (_, index) =>
      takeTags(bench.pool, [{ tenant: "a", priority: 0, count: 1 + (index % 5) }]),
    ),
  );
  const tags = blocks.flatMap(([block], index) =>
    Array.from({ length: 1 + (index % 5) }, (_, at) => block!.first + at),
  );
  expect(new Set(tags).size).toBe(tags.length);
  expect(Math.max(...tags)).toBe(tags.length);
});

test("BullMQ's order is class first, then tag, and never leaves 1..2,097,151", () => {
  const place = fc.record({ priority: fc.integer({ min: 0, max: 9 }), tag: fc.integer({ min: 0, max: 2 ** 40 }) });
  fc.assert(
    fc.property(place, place, fc.integer({ min: 0, max: 2 ** 39 }), (one, two, base) => {
      const [a, b] = [queuePriority(one.priority, one.tag, base), queuePriority(two.priority, two.tag, base)];
      for (const value of [a, b]) expect(value >= 1 && value <= 2_097_151).toBe(true);
      if (one.priority > two.priority) expect(a).toBeLessThan(b);
      else if (one.priority === two.priority && one.tag <= two.tag) expect(a).toBeLessThanOrEqual(b);
    }),
  );
  expect(queuePriority(9, 0, 0)).toBe(1);
  expect(queuePriority(0, windowSize * 3, 0)).toBe(classes * windowSize);
});

test("when the clock is half a window ahead, the base follows and order goes on being exact", async () => {
  await advanceClock(bench.pool, new Map([[4, Math.floor(windowSize / 2) - 1]]));
  expect(await moveBases(bench.pool)).toEqual([]);
  const far = Math.ceil(windowSize / 2) + 10;
  await advanceClock(bench.pool, new Map([[4, far]]));
  expect(await moveBases(bench.pool)).toEqual([4]);
  expect(await moveBases(bench.pool)).toEqual([]);
  const bases = await readBases(bench.pool);
  expect(bases[4]).toBe(far);
  const [first, second] = await tagEach(bench.pool, [
    { tenant: "a", priority: 4 },
    { tenant: "a", priority: 4 },
  ]);
  expect(queuePriority(4, second!.tag, bases[4]!) - queuePriority(4, first!.tag, bases[4]!)).toBe(1);
});
