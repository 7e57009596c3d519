/** SIGKILL of the worker at every step of a run: what is finished is never done, and never paid for, twice. */
import { setBudget } from "@drover/runs";
import { expect, test } from "vitest";
import { input } from "../runs/bench.ts";
import { createGate } from "../support/model-server.ts";
import { chaos } from "./world.ts";

const world = chaos();

/** Two tool turns and an answer: model, tool, model, tool, model. */
const fiveSteps = (effects: [string, string]) =>
  world.models.script((call) => {
    const effect = effects[call.turn];
    if (effect)
      return { text: `turn ${call.turn}`, toolCalls: [{ name: `${effect}_call`, input: { note: `n${call.turn}` } }] };
    return { text: `final: ${call.results.map((result) => JSON.stringify(result)).join(" ")}` };
  });

test.each([1, 2, 3, 4, 5])(
  "killed right after step %i of five is committed: nothing finished is repeated",
  async (step) => {
    fiveSteps(["idempotent", "unsafe"]);
    const id = await world.bench.submit();
    const victim = await world.start({ KILL_AFTER: String(step) });
    expect((await victim.exited).signal).toBe("SIGKILL");
    await world.start();
    const { run, log, outcome } = await world.ended(id);
    expect(run).toMatchObject({ status: "completed", attempt: 1, iterations: 3, steps: 5 });
    expect(world.models.count).toBe(3);
    expect(world.endpoint.calls.map((call) => call.note)).toEqual(["n0", "n1"]);
    expect(log.filter((event) => event.type === "model.call")).toHaveLength(3);
    expect(log.filter((event) => event.type === "tool.result")).toHaveLength(2);
    expect(log.filter((event) => event.type === "run.rescued")).toHaveLength(1);
    expect(outcome.result.tool_calls.map((call) => call.status)).toEqual(["ok", "ok"]);
    expect(outcome.result.output).toContain("final");
  },
);

test("killed in a model stream: only that call is made again with the same prompt, and what it had set aside is given back", async () => {
  const { pool } = world.bench;
  const setAside = async () => (await pool.query("SELECT epoch FROM budget_reservations")).rows;
  await setBudget(pool, "default", { month: 1e11 }, "key_admin");
  const gate = createGate();
  let held = false;
  world.models.script((call) => {
    if (call.turn === 0) return { toolCalls: [{ name: "pure_call", input: { note: "once" } }] };
    if (held) return { text: "whole answer" };
    held = true;
    return { text: "half an answer that is never ended", gate };
  });
  const id = await world.bench.submit();
  const victim = await world.start();
  gate.pass(2);
  // The half that streamed is in the log before the worker dies: `model.partial`.
  await world.logged(id, "model.partial");
  expect(await setAside()).toEqual([{ epoch: 1 }]);
  await world.start();
  await victim.kill("SIGKILL");
  const { run, outcome } = await world.ended(id);
  expect(run.status).toBe("completed");
  expect(await setAside()).toEqual([]);
  const { rows } = await pool.query("SELECT used_nanos, reserved_nanos FROM budget_accounts");
  expect(rows).toEqual([{ used_nanos: Math.round(run.costUsd! * 1e9), reserved_nanos: 0 }]);
  await setBudget(pool, "default", { month: null }, "key_admin");
  expect(outcome.result.output).toBe("whole answer");
  expect(world.models.count).toBe(3);
  expect(world.endpoint.calls).toHaveLength(1);
  expect(world.models.calls[2]!.rawBody).toBe(world.models.calls[1]!.rawBody);
});

test.each(["pure", "idempotent"])(
  "killed inside a call of a(n) %s tool: it runs again, with the same idempotency key",
  async (effect) => {
    fiveSteps([effect, effect]);
    world.endpoint.hold();
    const id = await world.bench.submit();
    const victim = await world.start();
    await world.endpoint.called(1);
    await world.start();
    await victim.kill("SIGKILL");
    world.endpoint.release();
    const { run } = await world.ended(id);
    expect(run.status).toBe("completed");
    expect(world.endpoint.calls.map((call) => call.note)).toEqual(["n0", "n0", "n1"]);
    expect(world.endpoint.calls[1]!.idempotencyKey).toBe(world.endpoint.calls[0]!.idempotencyKey);
    expect(world.models.count).toBe(3);
  },
);

test("a run whose worker died at its time limit is settled with the text that had streamed", async () => {
  const gate = createGate();
  world.models.script(() => ({ text: "something to show and then nothing", gate }));
  const id = await world.bench.submit({ input: input({ limits: { soft_seconds: 2, hard_seconds: 3 } }) });
  const victim = await world.start();
  gate.pass(3);
  await world.logged(id, "model.partial");
  await victim.kill("SIGKILL");
  // Its time was used up while its owner was last heard of.
  await world.bench.pool.query("UPDATE runs SET hard_at = claimed_at, soft_at = claimed_at WHERE id = $1", [id]);
  await world.start();
  const { run, outcome } = await world.ended(id);
  expect(run).toMatchObject({ status: "partial", stopReason: "time_limit" });
  expect(outcome.result.output).toMatch(/^something/);
  expect(world.models.count).toBe(1);
});

test("SIGTERM in a tool call: the call ends, is recorded, and another worker goes on without an attempt or a crash", async () => {
  fiveSteps(["unsafe", "pure"]);
  world.endpoint.hold();
  const id = await world.bench.submit();
  const leaving = await world.start();
  await world.endpoint.called(1);
  const gone = leaving.kill("SIGTERM");
  world.endpoint.release();
  expect((await gone).code).toBe(0);
  await world.start();
  const { run, log } = await world.ended(id);
  expect(run).toMatchObject({ status: "completed", attempt: 1 });
  expect(log.map((event) => event.type)).toContain("run.handed_over");
  expect(log.map((event) => event.type)).not.toContain("run.rescued");
  expect(world.endpoint.calls).toHaveLength(2);
  expect(world.models.count).toBe(3);
});
