/** The door in somebody else's loop: LangGraph's and the AI SDK's, each as its example does it, with real SDKs against the scripted model server. */
import { type Actions, AgentHarness, memoryAudit, memoryLog, type RunLog } from "@drover/harness";
import { Command, isInterrupted } from "@langchain/langgraph";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { answer } from "../../examples/ai-sdk.ts";
import { bankTools, ledger } from "../../examples/bank-tools.ts";
import { buildGraph } from "../../examples/langgraph.ts";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { anthropic } from "./scripted.ts";

let server: ModelServer;
beforeAll(async () => {
  server = await startModelServer();
});
afterAll(() => server.close());
beforeEach(() => Object.assign(ledger, { balance: 100, limit: 50, frozen: false, paid: [] }));
afterEach(() => server.reset());

function actionsOn(log?: RunLog): { actions: Actions; audit: ReturnType<typeof memoryAudit> } {
  const audit = memoryAudit();
  const harness = new AgentHarness({ tools: bankTools, audit });
  return { actions: harness.actions({ actionBudget: 10, ...(log && { log }) }), audit };
}

/** One turn that changes the limit and pays, side by side; then an answer. */
const payAndRaise = [
  {
    toolCalls: [
      { name: "set_limit", input: { limit: 80 } },
      { name: "send_payment", input: { to: "Ann", amount: 20 } },
      { name: "no_such_tool", input: {} },
    ],
  },
  "Done.",
];
const seen = () => server.calls.at(-1)!.results.map(({ content }) => content);

describe("LangGraph", () => {
  const thread = { configurable: { thread_id: "t" } };
  const env = () => ({ ...server.env(), DROVER_MODEL: anthropic });
  const begin = { messages: [{ role: "user" as const, content: "Pay Ann 20." }] };

  it("pauses by its own interrupt for what cannot be undone, and goes on without doing anything twice", async () => {
    server.script(payAndRaise);
    const { actions, audit } = actionsOn();
    const graph = buildGraph(actions, env());
    const paused: unknown = await graph.invoke(begin, thread);
    if (!isInterrupted<{ action: string; args: unknown }>(paused)) throw new Error("the graph did not pause");
    expect(paused.__interrupt__[0]!.value).toEqual({ action: "send_payment", args: { to: "Ann", amount: 20 } });
    expect(ledger).toMatchObject({ balance: 100, limit: 80 });
    expect(actions.pointsLeft).toBe(9);

    await graph.invoke(new Command({ resume: { approved: true, by: "bob" } }), thread);
    expect(ledger).toMatchObject({ balance: 80, limit: 80 });
    expect(ledger.paid).toHaveLength(1);
    // The node ran twice; the limit was set once.
    const called = audit.entries().filter(({ action, data }) => action === "tool.called" && data.status === "ok");
    expect(called.map(({ data }) => data.tool)).toEqual(["set_limit", "send_payment"]);
    expect(actions.pointsLeft).toBe(6);
    expect(seen()).toEqual([
      '{"before":50,"now":80}',
      '{"sent":20,"to":"Ann"}',
      expect.stringMatching(/^Permission denied/),
    ]);
    expect(audit.entries().find(({ action }) => action === "approval.approved")).toMatchObject({ actor: "bob" });
  });

  it("tells the model what a person rejected, and charges nothing for it", async () => {
    server.script(payAndRaise);
    const { actions } = actionsOn();
    const graph = buildGraph(actions, env());
    await graph.invoke(begin, thread);
    await graph.invoke(new Command({ resume: { approved: false, by: "bob", note: "too much" } }), thread);
    expect(seen()[1]).toBe("A person rejected this call: too much");
    expect(ledger).toMatchObject({ balance: 100, paid: [] });
    expect(actions.pointsLeft).toBe(9);
  });

  it("another process with the same log repeats no action", async () => {
    server.script(payAndRaise);
    const log = memoryLog();
    await buildGraph(actionsOn(log).actions, env()).invoke(begin, thread);
    server.reset();
    server.script(payAndRaise);
    const later = actionsOn(log);
    const graph = buildGraph(later.actions, env());
    await graph.invoke(begin, thread);
    await graph.invoke(new Command({ resume: { approved: true, by: "bob" } }), thread);
    const ok = (await log.read()).filter(
      ({ type, data }) => type === "tool.result" && "status" in data && data.status === "ok",
    );
    expect(ok).toHaveLength(2);
    expect(later.actions.pointsLeft).toBe(6);
  });
});

describe("the AI SDK's own loop", () => {
  const baseURL = () => `${server.env().ANTHROPIC_BASE_URL}`;
  const withKey = async <T>(work: () => Promise<T>): Promise<T> => {
    const before = process.env.ANTHROPIC_API_KEY;
    process.env.ANTHROPIC_API_KEY = server.env().ANTHROPIC_API_KEY;
    try {
      return await work();
    } finally {
      if (before === undefined) delete process.env.ANTHROPIC_API_KEY;
      else process.env.ANTHROPIC_API_KEY = before;
    }
  };

  it("passes the door for every call, and asks a person in place", async () => {
    server.script(payAndRaise);
    const { actions } = actionsOn();
    const asked: unknown[] = [];
    const ask = async (name: string, args: unknown) => {
      asked.push([name, args]);
      return { approved: true, by: "bob" };
    };
    expect(await withKey(() => answer("Pay Ann 20.", actions, ask, baseURL()))).toBe("Done.");
    expect(asked).toEqual([["send_payment", { to: "Ann", amount: 20 }]]);
    expect(ledger).toMatchObject({ balance: 80, limit: 80 });
    expect(actions.pointsLeft).toBe(6);
  });

  it("a refusal is a result that the model sees", async () => {
    server.script([{ toolCalls: [{ name: "send_payment", input: { to: "Ann", amount: 20 } }] }, "Then not."]);
    const { actions } = actionsOn();
    const ask = async () => ({ approved: false, by: "bob" });
    expect(await withKey(() => answer("Pay Ann 20.", actions, ask, baseURL()))).toBe("Then not.");
    expect(seen()).toEqual(["A person rejected this call."]);
    expect(ledger.balance).toBe(100);
  });
});
