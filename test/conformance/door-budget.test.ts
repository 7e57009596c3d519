/** The one door, over the library and the worker: points and money are set aside, charged and given back; and what happens at the cap. */
import { type AnyTool, NothingDone, type Policy } from "@drover/harness";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { call, content, onEveryDoor, policy, recorder } from "./door-suite.ts";

onEveryDoor((suite) => {
  const boom = (error: Error) => () => {
    throw error;
  };

  describe("points", () => {
    /** One call that costs 3 of 10, then one that needs `rest`: it is made if, and only if, so much is left. */
    const left = async (
      first: Partial<AnyTool>,
      { policies = [], input = {} }: { policies?: Policy[]; input?: Record<string, unknown> } = {},
    ) => {
      const { executed, tool } = recorder();
      const tools = [tool("first", { budgetCost: 3, ...first }), tool("ten", { budgetCost: 10 })];
      const run = await suite.run({ tools, policies }, [[call("first", input)], [call("ten")]], { action_budget: 10 });
      return { run, executed: executed.map(({ name }) => name), result: run.data("tool.result")[0]! };
    };

    test("a call that went well is charged", async () => {
      const { run, result, executed } = await left({});
      expect(result).toMatchObject({ status: "ok", points: 3 });
      expect(executed).toEqual(["first"]);
      expect(run).toMatchObject({ status: "partial", stopReason: "budget" });
    });

    test.each([
      ["a pure call that failed", { effect: "pure", execute: boom(new Error("no")) }, {}],
      ["NothingDone", { effect: "unsafe", execute: boom(new NothingDone("not even begun")) }, {}],
      ["arguments that do not fit", {}, { n: "x" }],
    ] as const)("%s: not charged", async (what, more, input) => {
      const { run, result, executed } = await left(more, { input });
      expect(result).toMatchObject({ status: "error" });
      expect(result).not.toHaveProperty("points");
      if (what === "NothingDone") expect(result).toHaveProperty("problem", "nothing_done");
      expect(executed.at(-1)).toBe("ten");
      expect(run.status).toBe("completed");
    });

    test("a pure call whose output does not fit is not charged either: it had no effect", async () => {
      const { run } = await left({ effect: "pure", output: z.object({ never: z.string() }) });
      expect(run.data("tool.result")[0]).toMatchObject({ status: "error" });
      expect(run.data("tool.result")[0]).not.toHaveProperty("points");
      expect(run.status).toBe("completed");
    });

    test.each(["idempotent", "unsafe"] as const)(
      "an %s call that failed is charged: it may have had its effect",
      async (effect) => {
        const { run, result } = await left({ effect, execute: boom(new Error("connection lost")) });
        expect(result).toMatchObject({ status: "error", points: 3 });
        expect(run.stopReason).toBe("budget");
      },
    );

    test("a denied call is not charged", async () => {
      const block = policy("no", "arguments", { action: "block", reason: "no" }, (text) => text.includes("stop me"));
      const { result, executed } = await left({}, { policies: [block], input: { what: "stop me" } });
      expect(result).toMatchObject({ status: "denied", problem: "policy" });
      expect(executed).toEqual(["ten"]);
    });

    test("a result that a policy withholds is charged: the call was made", async () => {
      const block = policy("no", "result", { action: "block", reason: "no" }, (text) => text.includes(content));
      const { result, executed } = await left({}, { policies: [block] });
      expect(result).toMatchObject({ status: "denied", problem: "withheld", points: 3 });
      expect(executed).toEqual(["first"]);
    });

    test("a call that waits for a person holds nothing back from the others; rejected, it costs nothing, approved, it does", async () => {
      const { executed, tool } = recorder();
      const tools = [tool("send", { permission: "irreversible", budgetCost: 6 }), tool("write", { budgetCost: 6 })];
      const run = await suite.run({ tools }, [[call("send"), call("write")], [call("send", { n: 2 })]], {
        action_budget: 12,
      });
      expect(executed.map(({ name }) => name)).toEqual(["write"]);
      const after = await run.decide(run.open[0]!, { decision: "reject" });
      expect(after.status).toBe("waiting");
      const end = await after.decide(after.open[0]!, { decision: "approve" });
      expect(end.status).toBe("completed");
      expect(end.data("tool.result").map(({ tool_name, points }) => [tool_name, points])).toEqual([
        ["write", 6],
        ["send", undefined],
        ["send", 6],
      ]);
    });

    test("calls of one turn share what is left: it is never overdrawn", async () => {
      const { executed, tool } = recorder();
      const calls = Array.from({ length: 6 }, (_, n) => call("write", { n }));
      const run = await suite.run({ tools: [tool("write", { budgetCost: 3 })] }, [calls], { action_budget: 10 });
      expect(executed).toHaveLength(3);
      const results = run.data("tool.result");
      expect(results.filter(({ status }) => status === "ok")).toHaveLength(3);
      expect(results.filter(({ problem }) => problem === "budget")).toHaveLength(3);
      expect(run).toMatchObject({ status: "partial", stopReason: "budget" });
    });

    test("at the cap, `stop`: the call is skipped, the model wraps up without tools, the run is partial", async () => {
      const { executed, tool } = recorder();
      const tools = [tool("write", { budgetCost: 6 })];
      const run = await suite.run({ tools }, [[call("write")], [call("write")], [call("write")]], {
        action_budget: 10,
      });
      expect(run).toMatchObject({ status: "partial", stopReason: "budget" });
      expect(executed).toHaveLength(1);
      expect(run.data("tool.result")[1]).toMatchObject({ status: "skipped", problem: "budget" });
      expect(run.data("model.call").at(-1)).toMatchObject({
        wrap_up: true,
        wrap_up_for: "budget",
        text: "What there is.",
        tool_calls: [],
      });
      expect(run.data("run.partial")).toMatchObject([
        { output: "What there is.", error: { message: expect.stringMatching(/6 of its 10 action points/) } },
      ]);
    });

    test("at the cap, `pause`: it waits, and goes on with that very call when more is given", async () => {
      const { executed, tool } = recorder();
      const tools = [tool("write", { budgetCost: 6 })];
      const turns = [[call("write", { n: 1 })], [call("write", { n: 2 })]];
      const run = await suite.run({ tools }, turns, { action_budget: 10, on_budget: "pause" });
      expect(run.status).toBe("waiting");
      expect(run.data("run.waiting")).toEqual([{ waiting_for: "budget", level: "actions" }]);
      expect(executed).toHaveLength(1);
      const end = await run.raise({ action_budget: 12 });
      expect(end.status).toBe("completed");
      expect(executed.map(({ input }) => (input as { n: number }).n)).toEqual([1, 2]);
      expect(end.data("model.call")).toHaveLength(3);
    });

    test("paused with a question open: the person is told, and what they approve is done before there is more", async () => {
      const { executed, tool } = recorder();
      const tools = [tool("send", { permission: "irreversible" }), tool("dear", { budgetCost: 20 })];
      const limits = { action_budget: 10, on_budget: "pause" as const };
      const run = await suite.run({ tools }, [[call("send"), call("dear")]], limits);
      expect(run.data("run.waiting")).toEqual([{ waiting_for: "budget", level: "actions", approvals: run.open }]);
      expect(run.open).toHaveLength(1);
      const half = await run.decide(run.open[0]!, { decision: "approve" });
      expect(half.status).toBe("waiting");
      expect(half.data("run.waiting").at(-1)).toEqual({ waiting_for: "budget", level: "actions" });
      expect(executed.map(({ name }) => name)).toEqual(["send"]);
      const end = await half.raise({ action_budget: 20 });
      expect(end.status).toBe("completed");
      expect(executed.map(({ name }) => name)).toEqual(["send", "dear"]);
    });

    test("paused in the middle of a turn: what could be done is done once", async () => {
      const { executed, tool } = recorder();
      const tools = [tool("write", { budgetCost: 6 })];
      const calls = [call("write", { n: 1 }), call("write", { n: 2 })];
      const run = await suite.run({ tools }, [calls], { action_budget: 10, on_budget: "pause" });
      expect(run.status).toBe("waiting");
      const end = await run.raise({ action_budget: 12 });
      expect(end.status).toBe("completed");
      expect(executed.map(({ input }) => (input as { n: number }).n).sort()).toEqual([1, 2]);
    });
  });

  describe("money of the run", () => {
    // claude-sonnet-4-5: 3 USD per million tokens in, 15 out.
    const usage = { input: 100, output: 800 };
    const costOfOne = (100 * 3 + 800 * 15) / 1e6;

    test("the reply's length is lowered to what is left, and below 256 tokens the cap is reached: wrap-up, partial", async () => {
      const { executed, tool } = recorder();
      const run = await suite.run(
        { tools: [tool("write")] },
        Array(9).fill([call("write")]),
        { max_cost_usd: 0.05, max_tokens: 2000 },
        usage,
      );
      expect(run).toMatchObject({ status: "partial", stopReason: "budget" });
      const asked = suite.models.calls.map(({ body }) => body.max_tokens as number);
      expect(asked[0]).toBe(2000);
      // The wrap-up turn may use what was kept back for it.
      const turns = asked.slice(0, -1);
      expect(turns).toEqual(turns.toSorted((a, b) => b - a));
      expect(turns.at(-1)).toBeGreaterThanOrEqual(256);
      expect(turns.at(-1)).toBeLessThan(2000);
      const spent = run.data("model.call").reduce((sum, { cost_usd }) => sum + cost_usd!, 0);
      expect(spent).toBeLessThanOrEqual(0.05);
      expect(spent).toBeGreaterThan(0.05 - costOfOne);
      expect(run.data("model.call").at(-1)).toMatchObject({ wrap_up: true, wrap_up_for: "budget" });
      expect(executed).toHaveLength(run.data("model.call").length - 1);
    });

    test("`pause` waits before the call that is not paid for, and makes it when there is more", async () => {
      const { tool } = recorder();
      const run = await suite.run(
        { tools: [tool("write")] },
        [[call("write")], [call("write")]],
        { max_cost_usd: 0.02, on_budget: "pause" },
        usage,
      );
      expect(run.data("run.waiting")).toEqual([{ waiting_for: "budget", level: "run" }]);
      const before = suite.models.count;
      expect(before).toBeLessThan(3);
      const end = await run.raise({ max_cost_usd: 1 });
      expect(end.status).toBe("completed");
      expect(suite.models.count).toBe(3);
    });

    test("a capped run on a model without a price is refused before any call", async () => {
      const run = await suite.run({ tools: [] }, [], { max_cost_usd: 1, model: "ollama/some-model" });
      expect(run).toMatchObject({ status: "failed", stopReason: "price_unknown" });
      expect(suite.models.count).toBe(0);
    });

    test("without a cap such a model is used, and its cost is unknown, not 0", async () => {
      const run = await suite.run({ tools: [] }, [], { model: "ollama/some-model" });
      expect(run.status).toBe("completed");
      expect(run.data("model.call")).toMatchObject([{ cost_usd: null }]);
    });
  });
});
