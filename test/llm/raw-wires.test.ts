/** The wires held with bytes of the test's own: what servers of the real world answer, to the byte. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createModels, type Model, type ModelMessage, modelConfig } from "@drover/llm";
import { afterAll, beforeEach, describe, expect, it } from "vitest";

interface Answer {
  status?: number;
  type?: string;
  body: string;
  /** Cut after the body instead of ended. */
  cut?: true;
}
let answer: Answer;
const asked: Record<string, unknown>[] = [];
const server = createServer((request, response) => {
  let body = "";
  request.on("data", (piece) => {
    body += piece;
  });
  request.on("end", () => {
    asked.push(JSON.parse(body));
    response.writeHead(answer.status ?? 200, { "content-type": answer.type ?? "text/event-stream" });
    if (!answer.cut) return void response.end(answer.body);
    response.write(answer.body, () => setTimeout(() => response.destroy(), 20));
  });
});
await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
afterAll(() => void server.close());
beforeEach(() => void asked.splice(0));
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

const prices = Object.fromEntries(
  ["openai", "anthropic", "google", "house"].map((id) => [`${id}/*`, { input: 1, output: 2 }]),
);
const models = createModels(
  modelConfig.parse({
    OPENAI_API_KEY: "k-000000",
    OPENAI_BASE_URL: url,
    ANTHROPIC_API_KEY: "k-000000",
    ANTHROPIC_BASE_URL: url,
    GOOGLE_GENERATIVE_AI_API_KEY: "k-000000",
    GOOGLE_GENERATIVE_AI_BASE_URL: url,
    MODEL_PRICES: JSON.stringify(prices),
  }),
  { providers: { house: { type: "openai-compatible", baseURL: url } } },
);
const tools = [{ name: "look", description: "looks", inputSchema: { type: "object", properties: {} } }];
const user: ModelMessage = { role: "user", content: "hello" };
const call = async (model: Model, messages: ModelMessage[] = [user], toolChoice: "auto" | "none" = "auto") => {
  let streamed = "";
  const result = await model.call(
    { messages, tools, toolChoice },
    {
      signal: new AbortController().signal,
      onText: (delta) => {
        streamed += delta;
      },
    },
  );
  return { result, streamed };
};

const events = (...datas: object[]) => datas.map((data) => `data: ${JSON.stringify(data)}\n\n`).join("");
/** Chat completions. */
const chat = (deltas: object[], finish: string | null, usage?: object) =>
  events(
    ...deltas.map((delta) => ({
      id: "c",
      object: "chat.completion.chunk",
      created: 1,
      model: "m",
      choices: [{ index: 0, delta, finish_reason: null }],
    })),
    {
      id: "c",
      object: "chat.completion.chunk",
      created: 1,
      model: "m",
      choices: [{ index: 0, delta: {}, finish_reason: finish }],
      ...(usage && { usage }),
    },
  );
const usage = { prompt_tokens: 10, completion_tokens: 5, total_tokens: 15 };
const anthropic = (stop: string | null, content = "Hi", input = 1000) =>
  [
    [
      "message_start",
      {
        message: {
          id: "m",
          type: "message",
          role: "assistant",
          model: "c",
          content: [],
          stop_reason: null,
          stop_sequence: null,
          usage: { input_tokens: input, output_tokens: 1 },
        },
      },
    ],
    ["content_block_start", { index: 0, content_block: { type: "text", text: "" } }],
    ["content_block_delta", { index: 0, delta: { type: "text_delta", text: content } }],
    ...(stop === null
      ? []
      : [
          ["content_block_stop", { index: 0 }],
          ["message_delta", { delta: { stop_reason: stop, stop_sequence: null }, usage: { output_tokens: 7 } }],
          ["message_stop", {}],
        ]),
  ]
    .map(([type, data]) => `event: ${type}\ndata: ${JSON.stringify({ type, ...(data as object) })}\n\n`)
    .join("");
const gemini = (finishReason: string, text = "Hi") =>
  events({
    candidates: [{ content: { role: "model", parts: [{ text }] }, finishReason, index: 0 }],
    usageMetadata: { promptTokenCount: 10, candidatesTokenCount: 5, totalTokenCount: 15 },
  });
const house = () => models.resolve("house/m");

describe("how a reply ended", () => {
  it.each([
    ["house/m", chat([{ content: "Hi" }], "length", usage), "length"],
    ["house/m", chat([{ content: "Hi" }], "content_filter", usage), "content-filter"],
    ["house/m", chat([{ content: "Hi" }], "eos", usage), "other"],
    ["anthropic/c", anthropic("max_tokens"), "length"],
    ["anthropic/c", anthropic("model_context_window_exceeded"), "length"],
    ["anthropic/c", anthropic("refusal"), "content-filter"],
    ["anthropic/c", anthropic("end_turn"), "stop"],
    ["google/g", gemini("MAX_TOKENS"), "length"],
    ["google/g", gemini("SAFETY"), "content-filter"],
    ["google/g", gemini("STOP"), "stop"],
  ])("is told: %s %#", async (id, body, finishReason) => {
    answer = { body };
    expect((await call(models.resolve(id))).result).toMatchObject({ ok: true, text: "Hi", finishReason });
  });

  it("a paused turn keeps its provider's word", async () => {
    answer = { body: anthropic("pause_turn") };
    expect((await call(models.resolve("anthropic/c"))).result).toMatchObject({
      ok: true,
      rawFinishReason: "pause_turn",
    });
  });
});

describe("a stream", () => {
  it("that closes right after its last line is whole", async () => {
    answer = { body: chat([{ content: "Hi" }], "stop", usage).trimEnd() };
    expect((await call(house())).result).toMatchObject({ ok: true, text: "Hi", usage: { input: 10, output: 5 } });
  });

  it("that is cut costs what was counted, or nobody knows what", async () => {
    answer = { body: anthropic(null, "x".repeat(400)), cut: true };
    expect((await call(models.resolve("anthropic/c"))).result).toMatchObject({
      ok: false,
      retryable: true,
      spent: { usage: { input: 1000, output: 100 }, costNanos: 1_200_000 },
    });
    answer = {
      body: chat([{ content: "Hi" }], "stop")
        .split("\n\n")[0]!
        .concat("\n\n"),
      cut: true,
    };
    expect((await call(house())).result).toMatchObject({ ok: false, spent: { costNanos: null } });
  });

  it("that was refused costs nothing", async () => {
    answer = { status: 503, type: "application/json", body: '{"error":{"message":"later"}}' };
    const { result } = await call(house());
    expect(result).toMatchObject({ ok: false, retryable: true });
    expect(result).not.toHaveProperty("spent");
  });
});

describe("counts", () => {
  it.each([
    [{ prompt_tokens: 10.5, completion_tokens: 5, total_tokens: 16 }, { input: 11, output: 5 }, 21_000],
    [{ prompt_tokens: -5, completion_tokens: 5, total_tokens: 0 }, { input: 0, output: 5 }, null],
    [{ prompt_tokens: 1e20, completion_tokens: 5, total_tokens: 1e20 }, { input: 0, output: 5 }, null],
    [
      { prompt_tokens: 10, completion_tokens: 5, total_tokens: 15, prompt_tokens_details: { cached_tokens: 50 } },
      { input: 10, output: 5, cached: 10 },
      null,
    ],
  ])("%j are made whole, or the cost is not known", async (counts, wanted, costNanos) => {
    answer = { body: chat([{ content: "Hi" }], "stop", counts) };
    expect((await call(house())).result).toMatchObject({ ok: true, text: "Hi", usage: wanted, costNanos });
  });
});

it("an error document under a 200 is told, and is the provider's answer", async () => {
  answer = { type: "application/json", body: '{"error":{"message":"the model is overloaded today"}}' };
  expect((await call(house())).result).toMatchObject({
    ok: false,
    isAnswer: true,
    message: expect.stringContaining("the model is overloaded today"),
  });
});

describe("tool calls", () => {
  const asks = (args: string, finish = "tool_calls", name = "look") =>
    chat(
      [{ tool_calls: [{ index: 0, id: "call_1", type: "function", function: { name, arguments: args } }] }],
      finish,
      usage,
    );

  it("without arguments have none", async () => {
    answer = { body: asks("null") };
    expect((await call(house())).result).toMatchObject({ toolCalls: [{ name: "look", input: {} }] });
  });

  it("whose arguments were cut say so", async () => {
    answer = { body: asks('{"a": "bc', "length") };
    expect((await call(house())).result).toMatchObject({
      finishReason: "length",
      toolCalls: [{ invalid: expect.stringContaining("cut at its longest") }],
    });
  });

  it("in a turn that may call none are an answer, and paid for", async () => {
    answer = {
      body: chat(
        [
          { content: "Done. " },
          { tool_calls: [{ index: 0, id: "1", type: "function", function: { name: "look", arguments: "{}" } }] },
        ],
        "tool_calls",
        usage,
      ),
    };
    expect((await call(house(), [user], "none")).result).toMatchObject({ ok: true, text: "Done. ", costNanos: 20_000 });
  });
});

it("a poisoned history goes out as every provider accepts it, and two odd ids stay two", async () => {
  const of = (id: string, name: string): ModelMessage[] => [
    {
      role: "assistant",
      content: [
        { type: "text", text: "  " },
        { type: "tool-call", toolCallId: id, toolName: name, input: "not an object" },
      ],
    },
    {
      role: "tool",
      content: [{ type: "tool-result", toolCallId: id, toolName: name, output: { type: "text", value: "no" } }],
    },
  ];
  const messages = [
    user,
    ...of("functions.echo:0", "functions.echo<|channel|>commentary"),
    ...of("functions.echo/0", "$READFILE"),
    ...of("x".repeat(100), "look"),
  ];
  answer = { body: chat([{ content: "ok" }], "stop", usage) };
  await call(house(), messages);
  const sent = asked[0]!.messages as {
    tool_calls?: { id: string; function: { name: string; arguments: string } }[];
    tool_call_id?: string;
  }[];
  const calls = sent.flatMap((message) => message.tool_calls ?? []);
  expect(calls.map((one) => one.function.name)).toEqual(["functions_echo__channel__commentary", "_READFILE", "look"]);
  expect(calls.map((one) => one.id)).toEqual(["functions_echo_0", "functions_echo_0_2", "x".repeat(64)]);
  expect(calls.map((one) => one.function.arguments)).toEqual(["{}", "{}", "{}"]);
  expect(sent.flatMap((message) => message.tool_call_id ?? [])).toEqual(calls.map((one) => one.id));
  answer = { body: anthropic("end_turn") };
  await call(models.resolve("anthropic/c"), messages);
  const parts = (
    asked[1]!.messages as { content: { type: string; id?: string; name?: string; text?: string }[] }[]
  ).flatMap(({ content }) => content);
  for (const part of parts) {
    if (part.type === "tool_use") expect(`${part.id} ${part.name}`).toMatch(/^[\w-]{1,64} [\w-]{1,64}$/);
    if (part.type === "text") expect(part.text!.trim()).not.toBe("");
  }
});
