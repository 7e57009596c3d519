/** A run whose tool kills its process, again and again: the third death is its last, and those that rode along each time are none the worse for it. */
import { expect, test } from "vitest";
import { fleet, rescues } from "./fleet.ts";
import { dataOf } from "./world.ts";

const world = fleet();
const count = 99;

test("three deaths in a row end the culprit as `crash_loop`; its neighbours, there each time, complete", async () => {
  const worker = await world.supervise();
  const others = await world.many(count, "stream:first+calm stream:second", { priority: 1 });
  await world.gate("stream:first").arrived(count);
  // The culprit dies when the endpoint answers: once everybody else is under way.
  world.endpoint.hold();
  const culprit = await world.submit("calm die");
  /** All of them are under suspicion now: they are taken one at a time, and whoever is not goes its way beside them. */
  async function clearOneByOne() {
    const taken = "SELECT count(*) AS taken FROM runs WHERE status = 'running' AND crashes >= 2";
    await world.until(taken, [], [{ taken: 1 }]);
    await world.ended([await world.submit("calm")]);
    await world.until(taken, [], [{ taken: 1 }]);
    world.gate("stream:first").open();
  }
  for (const death of [1, 2, 3]) {
    await world.endpoint.called(death);
    // Before the third, each has cleared itself by a finished step.
    await world.gate(death < 3 ? "stream:first" : "stream:second").arrived(count);
    world.endpoint.release();
    await expect.poll(() => worker.news, { timeout: 20_000 }).toHaveLength(death);
    world.endpoint.hold();
    if (death === 2) await clearOneByOne();
  }

  const [looped] = await world.ended([culprit]);
  expect(looped).toMatchObject({ status: "failed", stopReason: "crash_loop", attempt: 1 });
  expect(rescues(looped!.log)).toMatchObject([
    { cause: "crashed", crashes: 1 },
    { cause: "crashed", crashes: 2 },
  ]);
  expect(looped!.log.filter(({ type }) => type === "run.started")).toHaveLength(3);
  expect(dataOf(looped!.log, "tool.result")).toMatchObject([{ tool_name: "calm", status: "ok" }]);
  expect(dataOf(looped!.log, "run.failed")[0]!.error!.message).toContain("died 3 times in a row");

  world.gate("stream:second").open();
  for (const { name, log, ...run } of await world.ended(others)) {
    expect(run, name).toMatchObject({ status: "completed", attempt: 1, crashes: 0, epoch: 4 });
    expect(rescues(log), name).toMatchObject([{ crashes: 1 }, { crashes: 2 }, { crashes: 1 }]);
    expect([world.asked(name, 0), world.asked(name, 1)], name).toEqual([3, 2]);
  }
});
