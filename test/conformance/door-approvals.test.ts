/** The one door, over the library and the worker: what a person is asked, and that what runs is what was approved. */
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { call, content, onEveryDoor, policy, recorder } from "./door-suite.ts";
import { person } from "./door-world.ts";

onEveryDoor((suite) => {
  const asked = { status: "waiting", stopReason: null };

  describe("who is asked", () => {
    test("irreversible asks always; the run waits, nothing was begun, the question says what would run", async () => {
      const { executed, tool } = recorder();
      const run = await suite.run({ tools: [tool("send", { permission: "irreversible" })] }, [
        [call("send", { n: 1 })],
      ]);
      expect(run).toMatchObject(asked);
      expect(executed).toEqual([]);
      expect(run.data("tool.intent")).toEqual([]);
      expect(run.open).toMatchObject([
        {
          subject: "call",
          iteration: 1,
          index: 0,
          tool_name: "send",
          input: { what: content, n: 1 },
          on_expiry: "reject",
        },
      ]);
      expect(run.data("run.waiting")).toEqual([{ waiting_for: "approval", approvals: run.open }]);
      const expires = Date.parse(run.open[0]!.expires_at) - Date.now();
      expect(Math.abs(expires - 86_400_000)).toBeLessThan(60_000);
    });

    test.each([
      ["true", () => true, true],
      ["false", () => false, false],
      ["a promise of true", async () => true, true],
      [
        "a throw",
        () => {
          throw new Error("cannot tell");
        },
        true,
      ],
    ])("needsApproval: %s", async (_, needsApproval, asks) => {
      const { executed, tool } = recorder();
      const run = await suite.run({ tools: [tool("pay", { needsApproval })] }, [[call("pay")]]);
      expect(run.status).toBe(asks ? "waiting" : "completed");
      expect(executed).toHaveLength(asks ? 0 : 1);
    });

    test("needsApproval sees the arguments as they would be carried out, and whose run it is", async () => {
      const { tool } = recorder();
      const seen: unknown[] = [];
      const input = z.object({ what: z.string(), amount: z.coerce.number() });
      const needsApproval = (given: unknown, about: unknown) => {
        seen.push(given, about);
        return (given as { amount: number }).amount > 100;
      };
      const run = await suite.run({ tools: [tool("pay", { input, needsApproval })] }, [
        [call("pay", { amount: "250" })],
      ]);
      expect(seen).toEqual([
        { what: content, amount: 250 },
        { runId: run.id, tenant: "default" },
      ]);
      expect(run.open[0]!.input).toEqual({ what: content, amount: 250 });
    });
  });

  describe("what is decided", () => {
    test("approve: it runs once, with these arguments, and the model goes on", async () => {
      const { executed, tool } = recorder();
      const run = await suite.run({ tools: [tool("send", { permission: "irreversible", effect: "unsafe" })] }, [
        [call("send")],
      ]);
      const end = await run.decide(run.open[0]!, { decision: "approve" });
      expect(end.status).toBe("completed");
      expect(executed.map(({ input }) => input)).toEqual([{ what: content }]);
      expect(end.data("approval.decided")).toMatchObject([{ decision: "approve", by: person }]);
      expect(suite.told()).toEqual([JSON.stringify({ got: content })]);
    });

    test("reject: it does not run, the model sees why, and the run goes on", async () => {
      const { executed, tool } = recorder();
      const run = await suite.run({ tools: [tool("send", { permission: "irreversible" })] }, [[call("send")]]);
      const end = await run.decide(run.open[0]!, { decision: "reject", note: "wrong customer" });
      expect(end.status).toBe("completed");
      expect(executed).toEqual([]);
      expect(end.data("tool.result")).toMatchObject([{ status: "rejected", problem: "rejected" }]);
      expect(suite.told()).toEqual(["A person rejected this call: wrong customer"]);
    });

    test("edited arguments are what runs, and what the intent says", async () => {
      const { executed, tool } = recorder();
      const tools = [tool("send", { permission: "irreversible" })];
      const run = await suite.run({ tools }, [[call("send", { n: 1 })]]);
      const end = await run.decide(run.open[0]!, { decision: "approve", editedInput: { what: content, n: 2 } });
      expect(end.status).toBe("completed");
      expect(executed.map(({ input }) => input)).toEqual([{ what: content, n: 2 }]);
      expect(end.data("tool.intent")).toMatchObject([{ input: { what: content, n: 2 } }]);
      expect(end.data("model.call")[0]!.tool_calls[0]!.input).toEqual({ what: content, n: 1 });
    });

    test("edited arguments that do not fit are refused by field; the question stays open", async () => {
      const { executed, tool } = recorder();
      const run = await suite.run({ tools: [tool("send", { permission: "irreversible" })] }, [[call("send")]]);
      await expect(run.decide(run.open[0]!, { decision: "approve", editedInput: { what: 5 } })).rejects.toThrow(
        /edited_input: The arguments are not valid\. what: /,
      );
      await expect(run.decide(run.open[0]!, { decision: "done" })).rejects.toThrow(
        /decision: must be one of approve, reject/,
      );
      const end = await run.decide(run.open[0]!, { decision: "approve" });
      expect(end.status).toBe("completed");
      expect(executed).toHaveLength(1);
    });

    test("edited arguments that a policy redacts are asked about as they would run; then they run, not the model's", async () => {
      const { executed, tool } = recorder();
      const redact = policy(
        "no-pins",
        "arguments",
        { action: "redact", value: { what: "[pin]" }, reason: "a pin" },
        (text) => text.includes("pin 1234"),
      );
      const run = await suite.run({ tools: [tool("send", { permission: "irreversible" })], policies: [redact] }, [
        [call("send")],
      ]);
      const again = await run.decide(run.open[0]!, { decision: "approve", editedInput: { what: "pin 1234" } });
      expect(again.status).toBe("waiting");
      expect(executed).toEqual([]);
      expect(again.open).toMatchObject([{ subject: "call", input: { what: "[pin]" } }]);
      const end = await again.decide(again.open[0]!, { decision: "approve" });
      expect(end.status).toBe("completed");
      expect(executed.map(({ input }) => input)).toEqual([{ what: "[pin]" }]);
    });

    test("edited arguments that a policy blocks do not run, and the log says so", async () => {
      const { executed, tool } = recorder();
      const block = policy("no-bombs", "arguments", { action: "block", reason: "a bomb" }, (text) =>
        text.includes("bomb"),
      );
      const run = await suite.run({ tools: [tool("send", { permission: "irreversible" })], policies: [block] }, [
        [call("send")],
      ]);
      const end = await run.decide(run.open[0]!, { decision: "approve", editedInput: { what: "bomb" } });
      expect(executed).toEqual([]);
      expect(end.data("tool.result")).toMatchObject([{ status: "denied", problem: "policy" }]);
      expect(end.data("policy.applied")).toMatchObject([{ policy: "no-bombs", action: "block" }]);
    });
  });

  describe("several calls in one turn", () => {
    test("the others are done while one waits; the model goes on when all are", async () => {
      const { executed, tool } = recorder();
      const tools = [
        tool("send", { permission: "irreversible" }),
        tool("look", { permission: "read", effect: "pure" }),
        tool("fail", { execute: () => Promise.reject(new Error("no")) }),
      ];
      const run = await suite.run({ tools }, [[call("look"), call("send"), call("fail")]]);
      expect(run).toMatchObject(asked);
      expect(executed.map(({ name }) => name).sort()).toEqual(["fail", "look"]);
      expect(
        run
          .data("tool.result")
          .map(({ tool_name, status }) => [tool_name, status])
          .sort(),
      ).toEqual([
        ["fail", "error"],
        ["look", "ok"],
      ]);
      expect(suite.models.count).toBe(1);
      const end = await run.decide(run.open[0]!, { decision: "approve" });
      expect(end.status).toBe("completed");
      expect(executed.map(({ name }) => name).sort()).toEqual(["fail", "look", "send"]);
      expect(suite.told()).toEqual([JSON.stringify({ got: content }), JSON.stringify({ got: content }), "no"]);
    });

    test("two questions are decided each on its own, in any order; the run goes on after the last", async () => {
      const { executed, tool } = recorder();
      const run = await suite.run({ tools: [tool("send", { permission: "irreversible" })] }, [
        [call("send", { n: 1 }), call("send", { n: 2 })],
      ]);
      expect(run.open).toHaveLength(2);
      const second = run.open.find(({ index }) => index === 1)!;
      const half = await run.decide(second, { decision: "reject", note: "not this one" });
      expect(half).toMatchObject(asked);
      expect(half.open.map(({ index }) => index)).toEqual([0]);
      expect(suite.models.count).toBe(1);
      const end = await half.decide(half.open[0]!, { decision: "approve" });
      expect(end.status).toBe("completed");
      expect(executed.map(({ input }) => input)).toEqual([{ what: content, n: 1 }]);
      expect(suite.told()).toEqual([JSON.stringify({ got: content }), "A person rejected this call: not this one"]);
    });
  });

  describe("what runs is what was approved", () => {
    test("a new version of the tool is asked about anew, and not run on the old approval", async () => {
      const { executed, tool } = recorder();
      const version = (version: string) => ({ tools: [tool("send", { permission: "irreversible", version })] });
      const run = await suite.run(version("1"), [[call("send")]]);
      suite.world.deploy(version("2"));
      const again = await run.decide(run.open[0]!, { decision: "approve" });
      expect(again).toMatchObject(asked);
      expect(executed).toEqual([]);
      expect(again.open).toHaveLength(1);
      expect(again.open[0]!.hash).not.toBe(run.open[0]!.hash);
      const end = await again.decide(again.open[0]!, { decision: "approve" });
      expect(end.status).toBe("completed");
      expect(executed).toHaveLength(1);
    });

    test("another schema that reads the arguments otherwise is asked about anew", async () => {
      const { executed, tool } = recorder();
      const with_ = (input: z.ZodType) => ({ tools: [tool("send", { permission: "irreversible", input })] });
      const run = await suite.run(with_(z.object({ what: z.string(), n: z.number().default(1) })), [[call("send")]]);
      suite.world.deploy(with_(z.object({ what: z.string(), n: z.number().default(100) })));
      const again = await run.decide(run.open[0]!, { decision: "approve" });
      expect(again.status).toBe("waiting");
      expect(again.open).toMatchObject([{ input: { what: content, n: 100 } }]);
      expect(executed).toEqual([]);
    });

    test("a tool that is gone when it is approved is a permission error", async () => {
      const { executed, tool } = recorder();
      const run = await suite.run({ tools: [tool("send", { permission: "irreversible" })] }, [[call("send")]]);
      suite.world.deploy({ tools: [] });
      const end = await run.decide(run.open[0]!, { decision: "approve" });
      expect(end.data("tool.result")).toMatchObject([{ status: "denied", problem: "permission" }]);
      expect(executed).toEqual([]);
    });
  });

  describe("nobody answers", () => {
    test("by default silence is a rejection that the model sees", async () => {
      const { executed, tool } = recorder();
      const run = await suite.run({ tools: [tool("send", { permission: "irreversible" })] }, [[call("send")]]);
      const end = await run.expire(run.open[0]!);
      expect(end.status).toBe("completed");
      expect(executed).toEqual([]);
      expect(end.data("approval.decided")).toMatchObject([{ decision: "expire", by: "system" }]);
      expect(end.data("tool.result")).toMatchObject([{ status: "rejected", problem: "expired" }]);
      expect(suite.told()).toEqual(["Nobody approved this call in time, so it was not made."]);
    });

    test("by the agent's policy it is the end of the run", async () => {
      const { executed, tool } = recorder();
      const agents = { default: { approvals: { expiresAfterSeconds: 3600, onExpiry: "fail" as const } } };
      const run = await suite.run({ tools: [tool("send", { permission: "irreversible" })], agents }, [[call("send")]]);
      expect(Math.abs(Date.parse(run.open[0]!.expires_at) - Date.now() - 3_600_000)).toBeLessThan(60_000);
      const end = await run.expire(run.open[0]!);
      expect(end).toMatchObject({ status: "failed", stopReason: "approval_expired" });
      expect(executed).toEqual([]);
      expect(suite.models.count).toBe(1);
    });
  });
});
