/**
 * SIGKILL around an effect, for every kind of tool at once: after the intent and before the effect, between the effect and its outcome, and
 * after the outcome. What is known not to have happened, or may happen twice, runs again; what is in doubt is asked about.
 */
import { expect, test } from "vitest";
import { input } from "../runs/bench.ts";
import { createGate, type ScriptedReply } from "../support/model-server.ts";
import { chaos, dataOf } from "./world.ts";

const world = chaos();
const timeoutMs = 1500;
/** Of the processes of `world.ts`. */
const leaseMs = 2000;
/** For those who take over. Whoever is killed has all the time in the world, so that no call of its ends before it does. */
const short = { TOOL_TIMEOUT_MS: String(timeoutMs) };

/** What becomes of a call whose outcome is not in the log: it runs again, or is known to be done, or a person is asked. */
const kinds = {
  pure_call: "again",
  idempotent_call: "again",
  unsafe_call: "asked",
  unsafe_done: "done",
  unsafe_output: "done",
  unsafe_not_done: "again",
  unsafe_unknown: "asked",
  unsafe_throwing: "asked",
  unsafe_hanging: "asked",
} as const;
type Kind = keyof typeof kinds;
const names = Object.keys(kinds) as Kind[];
const verified = (name: Kind) => name.startsWith("unsafe_") && name !== "unsafe_call";

/** One run for each kind: a call of its tool, then an answer that repeats what the model was told. */
async function submitAll(answer: ScriptedReply = {}): Promise<Map<Kind, string>> {
  world.models.script((call) => {
    const [, name] = /use (\w+)/.exec(call.query)!;
    if (call.turn === 0) return { toolCalls: [{ name: name!, input: { note: name } }] };
    return { text: `told: ${call.results.map(({ content }) => content).join(" ")}`, ...answer };
  });
  const ids = new Map<Kind, string>();
  for (const name of names) ids.set(name, await world.bench.submit({ input: input({ query: `use ${name}` }) }));
  return ids;
}

/** Calls of the tool itself, and of its `verify`, as the endpoint saw them. */
const made = (name: Kind) =>
  world.endpoint.calls.filter(({ effect, note }) => note === name && !effect.startsWith("verify"));
const checks = (name: Kind) =>
  world.endpoint.calls.filter(({ effect, note }) => note === name && effect.startsWith("verify"));

/** After the crash: every run where it belongs. `before`: how often the effect took place up to the crash. */
async function expectSettled(ids: Map<Kind, string>, before: 0 | 1): Promise<void> {
  for (const [name, id] of ids) {
    const fate = kinds[name];
    const { log } = fate === "asked" ? await world.waiting(id) : await world.ended(id);
    expect(made(name), name).toHaveLength(before + (fate === "again" ? 1 : 0));
    const keys = new Set([...made(name), ...checks(name)].map(({ idempotencyKey }) => idempotencyKey));
    for (const { idempotency_key } of dataOf(log, "tool.intent")) keys.add(idempotency_key);
    expect(keys.size, name).toBe(1);
    expect(checks(name), name).toHaveLength(verified(name) ? 1 : 0);

    const quietAt = Date.parse(dataOf(log, "run.rescued")[0]!.quiet_at!);
    const handedOver = dataOf(log, "run.handed_over");
    if (!name.startsWith("unsafe")) {
      expect(handedOver, name).toEqual([]);
      continue;
    }
    // Not before a lease since the owner's last heartbeat, and then the tool's own limit, have passed.
    expect(handedOver[0]!.delay_ms, name).toBeGreaterThan(0);
    expect(handedOver[0]!.delay_ms, name).toBeLessThanOrEqual(leaseMs + timeoutMs);
    const acted = log.find(({ type }) => type === "tool.verified" || type === "approval.requested")!;
    expect(Date.parse(acted.at) - quietAt, name).toBeGreaterThanOrEqual(timeoutMs);
    if (verified(name)) {
      const said = name === "unsafe_output" ? "done" : fate === "asked" ? "unknown" : name.slice("unsafe_".length);
      expect(dataOf(log, "tool.verified"), name).toEqual([{ iteration: 1, index: 0, tool_name: name, answer: said }]);
      expect(checks(name)[0]!.at - quietAt, name).toBeGreaterThanOrEqual(timeoutMs);
    }
    if (fate === "asked") {
      expect(dataOf(log, "run.waiting"), name).toMatchObject([
        { waiting_for: "approval", approvals: [{ subject: "uncertain", tool_name: name, input: { note: name } }] },
      ]);
      expect(dataOf(log, "tool.result"), name).toEqual([]);
    }
  }
  const told = (name: Kind) =>
    world.models.calls
      .filter(({ query, turn }) => query === `use ${name}` && turn === 1)
      .map(({ results }) => results[0]!.content);
  expect(told("unsafe_done")).toEqual(["It took effect."]);
  expect(told("unsafe_output")).toEqual([JSON.stringify({ answer: "found out" })]);
  expect(told("unsafe_not_done")).toEqual([JSON.stringify({ answer: "done" })]);
}

/** Every open question gets another answer, and each does what it says. */
async function expectDecided(ids: Map<Kind, string>, before: 0 | 1): Promise<void> {
  const retried = ids.get("unsafe_call")!;
  await world.decide(retried, { decision: "retry" }, { wake: true });
  const afterRetry = await world.ended(retried);
  expect(afterRetry.run.status).toBe("completed");
  expect(made("unsafe_call")).toHaveLength(before + 1);
  expect(new Set(made("unsafe_call").map(({ idempotencyKey }) => idempotencyKey)).size).toBe(1);
  expect(dataOf(afterRetry.log, "tool.intent")).toHaveLength(2);

  const done = ids.get("unsafe_unknown")!;
  await world.decide(done, { decision: "done", result: { answer: "by hand" } }, { wake: true });
  const afterDone = await world.ended(done);
  expect(afterDone.outcome.result.output).toBe(`told: ${JSON.stringify({ answer: "by hand" })}`);
  expect(made("unsafe_unknown")).toHaveLength(before);

  const failed = ids.get("unsafe_throwing")!;
  await world.decide(failed, { decision: "fail", note: "nobody knows" }, { wake: true });
  const afterFail = await world.ended(failed);
  expect(afterFail.run).toMatchObject({ status: "failed", stopReason: "uncertain" });
  expect(afterFail.outcome.error!.message).toContain("nobody knows");
  expect(made("unsafe_throwing")).toHaveLength(before);
}

test("killed after the intent and before the effect", async () => {
  const victim = await world.start({ HOLD_BEFORE: "1" });
  const ids = await submitAll();
  await Promise.all(names.map((name) => victim.waitForLine(`entered ${name}`)));
  await world.start(short);
  await victim.kill("SIGKILL");
  expect(world.endpoint.calls).toEqual([]);
  for (const [name, id] of ids)
    expect(dataOf(await world.log(id), "tool.intent"), name).toHaveLength(name === "pure_call" ? 0 : 1);
  await expectSettled(ids, 0);
  await expectDecided(ids, 0);
});

test("killed between the effect and its outcome", async () => {
  world.endpoint.hold();
  const victim = await world.start();
  const ids = await submitAll();
  await world.endpoint.called(names.length);
  await world.start(short);
  await victim.kill("SIGKILL");
  world.endpoint.release();
  await expectSettled(ids, 1);
  await expectDecided(ids, 1);
});

test("killed after the outcome: nothing is repeated, verified or asked", async () => {
  // The second model call of every run hangs, so that each outcome is committed and nothing after it.
  const gate = createGate();
  const victim = await world.start();
  const ids = await submitAll({ gate });
  await gate.arrived(names.length);
  await world.start(short);
  await victim.kill("SIGKILL");
  gate.open();
  for (const [name, id] of ids) {
    const { run, log } = await world.ended(id);
    expect(run.status, name).toBe("completed");
    expect(made(name), name).toHaveLength(1);
    expect(checks(name), name).toEqual([]);
    expect(dataOf(log, "approval.requested"), name).toEqual([]);
    expect(dataOf(log, "tool.result"), name).toMatchObject([{ status: "ok" }]);
  }
});
