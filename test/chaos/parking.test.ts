/** SIGKILL around a wait: whenever a worker dies, the run ends up waiting for one decision, or going on with it. Nothing is asked or done twice. */
import { expect, test } from "vitest";
import { chaos, dataOf } from "./world.ts";

const world = chaos();
/** For who takes over: a call is in doubt for so long. */
const short = { TOOL_TIMEOUT_MS: "1500" };

/** A turn with these calls, then an answer. */
const turn = (...names: string[]) =>
  world.models.script((call) =>
    call.turn === 0
      ? { toolCalls: names.map((name) => ({ name, input: { note: name } })) }
      : { text: `told: ${call.results.map(({ content }) => content).join(" ")}` },
  );

const questions = async (id: string) =>
  (await world.bench.pool.query<{ status: string }>("SELECT status FROM approvals WHERE run_id = $1 ORDER BY id", [id]))
    .rows;

test.each([
  ["before the question is committed", { KILL_AFTER: "1" }, true],
  ["between the question and the park", { KILL_AT: "approval.requested" }, true],
  ["after the park is committed", { KILL_LEFT: "waiting" }, false],
])("killed %s: it waits with one question, and one approval makes one call", async (_, kill, rescued) => {
  turn("send_call");
  const id = await world.bench.submit();
  const victim = await world.start(kill);
  expect((await victim.exited).signal).toBe("SIGKILL");
  if (rescued) await world.start();
  const { log } = await world.waiting(id);
  expect(dataOf(log, "approval.requested")).toHaveLength(1);
  expect(await questions(id)).toEqual([{ status: "pending" }]);
  expect(log.filter(({ type }) => type === "run.rescued")).toHaveLength(rescued ? 1 : 0);
  expect(world.endpoint.calls).toEqual([]);
  expect(world.models.count).toBe(1);

  // With a worker alive or without one, and nobody is woken: the commit is enough.
  await world.decide(id, { decision: "approve" }, { wake: false });
  if (!rescued) await world.start();
  const end = await world.ended(id);
  expect(end.run).toMatchObject({ status: "completed", attempt: 1 });
  expect(world.endpoint.calls).toHaveLength(1);
  expect(world.models.count).toBe(2);
  expect(await questions(id)).toEqual([{ status: "approved" }]);
});

test("decided while the owner is still in another call of that turn, which then dies: it goes on without waiting", async () => {
  turn("idempotent_call", "send_call");
  world.endpoint.hold();
  const id = await world.bench.submit();
  const victim = await world.start();
  await world.endpoint.called(1);
  await world.logged(id, "approval.requested");
  await world.decide(id, { decision: "approve" }, { wake: true });
  await world.start();
  await victim.kill("SIGKILL");
  world.endpoint.release();
  const { run, log } = await world.ended(id);
  expect(run.status).toBe("completed");
  expect(dataOf(log, "run.waiting")).toEqual([]);
  expect(dataOf(log, "approval.requested")).toHaveLength(1);
  expect(world.endpoint.calls.map(({ effect }) => effect).sort()).toEqual(["idempotent", "idempotent", "send"]);
});

test("every worker is replaced while it waits: nothing happens to it, and the decision holds", async () => {
  turn("send_call");
  const id = await world.bench.submit();
  const first = await world.start();
  const { log } = await world.waiting(id);
  expect((await first.kill("SIGTERM")).code).toBe(0);
  const second = await world.start();
  await second.kill("SIGKILL");
  expect(await world.log(id)).toEqual(log);
  await world.decide(id, { decision: "reject", note: "not now" }, { wake: false });
  await world.start();
  const { outcome } = await world.ended(id);
  expect(outcome.result.output).toBe("told: A person rejected this call: not now");
  expect(world.endpoint.calls).toEqual([]);
});

test("approved with other arguments, killed inside the call, tried again by a person: those arguments, and no second approval", async () => {
  turn("send_call");
  const id = await world.bench.submit();
  const victim = await world.start();
  await world.waiting(id);
  world.endpoint.hold();
  await world.decide(id, { decision: "approve", editedInput: { note: "as edited" } }, { wake: true });
  await world.endpoint.called(1);
  await world.start(short);
  await victim.kill("SIGKILL");
  world.endpoint.release();
  const { log } = await world.waiting(id);
  expect(dataOf(log, "approval.requested").at(-1)).toMatchObject({
    subject: "uncertain",
    input: { note: "as edited" },
  });
  await world.decide(id, { decision: "retry" }, { wake: true });
  const end = await world.ended(id);
  expect(end.run.status).toBe("completed");
  expect(world.endpoint.calls.map(({ note }) => note)).toEqual(["as edited", "as edited"]);
  expect(dataOf(end.log, "approval.requested")).toHaveLength(2);
});
