/**
 * A run that passes the door in every way, and a process that dies at every single append of it: before the event is written, or after it
 * is and before anybody hears of it. Going on from the log ends as if nothing had happened, and nothing has happened twice.
 */
import { AgentHarness, type AnyTool, type LogEvent, type RunLog } from "@drover/harness";
import { fold } from "@drover/harness/worker";
import { uuidv7 } from "@drover/protocol";
import { afterAll, beforeAll, expect, test } from "vitest";
import { z } from "zod";
import { input } from "../runs/bench.ts";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { call, expectLegal, policy } from "./door-suite.ts";

let models: ModelServer;
beforeAll(async () => {
  models = await startModelServer();
  const turns = [
    [call("look"), call("keep"), call("pay")],
    [call("send"), call("show"), call("refused")],
    [call("pay"), call("keep")],
  ];
  models.script(({ turn }) => (turns[turn] ? { toolCalls: turns[turn] } : "Done."));
});
afterAll(() => models.close());

class Died extends Error {}

/** The world outside: it knows which keys it has seen, and how often. */
function outside() {
  const effects = new Map<string, number>();
  const base = (name: string, more: Partial<AnyTool>): AnyTool => ({
    name,
    description: name,
    input: z.object({ what: z.string() }),
    permission: "write",
    effect: "unsafe",
    budgetCost: 1,
    execute: (_, { idempotencyKey }) => {
      effects.set(`${name} ${idempotencyKey}`, (effects.get(`${name} ${idempotencyKey}`) ?? 0) + 1);
      return { by: name };
    },
    ...more,
  });
  const verify =
    (name: string): AnyTool["verify"] =>
    ({ idempotencyKey }) =>
      effects.has(`${name} ${idempotencyKey}`) ? { done: true, output: { by: name } } : "not_done";
  const tools = [
    base("look", { permission: "read", effect: "pure", untrusted: true }),
    base("keep", { effect: "idempotent" }),
    base("pay", { verify: verify("pay") }),
    base("send", { permission: "irreversible", verify: verify("send") }),
    base("show", { effect: "idempotent" }),
    base("refused", { permission: "irreversible" }),
  ];
  return { tools, effects };
}

async function carry(die?: { at: number; written: boolean }) {
  const { tools, effects } = outside();
  const events: LogEvent[] = [];
  const runId = uuidv7();
  let appends = 0;
  const log: RunLog = {
    runId,
    read: async () => JSON.parse(JSON.stringify(events)),
    append: async (event) => {
      const dies = ++appends === die?.at;
      if (dies && !die?.written) throw new Died();
      const logged = { ...event, seq: events.length + 1, at: new Date().toISOString() } as LogEvent;
      events.push(logged);
      if (dies) throw new Died();
      return logged;
    },
  };
  await log.append({ type: "run.queued", data: input({ action_budget: 20 }) });
  const policies = [
    policy("odd", "input", { action: "flag", reason: "odd" }),
    policy("look", "result", { action: "ask", reason: "a person should look" }, (text) => text.includes('"show"')),
  ];
  const harness = new AgentHarness({ env: models.env(), model: "anthropic/claude-sonnet-4-5", tools, policies });
  const go = () =>
    harness.run("", {
      log,
      approve: ({ tool_name }) => ({ decision: tool_name === "refused" ? "reject" : "approve", by: "key_person" }),
    });
  let deaths = 0;
  const result = await go().catch((error) => {
    if (!(error instanceof Died)) throw error;
    deaths++;
    return go();
  });
  return { result, effects, events, appends, deaths, state: fold(events) };
}

test("dying at every append, before and after it is written", async () => {
  const whole = await carry();
  expect(whole.result).toMatchObject({ status: "success", output: "Done." });
  expect(whole.result.tool_calls.map(({ tool_name, status }) => [tool_name, status])).toEqual([
    ["look", "ok"],
    ["keep", "ok"],
    ["pay", "ok"],
    ["send", "ok"],
    ["show", "ok"],
    ["refused", "rejected"],
    ["pay", "ok"],
    ["keep", "ok"],
  ]);
  expect(whole.state.spentPoints).toBe(7);
  expect([...whole.effects.values()].every((times) => times === 1)).toBe(true);
  const outcome = ({ result }: typeof whole) => ({
    output: result.output,
    calls: result.tool_calls.map(({ tool_name, input, output, status }) => ({ tool_name, input, output, status })),
  });

  for (let at = 2; at <= whole.appends; at++)
    for (const written of [false, true]) {
      const about = `append ${at}, ${written ? "written" : "not written"} (${whole.events[at - 1]!.type})`;
      const crashed = await carry({ at, written });
      expect(crashed.deaths, about).toBe(1);
      expect(outcome(crashed), about).toEqual(outcome(whole));
      expect(crashed.state.spentPoints, about).toBe(7);
      expectLegal(crashed.events);
      for (const [key, times] of crashed.effects) {
        const [name] = key.split(" ");
        // A pure or idempotent call that nobody saw end is made again, with the key it had; the others never are.
        expect(times, `${about}: ${key}`).toBeLessThanOrEqual(["look", "keep", "show"].includes(name!) ? 2 : 1);
      }
      const names = (effects: Map<string, number>) => [...effects.keys()].map((key) => key.split(" ")[0]).sort();
      expect(names(crashed.effects), about).toEqual(names(whole.effects));
      // Nobody is asked twice about one thing.
      const asked = crashed.events.flatMap((event) =>
        event.type === "approval.requested"
          ? [`${event.data.subject} ${event.data.iteration}.${event.data.index}`]
          : [],
      );
      expect(new Set(asked).size, about).toBe(asked.length);
    }
}, 60_000);
