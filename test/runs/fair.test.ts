import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { advanceClock, tagEach, takeTags } from "../../packages/runs/src/submit/fair.ts";
import { claimMany } from "../support/claim.ts";
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
  await bench.pool.query("UPDATE fair_classes SET started_tag = 0");
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
  const started = await claimMany(bench.pool, worker, 137);
  expect(new Set(started.map((run) => run.tenant))).toEqual(new Set(["a"]));
  await advanceClock(bench.pool, new Map([[0, started.at(-1)!.tag]]));
  await bench.submit({ tenant: "b" });
  const next = await claimMany(bench.pool, worker, 2);
  expect(next.map((run) => run.tenant)).toContain("b");
});

test("tenants with a backlog take turns, whoever filled the queue first", async () => {
  const worker = await bench.addWorker();
  await batchOf("a", 300);
  await batchOf("b", 100);
  await batchOf("c", 100);
  const tenants = (await claimMany(bench.pool, worker, 30)).map((run) => run.tenant);
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
    const claimed = await claimMany(bench.pool, worker, 5);
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
  expect(block!).toBe(1);
  expect(later!).toBe(5001);
});

test("concurrent takers never share a tag, and each block is in one piece", async () => {
  const blocks = await Promise.all(
    Array.from({ length: 40 }, (_, index) =>
      takeTags(bench.pool, [{ tenant: "a", priority: 0, count: 1 + (index % 5) }]),
    ),
  );
  const tags = blocks.flatMap(([block], index) => Array.from({ length: 1 + (index % 5) }, (_, at) => block! + at));
  expect(new Set(tags).size).toBe(tags.length);
  expect(Math.max(...tags)).toBe(tags.length);
});
