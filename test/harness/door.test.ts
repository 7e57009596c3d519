/** The one door, stage by stage: what is written before what, and what a stage that fails keeps from happening. */
import { type AuditEntry, type NewEvent, ToolRegistry } from "@drover/harness";
import { applyEvent, callTool, type DoorOptions, initialState, openCalls, RunControl } from "@drover/harness/worker";
import { describe, expect, it } from "vitest";
import { tool } from "./scripted.ts";

type Tool = ReturnType<typeof tool>;

/** One call of `one`, at the door. `steps` is what happened, in order. */
function atTheDoor(one: Tool, more: Partial<DoorOptions> = {}, input: unknown = { n: 1 }) {
  const steps: string[] = [];
  const trail: AuditEntry[] = [];
  const noted: Tool = {
    ...one,
    execute: (given, context) => {
      steps.push("execute");
      return one.execute(given, context);
    },
    ...(one.verify && {
      verify: (intent, context) => {
        steps.push("verify");
        return one.verify!(intent, context);
      },
    }),
  };
  const limits = { soft_seconds: 1, hard_seconds: 1 };
  const state = initialState({
    query: "",
    agent: "default",
    max_iterations: 9,
    limits,
    retry: { max_attempts: 1, backoff_ms: 0, max_backoff_ms: 0 },
    action_budget: 10,
  });
  applyEvent(state, { type: "action.called", data: { iteration: 1, call: { id: "c", name: one.name, input } } });
  const events: NewEvent[] = [];
  const door: DoorOptions = {
    runId: "r",
    tenant: "t",
    workspace: "w",
    agentName: "default",
    toolbox: new ToolRegistry([noted]).boxFor("default", {}),
    state,
    control: new RunControl(),
    policies: [],
    approvals: { expiresAfterMs: 1000, onExpiry: "reject" },
    asking: "park",
    append: async (event, audit) => {
      steps.push(event.type);
      events.push(event);
      if (audit) trail.push(audit);
      applyEvent(state, event);
    },
    assertOwned: () => void steps.push("owned?"),
    ...more,
  };
  const record = openCalls(state)[0]!;
  return { door, record, state, steps, events, trail, call: () => callTool(record, door) };
}

const unsafe = (execute: Tool["execute"] = () => "done", more: Partial<Tool> = {}) =>
  tool("it", execute, { permission: "write", effect: "unsafe", budgetCost: 3, ...more });

describe("the order", () => {
  it("is intent, ownership, effect, outcome", async () => {
    const { call, steps } = atTheDoor(unsafe());
    expect(await call()).toMatchObject({ kind: "recorded", result: { status: "ok", points: 3 } });
    expect(steps).toEqual(["tool.intent", "owned?", "execute", "tool.result"]);
  });

  it("of a pure tool is ownership, effect, outcome: it may be made again", async () => {
    const { call, steps } = atTheDoor(tool("it", () => 1));
    await call();
    expect(steps).toEqual(["owned?", "execute", "tool.result"]);
  });

  it("asks a person before anything is intended", async () => {
    const { call, steps, record } = atTheDoor(unsafe(() => 1, { permission: "irreversible" }));
    expect(await call()).toEqual({ kind: "waiting" });
    expect(steps).toEqual(["approval.requested"]);
    expect(record.reserved).toBe(0);
    // Asked again, as when the process died and another one comes: the question stands.
    expect(await call()).toEqual({ kind: "waiting" });
    expect(steps).toEqual(["approval.requested"]);
  });
});

describe("a stage that fails keeps the next from happening", () => {
  it("an intent that cannot be written: no effect", async () => {
    const { call, steps, record } = atTheDoor(unsafe(), {
      append: () => Promise.reject(new Error("the log is gone")),
    });
    await expect(call()).rejects.toThrow("the log is gone");
    expect(steps).toEqual([]);
    expect(record.intended).toBe(false);
  });

  it("an ownership that is lost: no effect", async () => {
    const { call, steps } = atTheDoor(unsafe(), { assertOwned: () => Promise.reject(new Error("no longer yours")) });
    await expect(call()).rejects.toThrow("no longer yours");
    expect(steps).toEqual(["tool.intent"]);
  });

  it("a run that is stopped while it waits to know that it owns: no effect, no outcome", async () => {
    const control = new RunControl();
    const { call, steps } = atTheDoor(unsafe(), { control, assertOwned: () => control.stop("cancelled") });
    await expect(call()).rejects.toThrow("cancelled");
    expect(steps).toEqual(["tool.intent"]);
  });

  it("a result that cannot be written leaves the door by throwing: it must not look like a failed tool", async () => {
    const { call, door } = atTheDoor(unsafe());
    const { append } = door;
    door.append = (event, audit) =>
      event.type === "tool.result" ? Promise.reject(new Error("the log is gone")) : append(event, audit);
    await expect(call()).rejects.toThrow("the log is gone");
  });
});

describe("a run past its soft limit", () => {
  const late = () => new RunControl({ softMs: 0, hardMs: 60_000 });

  it("starts nothing, and asks nobody for what it would not start", async () => {
    const { call, steps } = atTheDoor(
      unsafe(() => 1, { permission: "irreversible" }),
      { control: late() },
    );
    expect(await call()).toMatchObject({ kind: "recorded", result: { status: "skipped", problem: "time" } });
    expect(steps).toEqual(["tool.result"]);
  });

  it("does not try an unsafe call again that did not take effect, and gives its points back only for what was never begun", async () => {
    const { call, door, steps } = atTheDoor(unsafe(() => 1, { verify: () => "not_done" }));
    const crashed = { iteration: 1, index: 0, call_id: "c", tool_name: "it", idempotency_key: "k", points: 3 };
    await door.append({ type: "tool.intent", data: crashed });
    door.control = late();
    expect(await call()).toMatchObject({ kind: "recorded", result: { status: "skipped", problem: "time", points: 3 } });
    expect(steps).not.toContain("execute");
  });
});

describe("a call in doubt", () => {
  const intent = {
    iteration: 1,
    index: 0,
    call_id: "c",
    tool_name: "it",
    idempotency_key: "key of the first try",
    points: 3,
  };

  it.each(["pure", "idempotent"] as const)("%s: it is made again, with the key it had", async (effect) => {
    const keys: string[] = [];
    const again = tool("it", (_, { idempotencyKey }) => keys.push(idempotencyKey), { permission: "write", effect });
    const { call, door, steps } = atTheDoor(again);
    if (effect !== "pure") await door.append({ type: "tool.intent", data: intent });
    steps.length = 0;
    await call();
    expect(steps).toEqual(["owned?", "execute", "tool.result"]);
    expect(keys).toEqual([effect === "pure" ? "r:1:0" : intent.idempotency_key]);
  });

  it("is left alone while its last owner may still be inside it", async () => {
    const now = Date.parse("2026-01-01T00:00:00Z");
    const { call, door, state, steps } = atTheDoor(
      unsafe(() => 1, { timeoutMs: 5000, verify: () => "done" }),
      { now: () => now },
    );
    await door.append({ type: "tool.intent", data: intent });
    applyEvent(state, { type: "run.rescued", data: { worker: null }, at: new Date(now - 2000).toISOString() });
    expect(await call()).toEqual({ kind: "later", ms: 3000 });
    expect(steps).not.toContain("verify");
    door.now = () => now + 3000;
    expect(await call()).toMatchObject({
      kind: "recorded",
      result: { status: "ok", output: "It took effect.", points: 3 },
    });
    expect(steps).toContain("verify");
  });

  it("that `verify` cannot tell about is asked about, and made again only with a new intent", async () => {
    const { call, door, steps, events } = atTheDoor(
      unsafe(() => "paid", { verify: () => Promise.reject(new Error("away")) }),
    );
    await door.append({ type: "tool.intent", data: intent });
    steps.length = 0;
    expect(await call()).toEqual({ kind: "waiting" });
    expect(steps).toEqual(["owned?", "verify", "tool.verified", "approval.requested"]);
    const asked = events.at(-1)!.data as { approval_id: string };
    await door.append({
      type: "approval.decided",
      data: { approval_id: asked.approval_id, decision: "retry", by: "key_a" },
    });
    steps.length = 0;
    expect(await call()).toMatchObject({ kind: "recorded", result: { output: "paid", points: 3 } });
    expect(steps).toEqual(["tool.intent", "owned?", "execute", "tool.result"]);
  });

  it("of a tool that is gone is asked about: nobody else can tell", async () => {
    const { call, door, steps } = atTheDoor(unsafe());
    await door.append({ type: "tool.intent", data: intent });
    door.toolbox = new ToolRegistry().boxFor("default", {});
    expect(await call()).toEqual({ kind: "waiting" });
    expect(steps.at(-1)).toBe("approval.requested");
  });
});

it("the trail has hashes, and no content, of a call", async () => {
  const { call, trail } = atTheDoor(
    unsafe(() => "a secret answer"),
    {},
    { n: 8_154_916_327 },
  );
  await call();
  expect(trail.map(({ action }) => action)).toEqual(["tool.called"]);
  expect(JSON.stringify(trail)).not.toMatch(/secret|8154916327/);
});
