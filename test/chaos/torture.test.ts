/** The torture run (`npm run chaos -- --minutes 5`), short: its plan is its seed's, nothing is violated, and nothing of it is left afterwards. */
import { expect, test } from "vitest";
import { makePlan, type PlanOptions } from "./torture/plan.ts";
import { torture } from "./torture/torture.ts";

/** Redis is flushed, a worker killed, networks cut. */
const options: PlanOptions = {
  seed: 328,
  durationMs: 8000,
  backend: "redis",
  apis: 1,
  workers: 2,
  rate: 8,
  leaseMs: 4000,
};
/** Postgres crashes, a worker is killed and one told to leave, an API is cut off. */
const onPostgres: PlanOptions = { ...options, seed: 20, backend: "postgres" };

/** Processes and servers of this process. */
const alive = () =>
  process.getActiveResourcesInfo().filter((name) => name === "ProcessWrap" || name === "TCPServerWrap");

test("a plan is a pure function of its seed, and without Redis nothing is done to it", () => {
  expect(makePlan(options)).toEqual(makePlan(options));
  expect(makePlan({ ...options, seed: 1 }).faults).not.toEqual(makePlan(options).faults);
  const kinds = makePlan({ ...onPostgres, durationMs: 600_000 }).faults.map(({ kind }) => kind);
  expect(kinds.length).toBeGreaterThan(100);
  expect(kinds.filter((kind) => /redis|flush/.test(kind))).toEqual([]);
});

test.each([options, onPostgres])(
  "a few seconds of everything going wrong, jobs on $backend: nothing is lost, nothing is done twice",
  async (plan) => {
    const before = alive();
    const verdict = await torture({ ...plan, patienceMs: 60_000, signal: new AbortController().signal });
    expect(verdict!.violations).toEqual([]);
    const { runs, faults } = verdict!.figures;
    expect(runs.completed).toBeGreaterThan(20);
    expect(Object.keys(faults).length).toBeGreaterThan(3);
    await expect.poll(alive).toEqual(before);
  },
  150_000,
);

test("a run that is ended early ends in order", async () => {
  const before = alive();
  const ended = new AbortController();
  const started = Promise.withResolvers<void>();
  const running = torture({
    ...options,
    durationMs: 60_000,
    patienceMs: 60_000,
    signal: ended.signal,
    onProgress: () => started.resolve(),
  });
  await started.promise;
  expect(alive().length).toBeGreaterThan(before.length);
  ended.abort();
  expect(await running).toBeNull();
  await expect.poll(alive).toEqual(before);
}, 150_000);
