/** Money in the library: one cap over all runs of a harness, whatever becomes of each. */
import type { HarnessConfig, LogEvent } from "@drover/harness";
import { memoryBudget } from "@drover/harness/worker";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { createGate, type ModelServer, startModelServer } from "../support/model-server.ts";
import { harnessOn, openLog } from "./scripted.ts";

let server: ModelServer;
beforeAll(async () => {
  server = await startModelServer();
});
afterAll(() => server.close());
afterEach(() => server.reset());

const model = "anthropic/claude-sonnet-4-5";
/** 3 USD per million tokens in, 15 out. */
const usdOf = (input: number, output: number) => (input * 3 + output * 15) / 1e6;
const harness = (config: HarnessConfig) => harnessOn(server, { model, ...config });
/** Nobody writes more than it was asked for. */
const answers = () =>
  server.script(({ body }) => ({ text: "an answer", usage: { input: 20, output: Number(body.max_tokens) } }));

describe("budgetUsd", () => {
  it("is shared by runs side by side and never overdrawn; who gets nothing any more says so", async () => {
    answers();
    const budgetUsd = usdOf(500, 3000);
    const all = harness({ budgetUsd });
    const results = await Promise.all(Array.from({ length: 40 }, () => all.run("Do it.", { maxTokens: 400 })));
    const spent = results.reduce((sum, { cost_usd }) => sum + cost_usd!, 0);
    expect(spent).toBeLessThanOrEqual(budgetUsd);
    expect(spent).toBeGreaterThan(budgetUsd - usdOf(500, 400));
    const refused = results.filter(({ status }) => status === "error");
    expect(refused.length).toBeGreaterThan(30);
    for (const { stop_reason } of refused) expect(stop_reason).toBe("budget");
  });

  it("gets back what a run had set aside when its log breaks under it", async () => {
    const gate = createGate();
    server.script([{ text: "never written", gate }, { text: "an answer" }]);
    const all = harness({ budgetUsd: usdOf(2000, 500) });
    const broken = {
      ...openLog(),
      append: async (event: { type: string }): Promise<LogEvent> => {
        if (event.type === "model.call") throw new Error("the disk is full");
        return { ...event, seq: 1, at: new Date().toISOString() } as LogEvent;
      },
    };
    const first = all.run("Do it.", { log: broken, maxTokens: 400 });
    await gate.arrived();
    const second = all.run("Do it.", { maxTokens: 400 });
    gate.open();
    await expect(first).rejects.toThrow("the disk is full");
    expect(await second).toMatchObject({ status: "success", output: "an answer" });
  });

  it("a run that waits for money others hold can be cancelled", async () => {
    const gate = createGate();
    server.script([{ text: "an answer", gate }]);
    const all = harness({ budgetUsd: usdOf(2000, 500) });
    const first = all.run("Do it.", { maxTokens: 400 });
    await gate.arrived();
    const cancel = new AbortController();
    const second = all.run("Do it.", {
      maxTokens: 400,
      signal: cancel.signal,
      onEvent: ({ type }) => type === "run.started" && setImmediate(() => cancel.abort()),
    });
    expect(await second).toMatchObject({ status: "error", error: { code: "cancelled" } });
    gate.open();
    expect((await first).status).toBe("success");
    expect(server.count).toBe(1);
  });

  it("a model without a price is refused, and a call that did not say what it cost ends a capped run", async () => {
    server.script([{ text: "an answer" }]);
    expect(await harness({ budgetUsd: 1, model: "ollama/some-model" }).run("Do it.")).toMatchObject({
      status: "error",
      stop_reason: "price_unknown",
    });
    expect(server.count).toBe(0);
  });
});

describe("memoryBudget", () => {
  const never = new AbortController().signal;

  it("grants what is left, waits for what others hold, and says when it is spent", async () => {
    const budget = memoryBudget(100);
    const [one, two] = [budget.share(never), budget.share(never)];
    expect(await one.reserve(80, 10)).toEqual({ granted: 80 });
    expect(await two.reserve(80, 10)).toEqual({ granted: 20 });
    await two.settle(5);
    const waiting = two.reserve(80, 60);
    await one.settle(30);
    expect(await waiting).toEqual({ granted: 65 });
    await two.settle(65);
    expect(budget.usedNanos).toBe(100);
    expect(await one.reserve(1, 1)).toEqual({ exhausted: "tenant_month" });
    await one.settle(0);
    expect(budget.usedNanos).toBe(100);
  });
});
