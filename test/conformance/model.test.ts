/** The suite every `Model` passes: the four wires over real HTTP to a scripted server, and the demo model where it applies. */
import { getEventListeners } from "node:events";
import { createModels, type Model, type ModelMessage, type ModelResult, modelConfig } from "@drover/llm";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { createGate, type ModelServer, startModelServer, type WireName } from "../support/model-server.ts";

const tools = ["calculate", "lookup"].map((name) => ({
  name,
  description: `The tool ${name}.`,
  inputSchema: { type: "object", properties: { expression: { type: "string" } }, required: ["expression"] },
}));
const price = { input: 2, cached: 0.5, output: 10 };

const wires: { wire: WireName; id: string; key: string }[] = [
  { wire: "anthropic", id: "anthropic/claude-sonnet-5", key: "ANTHROPIC_API_KEY" },
  { wire: "openai", id: "openai/gpt-5.6-terra", key: "OPENAI_API_KEY" },
  { wire: "google", id: "google/gemini-3.8-flash", key: "GOOGLE_GENERATIVE_AI_API_KEY" },
  { wire: "openai-compatible", id: "house/some-model", key: "HOUSE_KEY" },
];

let server: ModelServer;
beforeAll(async () => {
  server = await startModelServer();
});
afterAll(() => server.close());
afterEach(() => server.reset());

const houseKey = "house-key-0123456789abcdef";

function modelOf(id: string, env: Record<string, string> = {}, at: ModelServer = server): Model {
  const config = modelConfig.parse({ ...at.env(), DEMO_WORD_DELAY_MS: "0", ...env });
  const house = { type: "openai-compatible", baseURL: at.url("openai-compatible"), apiKey: houseKey } as const;
  return createModels(config, { providers: { house }, prices: { [id]: price } }).resolve(id);
}

const user = (content: string): ModelMessage => ({ role: "user", content });
const toolResult = (toolCallId: string, toolName: string, value: string): ModelMessage => ({
  role: "tool",
  content: [{ type: "tool-result", toolCallId, toolName, output: { type: "text", value } }],
});

/** Calls with the two tools; collects what streamed. */
async function ask(
  model: Model,
  messages: ModelMessage[] | string,
  more: { signal?: AbortSignal; onText?: () => void } = {},
) {
  const deltas: string[] = [];
  const result = await model.call(
    { system: "Be brief.", messages: typeof messages === "string" ? [user(messages)] : messages, tools },
    {
      signal: more.signal ?? new AbortController().signal,
      onText: (delta) => {
        deltas.push(delta);
        more.onText?.();
      },
    },
  );
  return { result, deltas };
}

function reply(result: ModelResult) {
  if (!result.ok) throw new Error(`the call failed: ${JSON.stringify(result)}`);
  return result;
}

function failure(result: ModelResult) {
  if (result.ok) throw new Error(`the call succeeded: ${JSON.stringify(result)}`);
  return result;
}

describe.each([
  ...wires.map(({ id }) => ({
    id,
    query: "What is 6 * 7?",
    script: (parallel: boolean) => {
      const first = { name: "calculate", input: { expression: "6 * 7" } };
      const second = { name: "calculate", input: { expression: "1 + 1" } };
      server.script((call) =>
        call.turn > 0 ? "It is 42." : { text: "One moment.", toolCalls: parallel ? [first, second] : [first] },
      );
    },
  })),
  { id: "demo/demo", query: "What is 6 * 7?", script: () => {} },
])("$id", ({ id, query, script }) => {
  it("streams text whose pieces add up to the answer", async () => {
    server.script(["Hello there, this is an answer."]);
    const { result, deltas } = await ask(modelOf(id), "hello");
    const { text, toolCalls, finishReason, messages } = reply(result);
    expect(deltas.length).toBeGreaterThan(3);
    expect(deltas.join("")).toBe(text);
    expect(toolCalls).toEqual([]);
    expect(finishReason).toBe("stop");
    expect(messages.map((message) => message.role)).toEqual(["assistant"]);
  });

  it("calls a tool, takes the result and goes on", async () => {
    script(false);
    const model = modelOf(id);
    const first = reply((await ask(model, query)).result);
    expect(first.toolCalls).toEqual([{ id: expect.any(String), name: "calculate", input: { expression: "6 * 7" } }]);
    expect(first.text).not.toBe("");
    const conversation = [user(query), ...first.messages, toolResult(first.toolCalls[0]!.id, "calculate", "42")];
    const second = reply((await ask(model, conversation)).result);
    expect(second.toolCalls).toEqual([]);
    expect(second.text).toContain("42");
  });

  it("calls several tools in one turn, each with its own id", async () => {
    script(true);
    const model = modelOf(id);
    const asked = `${query} And what is 1 + 1?`;
    const first = reply((await ask(model, asked)).result);
    expect(first.toolCalls.map((call) => call.input)).toEqual([{ expression: "6 * 7" }, { expression: "1 + 1" }]);
    expect(new Set(first.toolCalls.map((call) => call.id)).size).toBe(2);
    const results = first.toolCalls.map((call, n) => toolResult(call.id, call.name, n === 0 ? "42" : "2"));
    const second = reply((await ask(model, [user(asked), ...first.messages, ...results])).result);
    expect(second.text).toContain("42");
  });

  it("returns messages that are the same after JSON", async () => {
    script(true);
    const first = reply((await ask(modelOf(id), query)).result);
    expect(JSON.parse(JSON.stringify(first.messages))).toStrictEqual(first.messages);
  });

  it("answers without a tool call when the tools are forbidden", async () => {
    server.script(["I would have calculated."]);
    const request = { messages: [user(query)], tools, toolChoice: "none" as const };
    const result = reply(await modelOf(id).call(request, { signal: new AbortController().signal }));
    expect(result.toolCalls).toEqual([]);
    expect(result.text).not.toBe("");
  });

  it("counts tokens and prices them", async () => {
    server.script([{ text: "Yes.", usage: { input: 1000, output: 50, cached: 400 } }]);
    const { usage, costNanos } = reply((await ask(modelOf(id), "hello")).result);
    if (id === "demo/demo") {
      expect(usage.input).toBeGreaterThan(0);
      expect(usage.output).toBeGreaterThan(0);
      expect(costNanos).toBe(0);
    } else {
      expect(usage).toEqual({ input: 1000, output: 50, cached: 400 });
      expect(costNanos).toBe((600 * 2 + 400 * 0.5 + 50 * 10) * 1000);
    }
  });

  it("keeps the text when it is aborted in the middle", async () => {
    const gate = createGate();
    server.script([{ text: ["One ", "two ", "three ", "four."], gate }]);
    gate.pass(2);
    const controller = new AbortController();
    let pieces = 0;
    const onText = () => {
      if (++pieces === 2) controller.abort();
    };
    const { result, deltas } = await ask(modelOf(id), "hello", { signal: controller.signal, onText });
    expect(failure(result)).toMatchObject({ code: "aborted", retryable: false, text: deltas.join("") });
    expect(deltas).toHaveLength(2);
    if (id !== "demo/demo") expect(await server.calls[0]!.closed).toBe(true);
  });

  it("makes no call when it is aborted before", async () => {
    const { result } = await ask(modelOf(id), "hello", { signal: AbortSignal.abort() });
    expect(failure(result)).toMatchObject({ code: "aborted", text: "" });
    expect(server.count).toBe(0);
  });
});

describe.each(wires)("$id over the wire", ({ wire, id, key }) => {
  const secret = () => (wire === "openai-compatible" ? houseKey : server.env()[key]!);

  it("asks with the model's name, the system prompt and the tools", async () => {
    server.script(["ok"]);
    await ask(modelOf(id), "hello");
    const call = server.calls[0]!;
    expect(call).toMatchObject({ wire, model: id.split("/")[1], system: "Be brief.", query: "hello" });
    expect(call.tools).toEqual(["calculate", "lookup"]);
  });

  it("says which tool is unknown, and goes on after it", async () => {
    server.script([{ toolCalls: [{ name: "teleport", input: { to: "Mars" } }] }, "Then not."]);
    const model = modelOf(id);
    const first = reply((await ask(model, "go")).result);
    expect(first.toolCalls).toMatchObject([{ name: "teleport", invalid: "There is no tool teleport here." }]);
    const { id: callId, name, invalid } = first.toolCalls[0]!;
    const second = await ask(model, [user("go"), ...first.messages, toolResult(callId, name, invalid!)]);
    expect(reply(second.result).text).toBe("Then not.");
    expect(server.calls[1]!.results).toMatchObject([{ content: expect.stringContaining("no tool teleport") }]);
  });

  // Google sends arguments as a JSON object: there is no such thing as bad JSON on its wire.
  const jsonAsText = wire === "google" ? [] : [id];
  it.each(jsonAsText)("says that arguments are not JSON, and goes on after it", async () => {
    server.script([{ toolCalls: [{ name: "calculate", rawInput: '{"expression": "6 *' }] }, "Again, then."]);
    const model = modelOf(id);
    const first = reply((await ask(model, "go")).result);
    expect(first.toolCalls).toMatchObject([{ name: "calculate", invalid: expect.stringContaining("not valid JSON") }]);
    const conversation = [user("go"), ...first.messages, toolResult(first.toolCalls[0]!.id, "calculate", "bad JSON")];
    expect(reply((await ask(model, conversation)).result).text).toBe("Again, then.");
  });

  it("takes an empty answer for an answer", async () => {
    server.script([{ text: [] }]);
    expect(reply((await ask(modelOf(id), "hello")).result)).toMatchObject({ text: "", toolCalls: [], messages: [] });
  });

  it("sends a stored conversation as the very bytes of the unstored one, and only appends", async () => {
    const toolCalls = [{ name: "calculate", input: { expression: "6 * 7" } }];
    server.script([
      { reasoning: "I should calculate.", text: "One moment.", toolCalls },
      "It is 42.",
      "It is 42.",
      "Bye.",
    ]);
    const model = modelOf(id);
    const first = reply((await ask(model, "go")).result);
    expect(JSON.parse(JSON.stringify(first.messages))).toStrictEqual(first.messages);
    const conversation = [user("go"), ...first.messages, toolResult(first.toolCalls[0]!.id, "calculate", "42")];
    const second = reply((await ask(model, conversation)).result);
    await ask(model, JSON.parse(JSON.stringify(conversation)));
    expect(server.calls[2]!.rawBody).toBe(server.calls[1]!.rawBody);
    await ask(model, [...conversation, ...second.messages, user("thanks")]);
    const [, before, , after] = server.calls.map((call) => prefix(wire, call.body));
    expect(after!.startsWith(before!.slice(0, -1))).toBe(true);
    // What the model thought goes back to it with its signature, where the wire has one.
    const thought = {
      anthropic: "signature-0",
      openai: "encrypted-0",
      google: "signature-0",
      "openai-compatible": "I should",
    };
    expect(server.calls[1]!.rawBody).toContain(thought[wire]);
  });

  it("refuses a wrong key for good, without repeating it", async () => {
    server.script([
      { status: 401, message: `Incorrect API key provided: ${secret()}` },
      { status: 403, message: `The key ${secret()} may not use this model` },
    ]);
    const model = modelOf(id);
    for (const status of [401, 403]) {
      const { code, retryable, message } = failure((await ask(model, "hello")).result);
      expect({ code, retryable }).toEqual({ code: "auth_failed", retryable: false });
      expect(message).toContain(String(status));
      expect(message).not.toContain(secret());
    }
  });

  it.each([400, 404, 413, 422])("takes %i for a fault in the request", async (status) => {
    server.script([{ status, message: "no such thing" }]);
    expect(failure((await ask(modelOf(id), "hello")).result)).toMatchObject({
      code: "invalid_input",
      retryable: false,
      message: expect.stringContaining("no such thing"),
    });
  });

  it.each([408, 409, 425, 429, 500, 503, 529])("takes %i for something that passes", async (status) => {
    server.script([{ status }]);
    expect(failure((await ask(modelOf(id), "hello")).result)).toMatchObject({ code: "model_error", retryable: true });
    expect(server.count).toBe(1);
  });

  it.each([
    ["retry-after in seconds", { "retry-after": "7" }, 7000],
    ["retry-after-ms", { "retry-after-ms": "250", "retry-after": "7" }, 250],
    ["a date that has passed", { "retry-after": new Date(0).toUTCString() }, 0],
    ["nonsense", { "retry-after": "soon" }, undefined],
  ])("reads the provider's wish: %s", async (_, headers, expected) => {
    server.script([{ status: 429, headers }]);
    expect(failure((await ask(modelOf(id), "hello")).result).retryAfterMs).toBe(expected);
  });

  it("reads a date to come", async () => {
    const inAnHour = new Date(Date.now() + 3_600_000).toUTCString();
    server.script([{ status: 503, headers: { "retry-after": inAnHour } }]);
    const { retryAfterMs } = failure((await ask(modelOf(id), "hello")).result);
    expect(retryAfterMs).toBeGreaterThan(3_000_000);
    expect(retryAfterMs).toBeLessThanOrEqual(3_600_000);
  });

  it("does not follow a redirect with its key", async () => {
    server.script([{ status: 307, headers: { location: "/elsewhere" } }, "stolen"]);
    expect(failure((await ask(modelOf(id), "hello")).result)).toMatchObject({ code: "model_error", retryable: false });
    expect(server.count).toBe(1);
  });

  it("reports a refused connection", async () => {
    const gone = await startModelServer();
    const model = modelOf(id, {}, gone);
    await gone.close();
    expect(failure((await ask(model, "hello")).result)).toMatchObject({
      code: "model_error",
      retryable: true,
      message: expect.stringContaining("refused the connection"),
    });
  });

  it("reports a connection that is reset before the answer", async () => {
    server.script([{ connection: "reset" }]);
    expect(failure((await ask(modelOf(id), "hello")).result)).toMatchObject({
      code: "model_error",
      retryable: true,
      text: "",
    });
  });

  it.each([
    ["cut", { cutAfter: 2 }],
    ["ended without its closing event", { endAfter: 2 }],
    [
      "broken by an error event",
      { errorAfter: { chunks: 2, type: "overloaded_error", message: "Overloaded", code: 503 } },
    ],
  ])("keeps the text of a stream that is %s", async (_, how) => {
    server.script([{ text: ["One ", "two ", "three."], ...how }]);
    const { result, deltas } = await ask(modelOf(id), "hello");
    expect(failure(result)).toMatchObject({ code: "model_error", retryable: true, text: "One two " });
    expect(deltas.join("")).toBe("One two ");
  });

  it("hangs up on a provider that stays on the line after an error event", async () => {
    const errorAfter = { chunks: 1, type: "overloaded_error", message: "Overloaded", code: 503, stay: true };
    server.script([{ text: ["One ", "two."], errorAfter }]);
    expect(failure((await ask(modelOf(id), "hello")).result)).toMatchObject({ code: "model_error", text: "One " });
    expect(await server.calls[0]!.closed).toBe(true);
  });

  it("takes an error event before any text for what it says", async () => {
    const text = ["One."];
    server.script([{ text, errorAfter: { chunks: 0, type: "overloaded_error", message: "Overloaded", code: 503 } }]);
    const { code, retryable, message } = failure((await ask(modelOf(id), "hello")).result);
    expect({ code, retryable }).toEqual({ code: "model_error", retryable: true });
    expect(message).toContain("Overloaded");
  });

  it.each([0, 1])(
    "does not take a stream that ends early after %i chunks for an answer with tools",
    async (endAfter) => {
      const toolCalls = [{ name: "calculate", input: { expression: "6 * 7" } }];
      server.script([{ text: endAfter === 0 ? [] : ["One."], toolCalls, endAfter }]);
      expect(failure((await ask(modelOf(id), "hello")).result)).toMatchObject({ code: "model_error", retryable: true });
    },
  );

  it("tells a fault in the request from one that passes in the middle of a stream", async () => {
    const type = wire === "google" ? "INVALID_ARGUMENT" : "invalid_request_error";
    server.script([
      { text: ["One ", "two."], errorAfter: { chunks: 1, type, message: "prompt is too long", code: 400 } },
    ]);
    expect(failure((await ask(modelOf(id), "hello")).result)).toMatchObject({
      code: "invalid_input",
      retryable: false,
      message: expect.stringContaining("prompt is too long"),
      text: "One ",
    });
  });

  it.each([
    ["before the answer", { connection: "hang" } as const, ""],
    ["in the middle", { text: ["One ", "two."], stallAfter: 1 }, "One "],
  ])("gives up on a provider that falls silent %s", async (_, entry, text) => {
    server.script([entry]);
    const { result } = await ask(modelOf(id, { MODEL_IDLE_TIMEOUT_SECONDS: "0.3" }), "hello");
    expect(failure(result)).toMatchObject({
      code: "model_error",
      retryable: true,
      message: expect.stringContaining("sent nothing for 0.3 s"),
      text,
    });
    expect(await server.calls[0]!.closed).toBe(true);
  });

  it("is aborted while the provider has not even begun to answer", async () => {
    server.script([{ connection: "hang" }]);
    const controller = new AbortController();
    const asked = ask(modelOf(id), "hello", { signal: controller.signal });
    await server.called();
    controller.abort();
    expect(failure((await asked).result)).toMatchObject({ code: "aborted", text: "" });
    expect(await server.calls[0]!.closed).toBe(true);
  });

  it("leaves no listener behind on the caller's signal", async () => {
    server.script(() => "ok");
    const { signal } = new AbortController();
    const model = modelOf(id);
    for (let n = 0; n < 3; n++) await ask(model, "hello", { signal });
    expect(getEventListeners(signal, "abort")).toHaveLength(0);
  });

  it("holds 200 streams open at once", async () => {
    const gate = createGate();
    server.script((call) => ({ text: ["Hello ", call.query], gate }));
    const model = modelOf(id);
    const asked = Array.from({ length: 200 }, (_, n) => ask(model, `number ${n}`));
    await gate.arrived(200);
    expect(server.open).toBe(200);
    gate.open();
    const texts = (await Promise.all(asked)).map(({ result }) => reply(result).text);
    expect(texts).toEqual(Array.from({ length: 200 }, (_, n) => `Hello number ${n}`));
  });

  // Anthropic's wire always reports usage.
  const mayKeepQuiet = wire === "anthropic" ? [] : [id];
  it.each(mayKeepQuiet)("does not make up a cost when the provider reports no usage", async () => {
    server.script([{ text: "Yes.", usage: null }]);
    expect(reply((await ask(modelOf(id), "hello")).result)).toMatchObject({
      usage: { input: 0, output: 0, cached: 0 },
      costNanos: null,
    });
  });
});

it("knows Google's own way to refuse a key and to ask for patience", async () => {
  const details = [{ "@type": "type.googleapis.com/google.rpc.RetryInfo", retryDelay: "34.5s" }];
  const error = (code: number, status: string, more: object) =>
    JSON.stringify({ error: { code, status, message: "no", details: [more] } });
  server.script([
    { status: 400, body: error(400, "INVALID_ARGUMENT", { reason: "API_KEY_INVALID" }) },
    { status: 429, body: error(429, "RESOURCE_EXHAUSTED", details[0]!) },
  ]);
  const model = modelOf("google/gemini-3.8-flash");
  expect(failure((await ask(model, "hello")).result)).toMatchObject({ code: "auth_failed", retryable: false });
  expect(failure((await ask(model, "hello")).result)).toMatchObject({ code: "model_error", retryAfterMs: 34_500 });
});

it("tells tool calls apart whose ids a server gives twice, or not at all", async () => {
  const call = (id: string) => ({ id, name: "calculate", input: { expression: "1 + 1" } });
  server.script([{ toolCalls: [call(""), call("call_0"), call("call_0")] }, { toolCalls: [call("call_0")] }, "done"]);
  const model = modelOf("house/some-model");
  let conversation = [user("go")];
  for (const count of [3, 1]) {
    const { toolCalls, messages } = reply((await ask(model, conversation)).result);
    expect(toolCalls).toHaveLength(count);
    conversation = [
      ...conversation,
      ...messages,
      ...toolCalls.map(({ id, name }) => toolResult(id, name, `for ${id}`)),
    ];
  }
  await ask(model, conversation);
  const ids = server.calls[2]!.messages.flatMap((message) => message.toolCalls.map(({ id }) => id));
  expect(ids).toHaveLength(4);
  expect(ids).not.toContain("");
  expect(new Set(ids).size).toBe(4);
  expect(server.calls[2]!.results).toEqual(ids.map((id) => ({ id, content: `for ${id}` })));
});

it("does not fetch what a message names by URL", async () => {
  const target = await startModelServer();
  const data = new URL(`http://127.0.0.1:${target.port}/secret.png`);
  const image: ModelMessage = { role: "user", content: [{ type: "file", data, mediaType: "image/png" }] };
  const { code, retryable, message } = failure((await ask(modelOf("house/some-model"), [image])).result);
  expect({ code, retryable }).toEqual({ code: "invalid_input", retryable: false });
  expect(message).toContain("not fetched");
  expect([server.count, target.connections]).toEqual([0, 0]);
  await target.close();
});

it("does not retry a quota that is used up", async () => {
  const error = { type: "insufficient_quota", message: "You exceeded your current quota" };
  server.script(() => ({ text: ["One ", "two."], errorAfter: { chunks: 1, ...error } }));
  for (const id of ["openai/gpt-5.6-terra", "house/some-model"]) {
    const { code, retryable } = failure((await ask(modelOf(id), "hello")).result);
    expect({ code, retryable }, id).toEqual({ code: "model_error", retryable: false });
  }
});

it("takes Google's broken function call for an error that passes", async () => {
  server.script([{ text: "Let me", finishReason: "MALFORMED_FUNCTION_CALL" }]);
  expect(failure((await ask(modelOf("google/gemini-3.8-flash"), "hello")).result)).toMatchObject({
    code: "model_error",
    retryable: true,
    message: expect.stringContaining("MALFORMED_FUNCTION_CALL"),
    text: "Let me",
  });
});

it("marks Anthropic's cache at the system prompt and the end, and only in a loop with tools", async () => {
  server.script(() => "ok");
  const model = modelOf("anthropic/claude-sonnet-5");
  const toolCall = { type: "tool-call", toolCallId: "call_1", toolName: "calculate", input: {} } as const;
  const called: ModelMessage = { role: "assistant", content: [toolCall] };
  const messages = [user("one"), called, toolResult("call_1", "calculate", "2")];
  const before = JSON.stringify(messages);
  await ask(model, messages);
  await model.call({ system: "Be brief.", messages, tools: [] }, { signal: new AbortController().signal });
  expect(JSON.stringify(messages)).toBe(before);
  const [inLoop, oneShot] = server.calls.map((call) => call.rawBody.match(/cache_control/g)?.length ?? 0);
  expect([inLoop, oneShot]).toEqual([2, 0]);
  const { system, messages: sent } = server.calls[0]!.body as { system: unknown; messages: unknown[] };
  expect(JSON.stringify([system, sent.at(-1)]).match(/cache_control/g)).toHaveLength(2);
});

/** The conversation as it went over the wire, as one JSON array, without the marks that move along it. */
function prefix(wire: WireName, body: Record<string, unknown>): string {
  const field = { anthropic: "messages", openai: "input", google: "contents", "openai-compatible": "messages" }[wire];
  const conversation = body[field] as unknown[];
  return JSON.stringify(conversation, (key, value: unknown) => (key === "cache_control" ? undefined : value));
}
