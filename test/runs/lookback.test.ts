/** A look that did not see everything is made again from where it began: however much becomes due at once, all of it is seen to. */

import type { Observation } from "@drover/runs";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { Lookback } from "../../packages/runs/src/worker/lookback.ts";
import { endOverdue } from "../../packages/runs/src/worker/overdue.ts";
import type { RescuerOptions } from "../../packages/runs/src/worker/rescuer.ts";
import { createBench, input, submission } from "./bench.ts";

let bench: Awaited<ReturnType<typeof createBench>>;
beforeAll(async () => {
  bench = await createBench();
});
afterAll(() => bench.close());

test("the first look is at everything, the next one begins a little before the last one that saw it all", async () => {
  const now = vi.spyOn(performance, "now");
  const lookback = new Lookback(1000);
  const looked: (number | null)[] = [];
  const look = async (at: number, all: boolean | Error) => {
    now.mockReturnValue(at);
    const done = lookback.look("x", async (lately) => {
      looked.push(lately);
      if (all instanceof Error) throw all;
      return all;
    });
    if (all instanceof Error) await expect(done).rejects.toBe(all);
    else expect(await done).toBe(all);
  };
  await look(0, new Error("away"));
  await look(10, true);
  await look(15, false);
  await look(20, new Error("away"));
  await look(30, true);
  await look(40, true);
  lookback.forget();
  await look(50, true);
  now.mockRestore();
  expect(looked).toEqual([null, null, 1005, 1010, 1020, 1010, null]);
});

test("more runs than one go ends: it says so, and ends the rest in the next; one that cannot be ended holds up none", async () => {
  const { pool, blobs, submitter } = bench;
  const query = input({
    limits: { soft_seconds: 25, hard_seconds: 30, deadline: new Date(Date.now() + 60_000).toISOString() },
  });
  const items = Array.from({ length: 250 }, () => submission({ input: query }));
  await submitter.submitBatch({
    tenant: "default",
    submittedBy: null,
    items,
    callbackUrl: null,
    callbackEvents: null,
    metadata: {},
  });
  await pool.query("UPDATE runs SET deadline = now() - interval '1 hour'");
  const told: Observation["type"][] = [];
  const options = {
    pool,
    blobs,
    signals: { news: () => {} },
    agents: { agent: () => undefined },
    observe: (observation: Observation) => told.push(observation.type),
  } as unknown as RescuerOptions;
  const where = { whose: { dead: [], held: [] }, lately: null };
  const left = async () => (await pool.query("SELECT FROM runs WHERE finished_at IS NULL")).rowCount;
  expect(await endOverdue(options, where)).toBe(false);
  expect(await left()).toBe(50);
  expect(await endOverdue(options, where)).toBe(true);
  expect(await left()).toBe(0);
  expect(told).toEqual(Array.from({ length: 250 }, () => "ended"));
  expect(await endOverdue(options, where)).toBe(true);
});
