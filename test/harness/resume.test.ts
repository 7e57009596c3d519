/**
 * A run that goes on from its log: cut after every single event, it ends as if nothing had happened, repeats nothing that is
 * finished, and its prompts are the same bytes, so that a provider's cache finds its prefix again.
 */
import type { AnyTool, LogEvent, NewEvent } from "@drover/harness";
import { fold, type RunState } from "@drover/harness/worker";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type ModelServer, type ScriptEntry, startModelServer } from "../support/model-server.ts";
import { anthropic, eventsOf, harnessOn, logFrom, openLog, tool, types } from "./scripted.ts";

let server: ModelServer;
beforeAll(async () => {
  server = await startModelServer();
});
afterAll(() => server.close());
afterEach(() => server.reset());

const usage = { input: 1200, output: 340, cached: 200 };
const call = (turn: number, n: number, name: string) => ({ id: `call_${turn}_${n}`, name, input: { n } });
const turns: ScriptEntry[] = [
  {
    reasoning: "I need both, at once.",
    text: "First I look, and count \u2013 \u65e5\u672c.",
    toolCalls: [call(0, 0, "look"), call(0, 1, "count"), call(0, 2, "look")],
    usage,
  },
  { reasoning: "Now the dangerous one.", toolCalls: [call(1, 0, "pay")], usage },
  { text: "One that fails, one that is not there.", toolCalls: [call(2, 0, "fail"), call(2, 1, "nothing")], usage },
  { reasoning: "That is all.", text: "All done.", usage },
];

/** The same reply whenever the conversation stands where it stands. */
const script = () => server.script(({ turn }) => turns[turn] as never);

/** Four tools of every effect; `ran` names each execution with its key. */
function tools() {
  const ran: string[] = [];
  const keys: string[] = [];
  const of = (name: string, effect: AnyTool["effect"], result: (n: number) => unknown) =>
    tool(
      name,
      ({ n = 0 }, { idempotencyKey, callId }) => {
        ran.push(callId);
        if (effect !== "pure") keys.push(`${callId} ${idempotencyKey}`);
        return result(n);
      },
      { effect },
    );
  const all = [
    of("look", "pure", (n) => ({ zebra: n, aard: ["\u65e5\u672c", { z: 1, a: null }], at: new Date(0) })),
    of("count", "idempotent", () => "three\nof them"),
    of("pay", "unsafe", () => undefined),
    of("fail", "pure", () => {
      throw new Error("it does not work");
    }),
  ];
  return { all, ran, keys };
}

const withoutDurations = (value: unknown): unknown =>
  JSON.parse(JSON.stringify(value, (key, part) => (/^duration/.test(key) ? undefined : part)));

/** What a worker may have written besides the steps; none of it may change what the model sees. */
const noise = (iteration: number): NewEvent[] => [
  { type: "model.partial", data: { iteration, text: "Half a sent" } },
  {
    type: "model.failed",
    data: { iteration, model: "m/m", code: "model_error", message: "it broke", retry_in_ms: null },
  },
  { type: "run.retrying", data: { attempt: 2, delay_ms: 5, error: { code: "model_error", message: "it broke" } } },
  { type: "run.rescued", data: { worker: null } },
  { type: "run.handed_over", data: { worker: "w" } },
];

const wires = [anthropic, "openai/gpt-5.6-terra", "google/gemini-3.8-flash", "house/some-model"];

describe.each(wires)("%s", (model) => {
  const harness = (all: AnyTool[]) => {
    const house = { type: "openai-compatible", baseURL: server.url("openai-compatible") } as const;
    const prices = Object.fromEntries(wires.map((id) => [id, { input: 3, cached: 0.3, output: 15 }]));
    return harnessOn(server, { tools: all, models: { providers: { house }, prices } });
  };
  const options = { model, systemPrompt: "Be careful.", temperature: 1, context: { b: 1, a: [2] } };

  async function whole() {
    script();
    const { all, ran, keys } = tools();
    const log = openLog();
    const result = await harness(all).run("Do everything.", { log, ...options });
    const prompts = server.calls.map(({ rawBody }) => rawBody);
    server.reset();
    expect(result).toMatchObject({ status: "success", output: "All done.", iterations: 4 });
    expect(ran.toSorted()).toEqual(["call_0_0", "call_0_1", "call_0_2", "call_1_0", "call_2_0"]);
    return { log, result, prompts, keys };
  }

  it.each([false, true])("goes on from every prefix of its log (with the traces of a crash: %s)", async (crashed) => {
    const { log, result, prompts, keys } = await whole();
    const { runId } = log;
    for (let length = 1; length <= log.events.length; length++) {
      const prefix = log.events.slice(0, length);
      const modelCalls = eventsOf(prefix, "model.call").length;
      const finished = new Set(eventsOf(prefix, "tool.result").map(({ call_id }) => call_id));
      const begun = eventsOf(prefix, "tool.intent").filter(({ call_id }) => !finished.has(call_id));
      const final = length === log.events.length;
      const before = final || !crashed ? prefix : [...prefix, ...(noise(modelCalls + 1) as LogEvent[])];
      script();
      server.count = modelCalls;
      const { all, ran, keys: newKeys } = tools();
      const resumed = logFrom(before, runId);
      const second = await harness(all).run("another query, not looked at", { log: resumed, model: "nowhere/model" });

      const where = `after ${length} events, the last a ${prefix.at(-1)!.type}`;
      if (begun.some(({ tool_name }) => tool_name === "pay")) {
        expect(second, where).toMatchObject({
          status: "waiting",
          waiting: { waiting_for: "approval", approvals: [{ subject: "uncertain", tool_name: "pay" }] },
        });
        expect([server.calls.length, ran], where).toEqual([0, []]);
        server.reset();
        continue;
      }
      expect(withoutDurations(second), where).toEqual(withoutDurations(result));
      expect(
        server.calls.map(({ rawBody }) => rawBody),
        where,
      ).toEqual(prompts.slice(modelCalls));
      const missing = ["call_0_0", "call_0_1", "call_0_2", "call_1_0", "call_2_0"].filter((id) => !finished.has(id));
      expect(ran.toSorted(), where).toEqual(missing);
      for (const key of newKeys) expect(keys, where).toContain(key);
      const steps = (state: RunState) => withoutDurations({ ...state, partialText: "" });
      expect(steps(fold(resumed.events)), where).toEqual(steps(fold(log.events)));
      expect(
        types(resumed.events).filter((type) => type === "run.completed"),
        where,
      ).toHaveLength(1);
      if (final) expect(resumed.events, where).toEqual(log.events);
      server.reset();
    }
  });

  it("keeps no more of a reply than it must", async () => {
    const { log } = await whole();
    const kept = eventsOf(log.events, "model.call").map(({ messages }) => messages !== undefined);
    if (model === anthropic || model === "house/some-model") expect(kept).toEqual([true, true, false, true]);
    // The query is in the log once: no event repeats the prompt.
    expect(JSON.stringify(log.events).split("Do everything.")).toHaveLength(2);
  });
});

it("an idempotent call that had begun keeps its key, also in a log that knows no run id", async () => {
  server.script([{ toolCalls: [call(0, 0, "count")] }]);
  const first = tools();
  const log = logFrom([]);
  const stop = new AbortController();
  const hang = tool(
    "count",
    (_input, { idempotencyKey }) => {
      first.keys.push(idempotencyKey);
      stop.abort();
      return new Promise(() => {});
    },
    { effect: "idempotent" },
  );
  await harnessOn(server, { tools: [hang] }).run("Count.", { log, signal: stop.signal });
  const events = log.events.slice(0, types(log.events).indexOf("tool.intent") + 1);
  expect(types(events)).toEqual(["run.queued", "run.started", "model.call", "tool.intent"]);

  server.script(["Counted."]);
  const second = tools();
  const result = await harnessOn(server, { tools: second.all }).run("", { log: logFrom(events) });
  expect(result).toMatchObject({ status: "success", output: "Counted." });
  expect(second.keys).toEqual([`call_0_0 ${first.keys[0]}`]);
});

it("a log that does not begin with what was asked is refused", async () => {
  const log = logFrom([{ seq: 1, at: "", type: "run.rescued", data: { worker: null } }]);
  await expect(harnessOn(server).run("Do it.", { log })).rejects.toThrow("begins with run.queued");
});
