/** A worker that uses too much memory: above its limit it claims nothing, then hands its runs over and is started anew; one that runs out of heap is a crash. */
import { expect, test } from "vitest";
import { fleet, rescues } from "./fleet.ts";
import { dataOf } from "./world.ts";

const world = fleet();

test("above its limit a worker claims nothing, hands its runs over and ends with code 75; the next one carries them on", async () => {
  const worker = await world.supervise({ WORKER_MEMORY_MB: "700", HOARD_MB: "1000", SHUTDOWN_GRACE_SECONDS: "2" });
  const [first] = (await world.bench.pool.query("SELECT id FROM workers")).rows;
  const neighbours = await world.many(10, "calm stream:held");
  await world.gate("stream:held").arrived(10);
  const hoarder = await world.submit("once_hoard stream:held");
  await worker.line(/above the memory limit: no run is claimed/);
  const later = await world.many(5, "calm");
  await worker.line(/still above the memory limit/);
  await worker.line(/"worker ready"/, 2);
  expect(worker.news).toMatchObject([expect.stringContaining("exit code 75")]);
  world.gate("stream:held").open();
  for (const { name, log, ...run } of await world.ended([...neighbours, hoarder])) {
    expect(run, name).toMatchObject({ status: "completed", attempt: 1, crashes: 0, epoch: 2 });
    expect(rescues(log), name).toEqual([]);
    expect(dataOf(log, "run.handed_over"), name).toEqual([{ worker: first.id }]);
    expect(world.asked(name, 0), name).toBe(1);
  }
  for (const { name, log, ...run } of await world.ended(later)) {
    expect(run, name).toMatchObject({ status: "completed", epoch: 1 });
    expect(dataOf(log, "run.started")[0]!.worker, name).not.toBe(first.id);
  }
});

test("running out of heap is a crash like any other: everybody goes on in the next process", async () => {
  const worker = await world.supervise({ NODE_OPTIONS: "--max-old-space-size=128", LEASE_SECONDS: "4" });
  const neighbours = await world.many(10, "calm stream:held");
  await world.gate("stream:held").arrived(10);
  const culprit = await world.submit("once_explode calm");
  await worker.line(/"worker ready"/, 2);
  expect(worker.news).toMatchObject([expect.stringContaining("SIGABRT")]);
  await world.gate("stream:held").arrived(10);
  world.gate("stream:held").open();
  for (const { name, log, ...run } of await world.ended([...neighbours, culprit])) {
    expect(run, name).toMatchObject({ status: "completed", attempt: 1, crashes: 0, epoch: 2 });
    // Only who was inside a tool can have done it.
    expect(rescues(log), name).toMatchObject([{ cause: "crashed" }]);
    expect(rescues(log)[0]!.crashes, name).toBe(name === culprit.name ? 1 : undefined);
    expect(world.asked(name, 0), name).toBe(1);
  }
});
