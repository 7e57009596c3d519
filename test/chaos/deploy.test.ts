/** A rolling deploy: SIGTERM for the old workers beside a new one, with a worker's fill of runs on each. No finished step, no attempt and no run is lost. */
import { expect, test } from "vitest";
import { fleet, rescues } from "./fleet.ts";
import { dataOf } from "./world.ts";

const world = fleet();

test("200 runs, half in a model stream and half in tools: what ends within the grace is kept, what does not is begun again elsewhere", async () => {
  const graceSeconds = 6;
  const leaving = await Promise.all(
    [1, 2].map(() => world.spawn({ WORKER_CONCURRENCY: "100", SHUTDOWN_GRACE_SECONDS: String(graceSeconds) })),
  );
  const ending = await world.many(50, "calm stream:ending");
  const cut = await world.many(50, "calm stream:cut");
  await Promise.all([world.gate("stream:ending").arrived(50), world.gate("stream:cut").arrived(50)]);
  world.endpoint.hold();
  const calling = (
    await Promise.all(["pure_call", "idempotent_call", "unsafe_call"].map((tool) => world.many(33, `${tool} calm`)))
  ).flat();
  const last = await world.submit("pure_call calm");
  await world.endpoint.called(100);
  const fresh = await world.spawn({ WORKER_CONCURRENCY: "200" });

  const toldAt = performance.now();
  const gone = Promise.all(leaving.map((worker) => worker.kill("SIGTERM")));
  await Promise.all(leaving.map((worker) => worker.waitForLine("handing runs over")));
  world.endpoint.release();
  world.gate("stream:ending").open();
  for (const { code } of await gone) expect(code).toBe(0);
  const tookMs = performance.now() - toldAt;
  // The rest is slack for a busy machine.
  expect(tookMs).toBeLessThan((graceSeconds + 10) * 1000);
  await world.gate("stream:cut").arrived(50);
  world.gate("stream:cut").open();

  const runs = await world.ended([...ending, ...cut, ...calling, last]);
  expect(runs).toHaveLength(200);
  const kind = new Map([
    ...ending.map(({ id }) => [id, "ending"] as const),
    ...cut.map(({ id }) => [id, "cut"] as const),
  ]);
  for (const { id, name, log, ...run } of runs) {
    const how = kind.get(id) ?? "calling";
    expect(run, name).toMatchObject({ status: "completed", attempt: 1, crashes: 0, epoch: how === "ending" ? 1 : 2 });
    expect(rescues(log), name).toEqual([]);
    const workers = dataOf(log, "run.started").map(({ worker }) => worker);
    expect(
      leaving.map((worker) => worker.id),
      name,
    ).toContain(workers[0]);
    expect(dataOf(log, "run.handed_over"), name).toEqual(how === "ending" ? [] : [{ worker: workers[0] }]);
    expect(workers.slice(1), name).toEqual(how === "ending" ? [] : [fresh.id]);
    expect(dataOf(log, "agent.changed"), name).toEqual([]);
    expect(world.asked(name, 0), name).toBe(1);
    expect(world.asked(name, 1), name).toBe(how === "cut" ? 2 : 1);
    expect(world.called(name, 0), name).toBe(how === "calling" ? 1 : 0);
  }
});

test("with another definition of the agent: the run goes on and says so, or ends where its agent is strict", async () => {
  const leaving = await world.spawn({ AGENT_PROMPT: "second version", SHUTDOWN_GRACE_SECONDS: "1" });
  const [latest, strict, unstarted, untouched] = [
    await world.submit("calm stream:held", { agent: "changing" }),
    await world.submit("calm stream:held", { agent: "strict" }),
    await world.submit("stream:held", { agent: "strict" }),
    await world.submit("calm stream:held"),
  ];
  await world.gate("stream:held").arrived(4);
  await world.spawn({ AGENT_PROMPT: "third version" });
  expect((await leaving.kill("SIGTERM")).code).toBe(0);
  await world.gate("stream:held").arrived(2);
  world.gate("stream:held").open();
  const [changed, partial, failed, same] = await world.ended([latest, strict, unstarted, untouched]);

  expect(changed).toMatchObject({ status: "completed", attempt: 1 });
  const hashes = dataOf(changed!.log, "run.started").map(({ agent_hash }) => agent_hash);
  expect(dataOf(changed!.log, "agent.changed")).toEqual([{ from: hashes[0], to: hashes[1] }]);
  const prompts = world.models.calls
    .filter(({ query }) => query.startsWith(`${latest.name}:`))
    .map(({ system }) => system);
  expect(prompts).toEqual(["second version", "second version", "third version"]);

  // As everywhere, `partial` is what has something to show.
  expect(partial).toMatchObject({ status: "partial", stopReason: "agent_changed" });
  expect(failed).toMatchObject({ status: "failed", stopReason: "agent_changed" });
  expect([world.asked(strict.name, 1), world.asked(unstarted.name, 0)]).toEqual([1, 1]);
  expect(same).toMatchObject({ status: "completed" });
  expect(dataOf(same!.log, "agent.changed")).toEqual([]);
  // What starts now starts with the new one.
  const [next] = await world.ended([await world.submit("calm", { agent: "strict" })]);
  expect(next).toMatchObject({ status: "completed" });
});

test("an agent that only the new version has: the old worker leaves its runs and carries its own, the new one takes them", async () => {
  const old = await world.spawn();
  const waiting = [await world.submit("calm", { agent: "newer" }), await world.submit("calm", { agent: "newer" })];
  await old.waitForLine("left to others");
  const own = await world.ended([await world.submit("calm"), await world.submit("calm")]);
  await world.spawn({ NEW_AGENT: "newer" });
  for (const run of [...own, ...(await world.ended(waiting))]) expect(run).toMatchObject({ status: "completed" });
});
