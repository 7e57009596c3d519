/** Every way a run of the library can end: `run()` gives a value with a typed error and what there was, `runOrThrow()` throws it. */
import {
  AgentRunError,
  ApiKeyError,
  type HarnessConfig,
  LoopLimitExceededError,
  type RunOptions,
  ToolExecutionError,
} from "@drover/harness";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { createGate, type ModelServer, type ScriptEntry, startModelServer } from "../support/model-server.ts";
import { anthropic, eventsOf, harnessOn, logFrom, openLog, overloaded, tool, types } from "./scripted.ts";

let server: ModelServer;
beforeAll(async () => {
  server = await startModelServer();
});
afterAll(() => server.close());
afterEach(() => server.reset());

const note = tool("note", () => ({ noted: true }));
const again = { toolCalls: [{ name: "note", input: { n: 1 } }] };

interface Case {
  what: string;
  script?: ScriptEntry[];
  config?: HarnessConfig;
  options?: () => RunOptions;
  error: typeof AgentRunError;
  code: string;
  message: RegExp;
  status: "partial" | "error";
  output?: string | null;
  calls: number;
}

const uncertainLog = () =>
  logFrom([
    {
      seq: 1,
      at: "",
      type: "run.queued",
      data: {
        query: "q",
        agent: "default",
        max_iterations: 5,
        limits: { soft_seconds: 10, hard_seconds: 20 },
        retry: { max_attempts: 1, backoff_ms: 1, max_backoff_ms: 1 },
      },
    },
    {
      seq: 2,
      at: "",
      type: "model.call",
      data: {
        iteration: 1,
        model: anthropic,
        text: "I will pay.",
        tool_calls: [{ id: "c", name: "note", input: {} }],
        finish_reason: "tool-calls",
        usage: { input: 1, output: 1, cached: 0 },
        cost_usd: 0,
        duration_ms: 1,
      },
    },
    {
      seq: 3,
      at: "",
      type: "tool.intent",
      data: { iteration: 1, index: 0, call_id: "c", tool_name: "note", idempotency_key: "k" },
    },
  ]);

const cases: Case[] = [
  {
    what: "an agent that does not exist",
    options: () => ({ agent: "nobody" }),
    error: AgentRunError,
    code: "invalid_input",
    message: /no agent "nobody"/,
    status: "error",
    calls: 0,
  },
  {
    what: "a model of an unknown provider",
    options: () => ({ model: "nowhere/model" }),
    error: AgentRunError,
    code: "invalid_input",
    message: /no model provider "nowhere"/,
    status: "error",
    calls: 0,
  },
  {
    what: "a model whose key is not set",
    config: { env: {} },
    error: ApiKeyError,
    code: "auth_failed",
    message: /needs ANTHROPIC_API_KEY, which is not set/,
    status: "error",
    calls: 0,
  },
  {
    what: "a key that the provider refuses",
    script: [{ status: 401, message: "invalid x-api-key sk-ant-scripted-0000000000000000" }],
    error: ApiKeyError,
    code: "auth_failed",
    message: /^anthropic refused the key \(401\); check ANTHROPIC_API_KEY$/,
    status: "error",
    calls: 1,
  },
  {
    what: "a request that the provider refuses",
    script: [{ status: 400, message: "prompt is too long" }],
    error: AgentRunError,
    code: "invalid_input",
    message: /prompt is too long/,
    status: "error",
    calls: 1,
  },
  {
    what: "a refusal after something was said",
    script: [{ ...again, text: "First a note." }, { status: 400 }],
    error: AgentRunError,
    code: "invalid_input",
    message: /answered 400/,
    status: "partial",
    output: "First a note.",
    calls: 2,
  },
  {
    what: "a provider that stays overloaded until the attempts are used up",
    script: Array.from({ length: 20 }, () => overloaded),
    config: { retry: { maxAttempts: 2, backoffMs: 1, maxBackoffMs: 1 } },
    error: AgentRunError,
    code: "model_error",
    message: /answered 529/,
    status: "error",
    calls: 6,
  },
  {
    what: "max_iterations, with something said",
    script: [{ ...again, text: "Step one." }, again],
    options: () => ({ maxIterations: 2 }),
    error: LoopLimitExceededError,
    code: "iteration_limit",
    message: /used up its 2 iterations/,
    status: "partial",
    output: "Step one.",
    // The last one wraps up.
    calls: 3,
  },
  {
    what: "max_iterations, with an answer in the turn that wraps up",
    script: [{ toolCalls: [{ name: "unknown" }] }, "What I have so far."],
    options: () => ({ maxIterations: 1 }),
    error: LoopLimitExceededError,
    code: "iteration_limit",
    message: /used up its 1 iterations/,
    status: "partial",
    output: "What I have so far.",
    calls: 2,
  },
  {
    what: "max_iterations, with nothing to show",
    script: [{ toolCalls: [{ name: "unknown" }] }],
    options: () => ({ maxIterations: 1 }),
    error: LoopLimitExceededError,
    code: "iteration_limit",
    message: /used up its 1 iterations/,
    status: "error",
    calls: 2,
  },
  {
    what: "an unsafe tool that may have run before a crash, and a person who does not know either",
    config: { tools: [tool("note", () => "paid", { effect: "unsafe" })] },
    options: () => ({ log: uncertainLog(), approve: () => ({ decision: "fail" as const, by: "ann" }) }),
    error: ToolExecutionError,
    code: "uncertain",
    message: /not known/,
    status: "partial",
    output: "I will pay.",
    calls: 0,
  },
  {
    what: "a cancel before the start",
    options: () => ({ signal: AbortSignal.abort() }),
    error: AgentRunError,
    code: "cancelled",
    message: /cancelled/,
    status: "error",
    calls: 0,
  },
];

describe.each(cases)("$what", ({ script = [], config = {}, options = () => ({}), ...wanted }) => {
  it("is a value of run(), with its typed error and the partial result", async () => {
    server.script(script);
    const events = openLog();
    const result = await harnessOn(server, { tools: [note], ...config }).run("Do it.", { log: events, ...options() });
    expect(result.status).toBe(wanted.status);
    expect(result.output).toBe(wanted.output ?? null);
    expect(result.stop_reason).toBe(wanted.code === "cancelled" ? null : wanted.code);
    expect(result.error).toBeInstanceOf(wanted.error);
    expect(result.error!.constructor).toBe(wanted.error);
    expect(result.error).toMatchObject({ code: wanted.code, message: expect.stringMatching(wanted.message) });
    expect(JSON.stringify(result)).not.toContain("sk-ant");
    const { error, ...rest } = result;
    expect(error!.partial).toEqual(rest);
    expect(server.count).toBe(wanted.calls);
  });

  it("is thrown by runOrThrow()", async () => {
    server.script(script);
    const running = harnessOn(server, { tools: [note], ...config }).runOrThrow("Do it.", options());
    const error = await running.catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(wanted.error);
    expect(error).toBeInstanceOf(AgentRunError);
    expect(error).toMatchObject({ name: wanted.error.name, code: wanted.code });
    expect((error as AgentRunError).partial).toMatchObject({ status: wanted.status, output: wanted.output ?? null });
  });
});

describe("cancel", () => {
  it("in the middle of a stream: the connection ends and the text stays", async () => {
    const gate = createGate();
    const stop = new AbortController();
    server.script([{ text: ["Half ", "of ", "it."], gate }]);
    gate.pass(2);
    const log = openLog();
    let text = "";
    const result = await harnessOn(server).run("Do it.", {
      log,
      signal: stop.signal,
      onText: (delta) => {
        text += delta;
        if (text === "Half of ") stop.abort();
      },
    });
    expect(result).toMatchObject({ status: "error", output: "Half of ", stop_reason: null, iterations: 0 });
    expect(result.error).toMatchObject({ code: "cancelled" });
    expect(await server.calls[0]!.closed).toBe(true);
    expect(types(log.events)).toEqual(["run.queued", "run.started", "model.partial", "run.cancelled"]);
  });

  it("in the middle of a tool: it hears of it, its outcome is not recorded, no further call is made", async () => {
    server.script([{ text: "Working.", toolCalls: [{ name: "hang" }, { name: "note" }] }]);
    const stop = new AbortController();
    let heard = false;
    const hang = tool("hang", (_input, { signal }) => {
      signal.addEventListener("abort", () => {
        heard = true;
      });
      // The other call of the turn is recorded first.
      return new Promise(() => {});
    });
    const log = openLog();
    const result = await harnessOn(server, { tools: [hang, note] }).run("Do it.", {
      log,
      signal: stop.signal,
      onEvent: (event) => {
        if (event.type === "tool.result") stop.abort();
      },
    });
    expect(heard).toBe(true);
    expect(result).toMatchObject({ status: "error", output: "Working.", tools_called: ["note"] });
    expect(eventsOf(log.events, "tool.result").map((data) => data.tool_name)).toEqual(["note"]);
    expect(types(log.events).at(-1)).toBe("run.cancelled");
    expect(server.count).toBe(1);
  });

  it("in the pause before a retry: nothing waits for the pause", async () => {
    server.script([{ status: 529, headers: { "retry-after": "3600" } }]);
    const stop = new AbortController();
    const log = openLog();
    const result = await harnessOn(server).run("Do it.", {
      log,
      signal: stop.signal,
      onEvent: (event) => {
        if (event.type === "run.retrying") stop.abort();
      },
    });
    expect(result.error).toMatchObject({ code: "cancelled" });
    expect(types(log.events).slice(-2)).toEqual(["run.retrying", "run.cancelled"]);
  });

  it("does not undo a run that ended before it", async () => {
    server.script(["Done."]);
    const stop = new AbortController();
    const result = await harnessOn(server).run("Do it.", {
      signal: stop.signal,
      onEvent: (event) => {
        if (event.type === "run.completed") stop.abort();
      },
    });
    expect(result).toMatchObject({ status: "success", output: "Done." });
  });
});

describe("a run that completes", () => {
  it("says what it cost, what it used and what it called", async () => {
    server.script([
      {
        toolCalls: [
          { name: "note", input: { n: 1 } },
          { name: "note", input: { n: 2 } },
        ],
        usage: { input: 1000, output: 100 },
      },
      { text: "All noted.", usage: { input: 2000, output: 50, cached: 500 } },
    ]);
    const harness = harnessOn(server, {
      tools: [note],
      models: { prices: { [anthropic]: { input: 2, cached: 1, output: 10 } } },
    });
    const result = await harness.run("Note it.", { metadata: { order: "7" } });
    expect(result).toEqual({
      task_id: expect.stringMatching(/^run_[0-9a-f]{32}$/),
      status: "success",
      output: "All noted.",
      stop_reason: null,
      // (1000 + 1500) * 2 + 500 * 1 + 150 * 10 USD per million tokens
      cost_usd: 0.007,
      tokens_used: { input: 3000, output: 150, cached: 500, total: 3150 },
      iterations: 2,
      duration_seconds: expect.any(Number),
      tools_called: ["note"],
      tool_calls: [1, 2].map((n) => ({
        tool_name: "note",
        input: { n },
        output: { noted: true },
        duration_ms: expect.any(Number),
        status: "ok",
      })),
      metadata: { order: "7" },
    });
    expect(result.duration_seconds).toBeGreaterThan(0);
  });

  it("has no known cost where one step's price is not known", async () => {
    server.script([again, "Done."]);
    const result = await harnessOn(server, { tools: [note] }).run("Do it.", {
      model: "anthropic/nobody-knows-this-one",
    });
    expect(result).toMatchObject({ status: "success", cost_usd: null, tokens_used: { total: 30 } });
  });

  it("is returned as it is by runOrThrow()", async () => {
    server.script(["Done."]);
    const result = await harnessOn(server).runOrThrow("Do it.");
    expect(result).toMatchObject({ status: "success", output: "Done." });
    expect(result).not.toHaveProperty("error");
  });

  it("tells its events in the order of the log", async () => {
    server.script([again, "Done."]);
    const seen: number[] = [];
    const log = openLog();
    await harnessOn(server, { tools: [note] }).run("Do it.", { log, onEvent: (event) => seen.push(event.seq) });
    expect(types(log.events)).toEqual([
      "run.queued",
      "run.started",
      "model.call",
      "tool.result",
      "model.call",
      "run.completed",
    ]);
    expect(seen).toEqual([1, 2, 3, 4, 5, 6]);
  });

  it("keeps apart from the others that run on the same harness", async () => {
    server.script((call) =>
      call.turn === 0 ? { toolCalls: [{ name: "note", input: { n: Number(call.query) } }] } : `Noted ${call.query}.`,
    );
    const echo = tool("note", ({ n }) => n);
    const harness = harnessOn(server, { tools: [echo] });
    const results = await Promise.all(Array.from({ length: 20 }, (_, n) => harness.run(String(n))));
    results.forEach((result, n) => {
      expect(result.output).toBe(`Noted ${n}.`);
      expect(result.tool_calls.map((call) => call.output)).toEqual([n]);
    });
    expect(new Set(results.map((result) => result.task_id)).size).toBe(20);
  });
});

describe("what is given per call", () => {
  const agents = {
    writer: {
      model: "anthropic/the-agents-model",
      systemPrompt: "You write.",
      temperature: 0.25,
      maxTokens: 111,
      maxIterations: 1,
      tools: ["other"],
    },
  };
  const config = { agents, tools: [note, tool("other", () => 1)] };

  it("reaches the provider, and goes before what the agent says", async () => {
    server.script(["Done."]);
    await harnessOn(server, config).run("Write.", {
      agent: "writer",
      model: "anthropic/my-model",
      systemPrompt: "You sing.",
      temperature: 0.75,
      maxTokens: 222,
      context: { city: "Bern", list: [1] },
    });
    const [call] = server.calls;
    expect(call).toMatchObject({ model: "my-model", system: "You sing.", tools: ["other"] });
    expect(call!.body).toMatchObject({ temperature: 0.75, max_tokens: 222 });
    expect(call!.query).toContain("Write.");
    expect(call!.query).toContain('"city": "Bern"');
  });

  it("is the agent's where nothing is given", async () => {
    server.script([{ toolCalls: [{ name: "other" }] }]);
    const result = await harnessOn(server, config).run("Write.", { agent: "writer" });
    const [call] = server.calls;
    expect(call).toMatchObject({ model: "the-agents-model", system: "You write.", query: "Write." });
    expect(call!.body).toMatchObject({ temperature: 0.25, max_tokens: 111 });
    expect(result).toMatchObject({ stop_reason: "iteration_limit", iterations: 1 });
  });

  it.each([
    ["openai/some-gpt", { model: "some-gpt", temperature: 0.5, max_output_tokens: 77 }],
    ["house/some-model", { model: "some-model", temperature: 0.5, max_tokens: 77 }],
    ["google/some-gemini", { generationConfig: { temperature: 0.5, maxOutputTokens: 77 } }],
  ])("reaches %s too", async (model, body) => {
    server.script(["Done."]);
    const house = { type: "openai-compatible", baseURL: server.url("openai-compatible") } as const;
    const harness = harnessOn(server, { tools: [note], models: { providers: { house } } });
    const result = await harness.run("Write.", { model, systemPrompt: "You sing.", temperature: 0.5, maxTokens: 77 });
    expect(result.status).toBe("success");
    expect(server.calls[0]).toMatchObject({ system: "You sing.", tools: ["note"], body });
  });

  it("may be an empty system prompt or a temperature of 0", async () => {
    server.script(["Done."]);
    await harnessOn(server, config).run("Write.", { agent: "writer", systemPrompt: "", temperature: 0 });
    expect(server.calls[0]).toMatchObject({ system: "" });
    expect(server.calls[0]!.body.temperature).toBe(0);
  });
});

describe("what the caller breaks", () => {
  it("run() rejects with what a callback threw, and the run goes no further", async () => {
    const stuck = { text: ["One ", "two."], stallAfter: 1 };
    server.script([again, stuck]);
    const ofEvent = harnessOn(server, { tools: [note] }).run("Do it.", {
      onEvent: (event) => {
        if (event.type === "model.call") throw new Error("my own bug");
      },
    });
    await expect(ofEvent).rejects.toThrow("my own bug");
    const ofText = harnessOn(server).run("Do it.", {
      onText: () => {
        throw new Error("my other bug");
      },
    });
    await expect(ofText).rejects.toThrow("my other bug");
    expect(await server.calls[1]!.closed).toBe(true);
    expect(server.count).toBe(2);
  });

  it("run() rejects with what the log threw, before anything is paid for", async () => {
    const log = { ...openLog(), append: () => Promise.reject(new Error("disk full")) };
    await expect(harnessOn(server).run("Do it.", { log })).rejects.toThrow("disk full");
    expect(server.count).toBe(0);
  });
});
