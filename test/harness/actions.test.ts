/** The door without a model: `execute` never does what a person must approve, `approveAndExecute` does; both charge exactly what was done. */
import {
  ActionFailed,
  AgentHarness,
  type AnyTool,
  BudgetExhausted,
  CallLimitReached,
  contentHash,
  definePolicy,
  type HarnessConfig,
  HumanApprovalRequired,
  InvalidArguments,
  memoryAudit,
  NothingDone,
  PermissionDenied,
  PolicyBlocked,
  verifyChain,
} from "@drover/harness";
import { describe, expect, it } from "vitest";
import { eventsOf, openLog, tool, types } from "./scripted.ts";

function actionsOf(tools: AnyTool[], actionBudget?: number, config: HarnessConfig = {}) {
  const audit = memoryAudit();
  const log = openLog();
  const harness = new AgentHarness({ env: {}, tools, audit, ...config });
  const actions = harness.actions({ log, ...(actionBudget !== undefined && { actionBudget }) });
  return {
    actions,
    log,
    audit,
    trail: () => audit.entries().map(({ action, actor, data }) => ({ action, actor, data })),
  };
}

const write = { permission: "write", effect: "idempotent" } as const;
const send = { permission: "irreversible", effect: "unsafe", budgetCost: 4 } as const;

describe("execute", () => {
  it("returns the output, charges it, and leaves an intent, a result and an entry", async () => {
    const { actions, log, trail } = actionsOf([tool("add", ({ n = 0 }) => n + 1, { ...write, budgetCost: 3 })], 10);
    expect(await actions.execute("add", { n: 41 })).toBe(42);
    expect(actions.pointsLeft).toBe(7);
    expect(types(log.events)).toEqual(["run.queued", "action.called", "tool.intent", "tool.result"]);
    expect(trail()).toMatchObject([
      {
        action: "tool.called",
        actor: "agent:default",
        data: { tool: "add", status: "ok", arguments: contentHash({ n: 41 }), result: contentHash(42) },
      },
    ]);
  });

  it("throws HumanApprovalRequired for what a person must approve: nothing done, net budget zero", async () => {
    let ran = 0;
    const { actions, log } = actionsOf([tool("send", () => ran++, send)], 10);
    const error = await actions.execute("send", { n: 1 }).catch((thrown) => thrown);
    expect(error).toBeInstanceOf(HumanApprovalRequired);
    expect(error).toMatchObject({ name: "HumanApprovalRequired", actionName: "send", actionArgs: { n: 1 } });
    expect([ran, actions.pointsLeft]).toEqual([0, 10]);
    expect(eventsOf(log.events, "tool.intent")).toEqual([]);
    expect(eventsOf(log.events, "tool.result")[0]).not.toHaveProperty("points");
  });

  it("gives the charge back when the tool says nothing was done, and keeps it when that is not known", async () => {
    const fail = (error: Error) => () => {
      throw error;
    };
    const { actions } = actionsOf(
      [
        tool("early", fail(new NothingDone("no room")), { ...write, budgetCost: 3 }),
        tool("late", fail(new Error("cut off")), { ...write, budgetCost: 3 }),
      ],
      10,
    );
    await expect(actions.execute("early", {})).rejects.toThrow("no room");
    expect(actions.pointsLeft).toBe(10);
    await expect(actions.execute("late", {})).rejects.toThrow("cut off");
    expect(actions.pointsLeft).toBe(7);
  });

  const block = definePolicy({
    name: "no",
    stages: ["arguments"],
    check: () => ({ action: "block", reason: "not here" }),
  });
  it.each([
    ["no such tool", PermissionDenied, [], {}],
    ["arguments that do not fit", InvalidArguments, [tool("it", () => 1)], { n: "x" }],
    ["a policy", PolicyBlocked, [tool("it", () => 1)], {}, { policies: [block] }],
    ["too dear", BudgetExhausted, [tool("it", () => 1, { budgetCost: 11 })], {}],
    ["a tool that throws", ActionFailed, [tool("it", () => Promise.reject(new Error("boom")))], {}],
    ["a tool that takes too long", ActionFailed, [tool("it", () => new Promise(() => {}), { timeoutMs: 5 })], {}],
  ] as [string, typeof ActionFailed, AnyTool[], unknown, HarnessConfig?][])(
    "%s: its own error, nothing charged",
    async (_, kind, tools, input, config) => {
      const { actions } = actionsOf(tools, 10, config);
      const error: Error = await actions.execute("it", input).then(
        () => new Error("it was carried out"),
        (thrown) => thrown,
      );
      expect(error).toBeInstanceOf(kind);
      expect(error.name).toBe(kind.name);
      expect(actions.pointsLeft).toBe(10);
    },
  );

  it("limits of calls hold over all actions, and one action too dear leaves the door open for cheaper ones", async () => {
    const { actions } = actionsOf(
      [
        tool("twice", () => 1, { maxCallsPerRun: 2 }),
        tool("dear", () => 1, { budgetCost: 11 }),
        tool("cheap", () => 1, { budgetCost: 1 }),
      ],
      10,
    );
    await actions.execute("twice", {});
    await actions.execute("twice", {});
    await expect(actions.execute("twice", {})).rejects.toBeInstanceOf(CallLimitReached);
    await expect(actions.execute("dear", {})).rejects.toBeInstanceOf(BudgetExhausted);
    expect(await actions.execute("cheap", {})).toBe(1);
    expect(actions.pointsLeft).toBe(9);
  });

  it("100 at once against 10 points: exactly 10 are made and charged", async () => {
    let ran = 0;
    const { actions, log } = actionsOf([tool("it", async () => ++ran, { ...write, budgetCost: 1 })], 10);
    const results = await Promise.allSettled(Array.from({ length: 100 }, (_, n) => actions.execute("it", { n })));
    const made = results.filter(({ status }) => status === "fulfilled");
    const refused = results.flatMap((result) => (result.status === "rejected" ? [result.reason] : []));
    expect([made.length, ran, actions.pointsLeft]).toEqual([10, 10, 0]);
    for (const reason of refused) expect(reason).toBeInstanceOf(BudgetExhausted);
    const recorded = eventsOf(log.events, "tool.result");
    expect(recorded).toHaveLength(100);
    expect(recorded.reduce((sum, { points = 0 }) => sum + points, 0)).toBe(10);
    expect(new Set(eventsOf(log.events, "tool.intent").map(({ idempotency_key }) => idempotency_key)).size).toBe(10);
  });
});

describe("approveAndExecute", () => {
  it("carries it out, charges it, and says in log and trail who approved what", async () => {
    const { actions, log, trail, audit } = actionsOf([tool("send", ({ n }) => `sent ${n}`, send)], 10);
    const n = 8_154_916_327;
    expect(await actions.approveAndExecute("send", { n }, { by: "maria" })).toBe(`sent ${n}`);
    expect(actions.pointsLeft).toBe(6);
    expect(types(log.events)).toEqual([
      "run.queued",
      "action.called",
      "approval.requested",
      "approval.decided",
      "tool.intent",
      "tool.result",
    ]);
    expect(eventsOf(log.events, "approval.decided")).toMatchObject([{ decision: "approve", by: "maria" }]);
    expect(trail().map(({ action, actor }) => [action, actor])).toEqual([
      ["approval.requested", "agent:default"],
      ["approval.approved", "maria"],
      ["tool.called", "agent:default"],
    ]);
    expect(JSON.stringify(audit.entries())).not.toContain(String(n));
    expect(await verifyChain(audit.entries())).toMatchObject([{ entries: 3, bad: null }]);
  });

  it("charges once for an action that was first refused and then approved", async () => {
    let ran = 0;
    const { actions } = actionsOf([tool("send", () => ++ran, send)], 4);
    await expect(actions.execute("send", {})).rejects.toBeInstanceOf(HumanApprovalRequired);
    expect(await actions.approveAndExecute("send", {}, { by: "maria" })).toBe(1);
    expect(actions.pointsLeft).toBe(0);
    await expect(actions.approveAndExecute("send", {}, { by: "maria" })).rejects.toBeInstanceOf(BudgetExhausted);
    expect(ran).toBe(1);
  });

  it("is no way around the schema, the policies and the permissions", async () => {
    const block = definePolicy({
      name: "no",
      stages: ["arguments"],
      check: (value) => ((value as { n?: number }).n === 13 ? { action: "block", reason: "13" } : { action: "allow" }),
    });
    const { actions } = actionsOf([tool("send", () => 1, send)], 10, { policies: [block] });
    const by = { by: "maria" };
    await expect(actions.approveAndExecute("send", { n: "x" }, by)).rejects.toBeInstanceOf(InvalidArguments);
    await expect(actions.approveAndExecute("send", { n: 13 }, by)).rejects.toBeInstanceOf(PolicyBlocked);
    await expect(actions.approveAndExecute("nobody", {}, by)).rejects.toBeInstanceOf(PermissionDenied);
    expect(actions.pointsLeft).toBe(10);
  });

  it("asks nobody where no person is needed", async () => {
    const { actions, log } = actionsOf([tool("it", () => 1, write)]);
    await actions.approveAndExecute("it", {}, { by: "maria" });
    expect(types(log.events)).not.toContain("approval.requested");
  });
});

it("a result that a policy asks a person about is withheld from the automated path, and given to the one a person stands behind", async () => {
  const ask = definePolicy({
    name: "look",
    stages: ["result"],
    check: () => ({ action: "ask", reason: "a person should look" }),
  });
  const { actions, log } = actionsOf([tool("it", () => "for a person's eyes", write)], 10, { policies: [ask] });
  await expect(actions.execute("it", {})).rejects.toThrow(
    "The call was made; its result is withheld until a person has looked at it.",
  );
  expect(JSON.stringify(log.events)).not.toContain("for a person's eyes");
  expect(await actions.approveAndExecute("it", {}, { by: "maria" })).toBe("for a person's eyes");
});

describe("an action with an id", () => {
  it("is carried out once, however often and by whom it is asked for", async () => {
    let ran = 0;
    const tools = [tool("it", async () => ++ran, { ...write, budgetCost: 1 })];
    const { actions, log } = actionsOf(tools, 10);
    expect(await Promise.all([1, 2, 3].map(() => actions.execute("it", {}, { id: "call_1" })))).toEqual([1, 1, 1]);
    expect(await actions.execute("it", {}, { id: "call_1" })).toBe(1);
    const other = new AgentHarness({ env: {}, tools }).actions({ log, actionBudget: 10 });
    expect(await other.execute("it", {}, { id: "call_1" })).toBe(1);
    expect([ran, other.pointsLeft]).toEqual([1, 9]);
    expect(await other.execute("it", {}, { id: "call_2" })).toBe(2);
  });

  it("that was refused for want of a person is carried out once it is approved", async () => {
    let ran = 0;
    const { actions } = actionsOf([tool("send", () => ++ran, send)], 10);
    await expect(actions.execute("send", {}, { id: "call_1" })).rejects.toBeInstanceOf(HumanApprovalRequired);
    expect(await actions.approveAndExecute("send", {}, { id: "call_1", by: "maria" })).toBe(1);
    expect(await actions.execute("send", {}, { id: "call_1" })).toBe(1);
    expect([ran, actions.pointsLeft]).toEqual([1, 6]);
  });

  it("names one action: asked for again with another name or other arguments, under way or done, it is refused", async () => {
    let ran = 0;
    const tools = [tool("it", async () => ++ran, write), tool("that", async () => ++ran, write)];
    const { actions, log } = actionsOf(tools, 10);
    const first = actions.execute("it", { a: 1, b: 2 }, { id: "call_1" });
    const refused = expect.objectContaining({
      name: "InvalidArguments",
      message: expect.stringContaining('The action id "call_1" was used for it with other arguments'),
    });
    await expect(actions.execute("it", { a: 1, b: 3 }, { id: "call_1" })).rejects.toEqual(refused);
    expect(await actions.execute("it", { b: 2, a: 1 }, { id: "call_1" })).toBe(1);
    await first;
    await expect(actions.execute("that", { a: 1, b: 2 }, { id: "call_1" })).rejects.toEqual(refused);
    const other = new AgentHarness({ env: {}, tools }).actions({ log });
    await expect(other.execute("it", {}, { id: "call_1" })).rejects.toEqual(refused);
    expect(ran).toBe(1);
  });

  it("that was refused for want of a person has not been counted by its rate", async () => {
    const { actions } = actionsOf([tool("send", () => "sent", { ...send, rate: { calls: 1, perSeconds: 600 } })], 10);
    for (let asked = 0; asked < 3; asked++)
      await expect(actions.execute("send", {}, { id: "call_1" })).rejects.toBeInstanceOf(HumanApprovalRequired);
    expect(await actions.approveAndExecute("send", {}, { id: "call_1", by: "maria" })).toBe("sent");
    await expect(actions.approveAndExecute("send", {}, { by: "maria" })).rejects.toBeInstanceOf(CallLimitReached);
    // Nobody is asked about what would not be made.
    await expect(actions.execute("send", {})).rejects.toBeInstanceOf(CallLimitReached);
  });

  it("that a process died in is not repeated in silence when it is unsafe, only when a person says so", async () => {
    let ran = 0;
    const tools = [
      tool("pay", () => (++ran === 1 ? new Promise(() => {}) : "paid"), { permission: "write", effect: "unsafe" }),
    ];
    const { actions, log } = actionsOf(tools);
    void actions.execute("pay", {}, { id: "call_1" }).catch(() => {});
    await expect.poll(() => ran).toBe(1);
    const next = new AgentHarness({ env: {}, tools }).actions({ log });
    await expect(next.execute("pay", {}, { id: "call_1" })).rejects.toBeInstanceOf(HumanApprovalRequired);
    expect(ran).toBe(1);
    expect(await next.approveAndExecute("pay", {}, { id: "call_1", by: "maria" })).toBe("paid");
    expect(ran).toBe(2);
    expect(eventsOf(log.events, "approval.decided")).toMatchObject([{ decision: "retry", by: "maria" }]);
  });
});

it("what the tool does after it was aborted is nobody's business any more", async () => {
  const stop = new AbortController();
  const started = Promise.withResolvers<void>();
  const harness = new AgentHarness({ env: {}, tools: [tool("it", () => new Promise(() => started.resolve()), write)] });
  const actions = harness.actions({ signal: stop.signal, actionBudget: 10 });
  const result = actions.execute("it", {});
  await started.promise;
  stop.abort();
  await expect(result).rejects.toThrow();
});
