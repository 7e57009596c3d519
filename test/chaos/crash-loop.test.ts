/**
 * A run whose tool kills its process, again and again: the third death is its last, and those that rode along each time are none the worse for it,
 * whether they stood in a model's stream or in tools of their own.
 */
import { expect, test } from "vitest";
import { fleet, rescues } from "./fleet.ts";
import { dataOf } from "./world.ts";

const world = fleet();

async function expectLooped(culprit: Parameters<typeof world.ended>[0][number]): Promise<void> {
  const [looped] = await world.ended([culprit]);
  expect(looped).toMatchObject({ status: "failed", stopReason: "crash_loop", attempt: 1 });
  expect(dataOf(looped!.log, "tool.result")).toMatchObject([{ tool_name: "calm", status: "ok" }]);
  expect(dataOf(looped!.log, "run.failed")[0]!.error!.message).toContain("died 3 times in a row");
}

test("in model streams nobody is suspected: the culprit, in a tool each time, ends alone, and nobody waits for anybody", async () => {
  const count = 99;
  const worker = await world.supervise();
  const others = await world.many(count, "stream:first+calm stream:second", { priority: 1 });
  await world.gate("stream:first").arrived(count);
  world.endpoint.hold();
  const culprit = await world.submit("calm die");
  for (const death of [1, 2, 3]) {
    await world.endpoint.called(death);
    await world.gate("stream:first").arrived(count);
    world.endpoint.release();
    await expect.poll(() => worker.news, { timeout: 20_000 }).toHaveLength(death);
    world.endpoint.hold();
  }
  world.endpoint.release();
  // All of them are at work again at once.
  await world.gate("stream:first").arrived(count);
  await expectLooped(culprit);
  for (const stream of ["first", "second"]) world.gate(`stream:${stream}`).open();
  for (const { name, log, ...run } of await world.ended(others)) {
    expect(run, name).toMatchObject({ status: "completed", attempt: 1, crashes: 0, epoch: 4 });
    expect(
      rescues(log).map(({ crashes }) => crashes),
      name,
    ).toEqual([undefined, undefined, undefined]);
    expect([world.asked(name, 0), world.asked(name, 1)], name).toEqual([4, 1]);
  }
});

test("in tools everybody may have done it: suspects clear themselves in growing groups, and only the culprit ends", async () => {
  const count = 20;
  const worker = await world.supervise();
  world.endpoint.hold();
  const others = await world.many(count, "idempotent_call calm", { priority: 1 });
  await world.endpoint.called(count);
  const culprit = await world.submit("calm die");
  for (const death of [1, 2]) {
    await world.endpoint.called(death * (count + 1));
    world.endpoint.releaseOnly("die");
    await expect.poll(() => worker.news, { timeout: 20_000 }).toHaveLength(death);
  }
  // All are suspected now. Whoever is taken is answered, and so clears itself, unless it is the culprit.
  world.endpoint.release();
  await expectLooped(culprit);
  for (const { name, log, ...run } of await world.ended(others)) {
    expect(run, name).toMatchObject({ status: "completed", crashes: 0 });
    expect(dataOf(log, "tool.result"), name).toHaveLength(2);
  }
});
