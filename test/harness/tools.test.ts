/**
 * The one door: whatever a tool is given, does or gives back, the model sees a result and the run goes on. Over 500 lines
 * because every stage needs the same calls.
 */
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type AnyTool,
  definePolicy,
  type HarnessConfig,
  type HarnessResult,
  type LogEvent,
  memoryArtifacts,
  memoryLog,
  type ToolContext,
} from "@drover/harness";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { z } from "zod";
import { type ModelServer, type ScriptedReply, startModelServer } from "../support/model-server.ts";
import { eventsOf, harnessOn, openLog, tool, types } from "./scripted.ts";

let server: ModelServer;
beforeAll(async () => {
  server = await startModelServer();
});
afterAll(() => server.close());
afterEach(() => server.reset());

/** One turn with these calls, then an answer; what the model saw of the results is `seen`. */
async function turn(
  tools: AnyTool[],
  toolCalls: ScriptedReply["toolCalls"],
  config: HarnessConfig = {},
): Promise<{ result: HarnessResult; events: LogEvent[]; seen: string[] }> {
  server.script([{ toolCalls }, "Done."]);
  const log = openLog();
  const result = await harnessOn(server, { tools, ...config }).run("Do it.", { log });
  expect(result).toMatchObject({ status: "success", output: "Done." });
  return { result, events: log.events, seen: server.calls.at(-1)!.results.map(({ content }) => content) };
}

/** One call of one tool. */
async function one(execute: AnyTool["execute"], more: Partial<AnyTool> = {}, input: unknown = { n: 1 }) {
  const { result, events, seen } = await turn([tool("it", execute, more)], [{ name: "it", input }]);
  return { call: result.tool_calls[0]!, event: eventsOf(events, "tool.result")[0]!, seen: seen[0]!, events };
}

describe("several calls in one turn", () => {
  it("run at the same time, and stand in the order of the calls whatever their order of ending", async () => {
    const started = [1, 2, 3].map(() => Promise.withResolvers<void>());
    const ended = [1, 2, 3].map(() => Promise.withResolvers<void>());
    const both = tool("both", async ({ n = 0 }) => {
      started[n]!.resolve();
      await Promise.all(started.map(({ promise }) => promise));
      // The last one ends first.
      await ended[n + 1]?.promise;
      return `result ${n}`;
    });
    const log = openLog();
    server.script([{ toolCalls: [0, 1, 2].map((n) => ({ name: "both", input: { n } })) }, "Done."]);
    const result = await harnessOn(server, { tools: [both] }).run("Do it.", {
      log,
      onEvent: (event) => {
        if (event.type === "tool.result") ended[event.data.index]!.resolve();
      },
    });
    expect(eventsOf(log.events, "tool.result").map(({ index }) => index)).toEqual([2, 1, 0]);
    expect(result.tool_calls.map((call) => call.output)).toEqual(["result 0", "result 1", "result 2"]);
    expect(server.calls[1]!.results).toEqual([0, 1, 2].map((n) => ({ id: `call_0_${n}`, content: `result ${n}` })));
  });

  it("may be fifty, without a warning about listeners", async () => {
    const warnings: Error[] = [];
    const onWarning = (warning: Error) => warnings.push(warning);
    process.on("warning", onWarning);
    const { result } = await turn(
      [tool("it", ({ n }) => n)],
      Array.from({ length: 50 }, (_, n) => ({ name: "it", input: { n } })),
    );
    process.off("warning", onWarning);
    expect(result.tool_calls.map((call) => call.output)).toEqual(Array.from({ length: 50 }, (_, n) => n));
    expect(warnings).toEqual([]);
  });

  it("one failing leaves the others alone", async () => {
    const picky = tool("it", ({ n }) => {
      if (n === 1) throw new Error("not this one");
      return n;
    });
    const { result } = await turn(
      [picky],
      [0, 1, 2].map((n) => ({ name: "it", input: { n } })),
    );
    expect(result.tool_calls.map((call) => [call.status, call.output])).toEqual([
      ["ok", 0],
      ["error", "not this one"],
      ["ok", 2],
    ]);
  });

  it("may have the same id, as some servers give them", async () => {
    let ran = 0;
    server.script([{ toolCalls: [0, 1].map((n) => ({ id: "call", name: "it", input: { n } })) }, "Done."]);
    const house = { type: "openai-compatible", baseURL: server.url("openai-compatible") } as const;
    const counting = tool("it", ({ n }) => {
      ran++;
      return n;
    });
    const harness = harnessOn(server, { tools: [counting], models: { providers: { house } } });
    const result = await harness.run("Do it.", { model: "house/some-model" });
    expect(result.tool_calls.map((call) => call.output)).toEqual([0, 1]);
    expect(server.calls[1]!.results.map(({ content }) => content)).toEqual(["0", "1"]);
    expect(ran).toBe(2);
  });
});

describe("calls that cannot be carried out", () => {
  it("an unknown tool and one of another agent are the same permission error, which names no other tool", async () => {
    const secret = tool("secret", () => 1);
    const config = { agents: { default: { tools: ["public"] } } };
    const calls = [
      { name: "its", input: {} },
      { name: "secret", input: {} },
    ];
    const { result, seen } = await turn([tool("public", () => 1), secret], calls, config);
    expect(result.tool_calls.map(({ status }) => status)).toEqual(["denied", "denied"]);
    expect(seen[0]!.replace("its", "secret")).toBe(seen[1]);
    expect(seen.join()).not.toContain("public");
  });

  it("a tool of another agent is unknown to this one", async () => {
    let ran = false;
    const secret = tool("secret", () => {
      ran = true;
    });
    const config = { agents: { default: { tools: ["it"] } } };
    const { seen } = await turn([tool("it", () => 1), secret], [{ name: "secret", input: {} }], config);
    expect(seen[0]).toMatch(/no tool "?secret/);
    expect(ran).toBe(false);
  });

  it("arguments of the wrong shape: the model is told which", async () => {
    let ran = false;
    const strict = tool(
      "it",
      () => {
        ran = true;
      },
      { input: z.object({ path: z.string(), deep: z.object({ n: z.number().max(5) }) }) },
    );
    const { seen, result } = await turn([strict], [{ name: "it", input: { deep: { n: 9 } } }]);
    expect(seen[0]).toMatch(/arguments are not valid.*path: .*deep\.n: /);
    expect(result.tool_calls[0]!.status).toBe("error");
    expect(ran).toBe(false);
  });

  it("arguments that are no JSON", async () => {
    const { seen, result } = await turn([tool("it", () => 1)], [{ name: "it", rawInput: '{"n": 1' }]);
    expect(seen[0]).toMatch(/not valid JSON/);
    expect(result.tool_calls[0]!.status).toBe("error");
  });

  it("a schema whose own code throws", async () => {
    const input = z.object({ n: z.number().transform(() => JSON.parse("{")) });
    const { call } = await one(() => 1, { input });
    expect(call).toMatchObject({ status: "error", output: expect.stringMatching(/could not be checked: .*JSON/) });
  });
});

describe("what a tool is given", () => {
  it("its input as the schema makes it: defaults, transforms, asynchronous checks", async () => {
    const input = z.object({
      n: z.number().transform((n) => n * 10),
      unit: z.string().default("m"),
      name: z.string().refine(async (name) => name === "ok"),
    });
    const { call } = await one((given) => given, { input }, { n: 4, name: "ok" });
    expect(call.output).toEqual({ n: 40, unit: "m", name: "ok" });
    expect(call.input).toEqual({ n: 4, name: "ok" });
  });

  it("an input it may change without changing what the model said", async () => {
    const input = z.object({ inner: z.looseObject({}) });
    const { call, seen } = await one(
      (given) => {
        given.inner.list.push("mine");
        return given;
      },
      { input },
      { inner: { list: [1] } },
    );
    expect(call.output).toEqual({ inner: { list: [1, "mine"] } });
    expect(call.input).toEqual({ inner: { list: [1] } });
    expect(seen).toContain("mine");
    expect(server.calls[1]!.messages.flatMap((m) => m.toolCalls)[0]!.input).toEqual({ inner: { list: [1] } });
  });

  it("a workspace of its own, an idempotency key of its own, the model's id of the call", async () => {
    const workspace = await mkdtemp(join(tmpdir(), "drover-tools-"));
    const contexts: ToolContext[] = [];
    const keep = tool("it", async (_input, context) => {
      contexts.push(context);
      await writeFile(join(context.workspace, "kept.txt"), "kept");
    });
    const { result } = await turn([keep], [{ name: "it" }, { name: "it" }], { workspace });
    expect(await readFile(join(workspace, "kept.txt"), "utf8")).toBe("kept");
    await rm(workspace, { recursive: true });
    expect(new Set(contexts.map(({ idempotencyKey }) => idempotencyKey)).size).toBe(2);
    for (const [n, context] of contexts.entries()) {
      expect(context).toMatchObject({ callId: `call_0_${n}`, tenant: "default", workspace });
      expect(`run_${context.runId.replaceAll("-", "")}`).toBe(result.task_id);
      expect(context.signal.aborted).toBe(false);
    }
  });

  it("two runs have two workspaces when none is configured", async () => {
    const folders: string[] = [];
    const remember = tool("it", (_input, { workspace }) => void folders.push(workspace));
    for (let n = 0; n < 2; n++) await turn([remember], [{ name: "it" }]);
    expect(new Set(folders).size).toBe(2);
  });
});

describe("what a tool gives back", () => {
  class Point {
    x = 1;
    #hidden = 2;
    get sum() {
      return this.x + this.#hidden;
    }
  }
  const circular: Record<string, unknown> = {};
  circular.self = circular;

  it.each<[string, unknown, unknown, string]>([
    ["text", "plain", "plain", "plain"],
    ["an empty text", "", "", ""],
    ["undefined", undefined, null, "null"],
    ["null", null, null, "null"],
    ["false", false, false, "false"],
    ["an object", { a: [1, { b: null }] }, { a: [1, { b: null }] }, '{"a":[1,{"b":null}]}'],
    ["an object with undefined in it", { a: undefined, b: 1 }, { b: 1 }, '{"b":1}'],
    ["a number that is none", { n: Number.NaN }, { n: null }, '{"n":null}'],
    ["a date", new Date(0), "1970-01-01T00:00:00.000Z", "1970-01-01T00:00:00.000Z"],
    ["a date inside", { at: new Date(0) }, { at: "1970-01-01T00:00:00.000Z" }, '{"at":"1970-01-01T00:00:00.000Z"}'],
    ["an instance of a class", new Point(), { x: 1 }, '{"x":1}'],
    ["half a character", "x\ud83d", "x\ufffd", "x\ufffd"],
  ])("%s", async (_what, output, logged, told) => {
    const { event, seen, events } = await one(() => output);
    expect(event).toMatchObject({ status: "ok", output: logged });
    expect(JSON.parse(JSON.stringify(events))).toEqual(events);
    expect(seen).toBe(told);
  });

  it.each<[string, unknown, RegExp]>([
    ["a function", () => 1, /not JSON/],
    ["a symbol", Symbol("x"), /not JSON/],
    ["a bigint", 1n, /not JSON: .*BigInt/],
    ["a circle", circular, /not JSON: .*circular/i],
    [
      "something that refuses",
      {
        toJSON: () => {
          throw new Error("no JSON of mine");
        },
      },
      /not JSON: no JSON of mine/,
    ],
  ])("%s is an error the model sees", async (_what, output, told) => {
    const { call, seen } = await one(() => output);
    expect(call.status).toBe("error");
    expect(seen).toMatch(told);
  });

  it("JSON nested deeper than others can read is kept as its text", async () => {
    let deep: unknown = "core";
    for (let level = 0; level < 1000; level++) deep = [deep];
    const { event, seen } = await one(() => deep);
    expect(event.output).toBe(`${"[".repeat(1000)}"core"${"]".repeat(1000)}`);
    expect(seen).toBe(event.output);
    let flat: unknown = "core";
    for (let level = 0; level < 50; level++) flat = [flat];
    expect((await one(() => flat)).event.output).toEqual(flat);
  });

  it.each<[string, unknown]>([
    ["text", "\u00e9".repeat(500)],
    ["an object", { text: "\u00e9".repeat(500) }],
  ])("%s that is too large is cut at a whole character, and says so", async (_what, output) => {
    const { event, seen } = await one(() => output, { maxOutputBytes: 101 });
    expect(event).toMatchObject({ status: "ok", truncated: true });
    const [kept, notice] = String(event.output).split("\n[cut: ");
    expect(Buffer.byteLength(kept!)).toBeLessThanOrEqual(101);
    expect(Buffer.byteLength(kept!)).toBeGreaterThan(98);
    expect(kept).not.toContain("\ufffd");
    expect(notice).toMatch(/^\d+ bytes, the first 101 are shown\]$/);
    expect(seen).toBe(event.output);
  });

  it.each<[string, unknown, string]>([
    ["JSON", { text: "\u00e9".repeat(500) }, "application/json"],
    ["text", "\u00e9".repeat(500), "text/plain"],
  ])("what is cut is kept whole, where something keeps it: %s", async (_what, output, type) => {
    const artifacts = memoryArtifacts();
    const { result, events, seen } = await turn(
      [tool("it", () => output, { maxOutputBytes: 100 }), tool("small", () => 1)],
      [{ name: "it" }, { name: "small" }],
      { artifacts },
    );
    const [event, small] = eventsOf(events, "tool.result").sort((a, b) => a.index - b.index);
    const whole = typeof output === "string" ? output : JSON.stringify(output);
    const { id } = event!.artifact!;
    expect(event!.artifact).toEqual({ id, bytes: Buffer.byteLength(whole), type });
    expect(artifacts.get(id)).toBe(whole);
    expect(seen[0]).toMatch(new RegExp(`shown; the whole is kept as artifact ${id}\\]$`));
    expect(seen[0]).toBe(result.tool_calls[0]!.output);
    expect(small).not.toHaveProperty("artifact");
  });

  it("of more than 16 MiB the beginning is kept, and that is said", async () => {
    const artifacts = memoryArtifacts();
    const { events, seen } = await turn([tool("it", () => "x".repeat(2 ** 24 + 1))], [{ name: "it" }], { artifacts });
    const { artifact } = eventsOf(events, "tool.result")[0]!;
    expect(artifact).toEqual({ id: artifact!.id, bytes: 2 ** 24, type: "text/plain", cut: true });
    expect(artifacts.get(artifact!.id)).toBe("x".repeat(2 ** 24));
    expect(seen[0]).toMatch(
      /\[cut: more than 16777216 bytes, the first 65536 are shown; the first 16777216 are kept as artifact [0-9a-f]{64}\]$/,
    );
  });

  it("nothing is kept where a policy looks at results: it would not have seen it", async () => {
    const artifacts = { put: vi.fn(async () => "id") };
    const policies = [definePolicy({ name: "none", stages: ["result"], check: () => ({ action: "allow" }) })];
    const { events } = await turn([tool("it", () => "x".repeat(200), { maxOutputBytes: 100 })], [{ name: "it" }], {
      artifacts,
      policies,
    });
    expect(eventsOf(events, "tool.result")[0]).toMatchObject({ status: "ok", truncated: true });
    expect(eventsOf(events, "tool.result")[0]).not.toHaveProperty("artifact");
    expect(artifacts.put).not.toHaveBeenCalled();
  });

  it("a call does not fail because its output could not be kept, nor hold a run that is cancelled", async () => {
    const big = tool("it", () => "x".repeat(200), { maxOutputBytes: 100 });
    const broken = { put: () => Promise.reject(new Error("the disk is full")) };
    const { events } = await turn([big], [{ name: "it" }], { artifacts: broken });
    expect(eventsOf(events, "tool.result")[0]).toMatchObject({ status: "ok", truncated: true });
    const cancelled = new AbortController();
    const hanging = {
      put: () => {
        cancelled.abort();
        return new Promise<never>(() => {});
      },
    };
    server.script([{ toolCalls: [{ name: "it" }] }]);
    const harness = harnessOn(server, { tools: [big], artifacts: hanging });
    const result = await harness.run("Do it.", { signal: cancelled.signal });
    expect(result.error).toMatchObject({ code: "cancelled" });
    expect(result.tool_calls[0]).toMatchObject({
      status: "ok",
      output: expect.stringMatching(/the first 100 are shown\]$/),
    });
  });

  it("output of exactly the limit is whole", async () => {
    const { event } = await one(() => "x".repeat(100), { maxOutputBytes: 100 });
    expect(event.output).toBe("x".repeat(100));
    expect(event).not.toHaveProperty("truncated");
  });
});

describe("a tool that throws", () => {
  it.each<[string, unknown, string]>([
    ["an error", new Error("the file is gone"), "the file is gone"],
    ["an error without a message", new RangeError(), "RangeError"],
    ["text", "just text", "just text"],
    ["nothing", undefined, "undefined"],
    ["null", null, "null"],
  ])("%s", async (_what, thrown, told) => {
    const { call, seen } = await one(() => {
      throw thrown;
    });
    expect(call).toMatchObject({ status: "error", output: told });
    expect(seen).toBe(told);
    const rejected = await one(() => Promise.reject(thrown));
    expect(rejected.seen).toBe(told);
  });

  it("at great length, or half a character, is cut", async () => {
    const { seen } = await one(() => {
      throw new Error(`${"x".repeat(3999)}\ud83d\ude00${"y".repeat(9000)}`);
    });
    expect(seen).toBe(`${"x".repeat(3999)}\ufffd`);
  });

  it("counts as a finished step: it is not tried again when the run goes on from its log", async () => {
    let tries = 0;
    const { events } = await turn(
      [
        tool("it", () => {
          tries++;
          throw new Error("no");
        }),
      ],
      [{ name: "it" }],
    );
    expect(types(events)).toEqual([
      "run.queued",
      "run.started",
      "model.call",
      "tool.result",
      "model.call",
      "run.completed",
    ]);
    expect(tries).toBe(1);
  });
});

describe("a tool that takes too long", () => {
  it("is given up at its own limit, although it ignores the signal, and the run goes on", async () => {
    let signal: AbortSignal | undefined;
    const { call, seen } = await one(
      (_input, context) => {
        signal = context.signal;
        return new Promise(() => {});
      },
      { timeoutMs: 30 },
    );
    expect(call).toMatchObject({ status: "error", output: "The tool was timed out after 0.03 s." });
    expect(seen).toBe(call.output);
    expect(signal!.aborted).toBe(true);
  });

  it("if it is idempotent, the model is told that it may have taken effect", async () => {
    const { call } = await one(() => new Promise(() => {}), { timeoutMs: 30, effect: "idempotent" });
    expect(call.output).toMatch(/timed out.*may have taken effect all the same/);
  });

  describe("and must not run twice", () => {
    const hangs = (more: Partial<AnyTool>) =>
      tool("it", () => new Promise(() => {}), { timeoutMs: 30, effect: "unsafe", ...more });
    const run = async (more: Partial<AnyTool>, options: object = {}) => {
      const log = memoryLog();
      server.script([{ toolCalls: [{ name: "it" }] }, "Done."]);
      const result = await harnessOn(server, { tools: [hangs(more)] }).run("Do it.", { log, ...options });
      return { result, log, events: await log.read() };
    };

    it("is verified: done, with what it returned; or not done, and the model decides", async () => {
      const done = await run({ verify: () => ({ done: true, output: "paid" }) });
      expect(done.result).toMatchObject({ status: "success", tool_calls: [{ status: "ok", output: "paid" }] });
      const not = await run({ verify: () => "not_done" });
      expect(not.result.tool_calls).toMatchObject([
        { status: "error", output: "The tool was timed out after 0.03 s. It did not take effect." },
      ]);
      expect(eventsOf(not.events, "tool.intent")).toHaveLength(1);
    });

    it("is asked about where nobody can tell, stands as uncertain until then, and goes on as a person says", async () => {
      const { result, log, events } = await run({ verify: () => new Promise(() => {}) });
      expect(result).toMatchObject({ status: "waiting", tool_calls: [{ status: "uncertain", output: null }] });
      const [asked] = eventsOf(events, "approval.requested");
      expect(asked).toMatchObject({ subject: "uncertain", reason: expect.stringContaining("timed out after 0.03 s") });
      const decisions = { [asked!.approval_id]: { decision: "done" as const, result: "it was paid" } };
      const after = await harnessOn(server, { tools: [hangs({})] }).run("", { log, decisions } as never);
      expect(after).toMatchObject({ status: "success", tool_calls: [{ status: "ok", output: "it was paid" }] });
      expect(eventsOf(await log.read(), "tool.intent")).toHaveLength(1);
    });

    it("stays uncertain at the run's limit", async () => {
      const { result } = await run({ timeoutMs: 60_000 }, { limits: { softSeconds: 0.3, hardSeconds: 0.6 } });
      expect(result.tool_calls).toMatchObject([{ status: "uncertain" }]);
    });
  });

  it("and answers late: nobody hears it, whether it succeeds or fails", async () => {
    const late: { resolve(value: unknown): void; reject(error: Error): void }[] = [];
    const slow = tool("it", () => new Promise((resolve, reject) => late.push({ resolve, reject })), { timeoutMs: 30 });
    const log = memoryLog();
    server.script([{ toolCalls: [{ name: "it" }, { name: "it" }] }, "Done."]);
    const result = await harnessOn(server, { tools: [slow] }).run("Do it.", { log });
    const before = await log.read();
    late[0]!.resolve("too late");
    // Were nobody to catch it, the test run would fail.
    late[1]!.reject(new Error("too late"));
    await new Promise(setImmediate);
    expect(await log.read()).toEqual(before);
    expect(result.tool_calls.map((call) => call.status)).toEqual(["error", "error"]);
  });

  it("and heeds the signal: its own words are not needed", async () => {
    const { call } = await one(
      (_input, { signal }) =>
        new Promise((_, reject) => signal.addEventListener("abort", () => reject(new Error("I was aborted")))),
      { timeoutMs: 30 },
    );
    expect(call.output).toMatch(/timed out after/);
  });

  it("has all the time of a limit that no timer can hold", async () => {
    const slow = await one(() => new Promise((resolve) => setTimeout(resolve, 20, "slow")), { timeoutMs: 2 ** 40 });
    expect(slow.call.output).toBe("slow");
  });
});

describe("the log of a call", () => {
  it.each(["idempotent", "unsafe"] as const)(
    "an %s one has an intent before it starts, with its key",
    async (effect) => {
      let key = "";
      let logged: string[] = [];
      const log = openLog();
      server.script([{ toolCalls: [{ name: "it" }] }, "Done."]);
      const it = tool(
        "it",
        (_input, context) => {
          key = context.idempotencyKey;
          logged = types(log.events);
        },
        { effect },
      );
      await harnessOn(server, { tools: [it] }).run("Do it.", { log });
      expect(logged.at(-1)).toBe("tool.intent");
      expect(eventsOf(log.events, "tool.intent")).toEqual([
        { iteration: 1, index: 0, call_id: "call_0_0", tool_name: "it", idempotency_key: key },
      ]);
    },
  );

  it("a pure one pays for no intent, and neither does one that is not carried out", async () => {
    const { events } = await turn(
      [tool("pure", () => 1), tool("unsafe", () => 1, { effect: "unsafe" })],
      [{ name: "pure" }, { name: "unsafe", input: { n: "not a number" } }, { name: "unknown" }],
    );
    expect(eventsOf(events, "tool.intent")).toEqual([]);
    expect(eventsOf(events, "tool.result")).toHaveLength(3);
  });
});
