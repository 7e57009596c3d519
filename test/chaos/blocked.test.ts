/**
 * JavaScript that blocks the event loop, in every way it can: the process ends and says who was to blame, its supervisor starts a new one, the
 * run ends in time, and its neighbours lose nothing. A loop that is merely busy, and a process that was paused, are left alone.
 */
import { toWireId } from "@drover/protocol";
import { expect, test } from "vitest";
import { fleet, rescues } from "./fleet.ts";
import { dataOf } from "./world.ts";

const world = fleet();

test("the process ends with a line that names run and tool; twenty neighbours go on in the next one, and lose nothing", async () => {
  const worker = await world.supervise({ LEASE_SECONDS: "4" });
  const streaming = await world.many(10, "pure_call stream:held");
  await world.gate("stream:held").arrived(10);
  world.endpoint.hold();
  const calling = [...(await world.many(5, "pure_call")), ...(await world.many(5, "idempotent_call"))];
  await world.endpoint.called(20);

  const kinds = ["backtrack", "exec_sync", "read_fifo"];
  for (const [round, kind] of kinds.entries()) {
    const tool = `once_${kind}`;
    const culprit = await world.submit(tool, { limits: { soft_seconds: 18, hard_seconds: 20 } });
    const said = (await worker.line(/event loop has been blocked/, round + 1)).at(-1)!;
    expect(JSON.parse(said)).toMatchObject({ level: 60, task_id: toWireId("run", culprit.id), tool });
    const [run] = await world.ended([culprit]);
    expect(run).toMatchObject({ status: "completed", attempt: 1, crashes: 0 });
    expect(rescues(run!.log)).toMatchObject([{ cause: "blocked", crashes: 1, tool_name: tool }]);
    // Everybody is at it again.
    await world.gate("stream:held").arrived(10);
    await world.endpoint.called(20 + 10 * (round + 1));
  }
  expect(worker.news).toHaveLength(kinds.length);
  for (const news of worker.news) expect(news).toContain("SIGKILL");

  world.gate("stream:held").open();
  world.endpoint.release();
  const times = kinds.length + 1;
  for (const { name, log, ...run } of await world.ended([...streaming, ...calling])) {
    expect(run, name).toMatchObject({ status: "completed", attempt: 1, crashes: 0, epoch: times });
    expect(rescues(log), name).toHaveLength(kinds.length);
    for (const { cause, crashes, tool_name } of rescues(log))
      expect({ cause, crashes, tool_name }, name).toEqual({ cause: "blocked" });
    // What was finished was done once, what was under way once for each process.
    const inStream = streaming.some((one) => one.name === name);
    expect([world.asked(name, 0), world.called(name, 0), world.asked(name, 1)], name).toEqual(
      inStream ? [1, 1, times] : [1, times, 1],
    );
  }
});

test("a run that blocks every time ends as a crash loop; one that is past its hard limit by then ends there", async () => {
  // Somebody who sees to what the dead leave behind, and has no room for it.
  await world.spawn({ LEASE_SECONDS: "4", WORKER_CONCURRENCY: "1" });
  await world.submit("stream:elsewhere");
  await world.gate("stream:elsewhere").arrived();
  const worker = await world.supervise({ LEASE_SECONDS: "4" });
  const neighbour = await world.submit("pure_call stream:held");
  await world.gate("stream:held").arrived();
  const late = await world.submit("derive", { limits: { soft_seconds: 1.9, hard_seconds: 2 } });
  const [stopped] = await world.ended([late]);
  expect(stopped).toMatchObject({ status: "failed", stopReason: "time_limit" });
  const startedAt = Date.parse(stopped!.log.find(({ type }) => type === "run.started")!.at);
  expect(stopped!.finishedAt.getTime() - startedAt).toBeLessThan(17_000);

  const culprit = await world.submit("pure_call spin");
  const [looped] = await world.ended([culprit]);
  expect(looped).toMatchObject({ status: "failed", stopReason: "crash_loop" });
  expect(rescues(looped!.log)).toMatchObject([
    { cause: "blocked", crashes: 1, tool_name: "spin" },
    { cause: "blocked", crashes: 2, tool_name: "spin" },
  ]);
  expect(dataOf(looped!.log, "run.failed")[0]!.error!.message).toContain("spin blocked its event loop");
  // What it had done before stays, and was done once.
  expect(dataOf(looped!.log, "tool.result")).toMatchObject([{ tool_name: "pure_call", status: "ok" }]);
  expect(worker.news).toHaveLength(4);

  world.gate("stream:held").open();
  const [run] = await world.ended([neighbour]);
  expect(run).toMatchObject({ status: "completed", attempt: 1, crashes: 0, epoch: 5 });
});

test.each(["spin", "derive"] as const)(
  "who blocks after an await, when others were called since: found in JavaScript, and nobody is accused of native code (%s)",
  async (kind) => {
    const worker = await world.supervise({ LEASE_SECONDS: "4" });
    const culprit = await world.submit(`once_${kind}_later`);
    await world.endpoint.called(1);
    const neighbour = await world.submit("once_trigger");
    const [said] = await worker.line(/event loop has been blocked/, 1);
    const line = JSON.parse(said!);
    if (kind === "spin") expect(line).toMatchObject({ task_id: toWireId("run", culprit.id), tool: "once_spin_later" });
    else expect(line.task_id).toBeUndefined();
    const [one, other] = await world.ended([culprit, neighbour]);
    for (const run of [one, other]) expect(run).toMatchObject({ status: "completed", attempt: 1, crashes: 0 });
    expect(rescues(one!.log)).toMatchObject([{ cause: "blocked", crashes: 1 }]);
    expect(rescues(other!.log).map((rescue) => rescue.crashes)).toEqual([kind === "spin" ? undefined : 1]);
  },
);

test("a loop that is busy in short bursts is not taken for a blocked one, nor is a process that was paused for longer than the limit", async () => {
  // The limit is 2 s.
  const worker = await world.spawn({ LEASE_SECONDS: "4", BURSTS_MS: "7000" });
  const run = await world.submit("bursts");
  await world.endpoint.called(1);
  process.kill(worker.pid, "SIGSTOP");
  const paused = "SELECT heartbeat_at < clock_timestamp() - interval '3 seconds' AS paused FROM workers";
  await world.until(paused, [], [{ paused: true }]);
  process.kill(worker.pid, "SIGCONT");
  expect((await world.ended([run]))[0]).toMatchObject({ status: "completed", epoch: 1, crashes: 0 });
  expect(await world.worker(worker.id)).toMatchObject({ dead_at: null });
});
