import { createDemoModel, type ModelMessage, type ModelRequest, type ToolSpec } from "@drover/llm";
import { describe, expect, it } from "vitest";

const toolNames = ["calculate", "file_read", "file_list", "http_get", "wait"];
const tools: ToolSpec[] = toolNames.map((name) => ({ name, description: name, inputSchema: { type: "object" } }));
const model = createDemoModel({ wordDelayMs: 0 });

async function call(request: Partial<ModelRequest> & { messages: ModelMessage[] }) {
  const result = await model.call({ tools, ...request }, { signal: new AbortController().signal });
  if (!result.ok) throw new Error(result.message);
  return result;
}

const user = (content: string): ModelMessage => ({ role: "user", content });
type Output = Extract<Extract<ModelMessage, { role: "tool" }>["content"][number], { type: "tool-result" }>["output"];
const results = (outputs: Record<string, Output>): ModelMessage => ({
  role: "tool",
  content: Object.entries(outputs).map(([toolCallId, output]) => ({
    type: "tool-result",
    toolCallId,
    toolName: "any",
    output,
  })),
});
const text = (value: string): Output => ({ type: "text", value });

/** The calls of the first turn, as `tool input`. */
async function calls(query: string): Promise<string[]> {
  const { toolCalls } = await call({ messages: [user(query)] });
  return toolCalls.map(({ name, input }) => `${name} ${JSON.stringify(input)}`);
}

const calculate = (expression: string) => `calculate ${JSON.stringify({ expression })}`;

describe("what it understands", () => {
  it.each([
    ["What is 17 * 23?", "17 * 23"],
    ["2+2", "2 + 2"],
    ["Compute (1 + 2) * -3.5 please.", "(1 + 2) * - 3.5"],
    ["how much is 1,250 plus 3 times 4", "1250 + 3 * 4"],
    ["what is 10 divided by 4?", "10 / 4"],
    ["20% of 50", "20 /100* 50"],
    ["3 x 4 and nothing else", "3 * 4"],
    ["(what is 2^10)", "2 ^ 10"],
    ["is 8 \u00d7 8 \u2212 1 a prime?", "8 * 8 - 1"],
  ])("arithmetic: %s", async (query, expression) => {
    expect(await calls(query)).toEqual([calculate(expression)]);
  });

  it.each([
    "I was born on 2026-11-21",
    "see report-2026-11.txt",
    "version v1.2-3",
    "I have 3 apples",
    "24 hours",
    "a - b",
    "()+-",
    "",
  ])("no arithmetic: %s", async (query) => {
    expect((await calls(query)).filter((line) => line.startsWith("calculate"))).toEqual([]);
  });

  it.each([
    ["read notes.txt", ['file_read {"path":"notes.txt"}']],
    ["Please summarize the file docs/a.md.", ['file_read {"path":"docs/a.md"}']],
    ["read a.txt, b.txt and c.txt", ["a", "b", "c"].map((name) => `file_read {"path":"${name}.txt"}`)],
    ["open the file Makefile", ['file_read {"path":"Makefile"}']],
    ["read the newspaper", []],
    ["list the files", ["file_list {}"]],
    ["Which files are in src/lib?", ['file_list {"path":"src/lib"}']],
    ["list all files in the workspace", ["file_list {}"]],
    ["wait 2 seconds", ['wait {"seconds":2}']],
    ["sleep for 250 ms", ['wait {"seconds":0.25}']],
    ["pause 1 minute", ['wait {"seconds":60}']],
    ["fetch https://example.com/a?b=1-2, please", ['http_get {"url":"https://example.com/a?b=1-2"}']],
  ])("%s", async (query, expected) => {
    expect(await calls(query)).toEqual(expected);
  });

  it("answers a long query at once", async () => {
    const query = `${"1 ".repeat(50_000)}${"read ".repeat(20_000)}${"list all ".repeat(20_000)}${"(".repeat(50_000)}`;
    expect((await call({ messages: [user(query)] })).ok).toBe(true);
  });
});

describe("how it goes on", () => {
  it("does several things at once, and what comes after a then later", async () => {
    const query = user("Read a.txt and what is 2 + 2? Then wait 1 second.");
    const first = await call({ messages: [query] });
    expect(first.toolCalls.map((toolCall) => toolCall.name)).toEqual(["file_read", "calculate"]);
    const ids = first.toolCalls.map((toolCall) => toolCall.id);
    const after = [query, ...first.messages, results({ [ids[0]!]: text("hello"), [ids[1]!]: text("4") })];
    const second = await call({ messages: after });
    expect(second.toolCalls.map((toolCall) => toolCall.name)).toEqual(["wait"]);
    const waited = results({ [second.toolCalls[0]!.id]: { type: "json", value: { waited: 1 } } });
    const third = await call({ messages: [...after, ...second.messages, waited] });
    expect(third).toMatchObject({ toolCalls: [], finishReason: "stop" });
    expect(third.text).toContain("demo model");
    expect(third.text).toContain("read a.txt: hello");
    expect(third.text).toContain("2 + 2: 4");
    expect(third.text).toContain('wait 1 s: {"waited":1}');
  });

  it("asks again only for what has no result yet", async () => {
    const query = user("read a.txt and b.txt");
    const first = await call({ messages: [query] });
    const [a, b] = first.toolCalls;
    const half = await call({ messages: [query, ...first.messages, results({ [a!.id]: text("A") })] });
    expect(half.toolCalls).toEqual([b]);
  });

  it("reports the errors of tools", async () => {
    const query = user("read a.txt, b.txt and c.txt");
    const first = await call({ messages: [query] });
    const [a, b, c] = first.toolCalls.map((toolCall) => toolCall.id);
    const outputs = results({
      [a!]: { type: "error-text", value: "no such file" },
      [b!]: { type: "execution-denied", reason: "a person said no" },
      [c!]: { type: "error-json", value: { message: "too large" } },
    });
    const { text: answer } = await call({ messages: [query, ...first.messages, outputs] });
    expect(answer).toContain("read a.txt: failed, no such file");
    expect(answer).toContain("read b.txt: failed, a person said no");
    expect(answer).toContain("read c.txt: failed, too large");
  });

  it("reports what is marked as coming from outside without the mark", async () => {
    const query = user("read a.txt and b.txt");
    const first = await call({ messages: [query] });
    const [a, b] = first.toolCalls.map((toolCall) => toolCall.id);
    const marked = (content: string) => text(`<untrusted source="x" note="y">\n${content}\n</untrusted>`);
    const outputs = results({ [a!]: marked('{"status":200,"body":"sunny"}'), [b!]: marked("plain\nlines") });
    const { text: answer } = await call({ messages: [query, ...first.messages, outputs] });
    expect(answer).toContain("read a.txt: sunny\n");
    expect(answer).toContain("read b.txt: plain\nlines");
    expect(answer).not.toContain("untrusted");
  });

  it("says which tool it misses, also in a turn without tools", async () => {
    const { text: answer, toolCalls } = await call({ messages: [user("wait 3 seconds")], tools: tools.slice(0, 2) });
    expect(toolCalls).toEqual([]);
    expect(answer).toContain("there is no tool wait here");
    const wrapUp = [user("what is 1 + 1"), user("Your time is up: answer now.")];
    expect((await call({ messages: wrapUp, toolChoice: "none" })).text).toContain("1 + 1: not done");
  });

  it("answers the query, not the request to come to an end, when it was cut off", async () => {
    const query = user("read a.txt then wait 5 s");
    const first = await call({ messages: [query] });
    const outputs = results({ [first.toolCalls[0]!.id]: text("hello") });
    const cut: ModelMessage = { role: "assistant", content: "I will" };
    const end = user("The time is over. Say what is missing.");
    const { text: answer, toolCalls } = await call({
      messages: [query, ...first.messages, outputs, cut, end],
      toolChoice: "none",
    });
    expect(toolCalls).toEqual([]);
    expect(answer).toContain("read a.txt: hello");
    expect(answer).toContain("wait 5 s: not done");
  });

  it("takes each question of a session by itself, with ids of its own", async () => {
    const first = await call({ messages: [user("what is 1 + 1?")] });
    const answered = [
      user("what is 1 + 1?"),
      ...first.messages,
      results({ [first.toolCalls[0]!.id]: text("2") }),
      { role: "assistant", content: "It is 2." } as const,
    ];
    const next = await call({ messages: [...answered, user("what is 1 + 1?")] });
    expect(next.toolCalls).toHaveLength(1);
    expect(next.toolCalls[0]!.id).not.toBe(first.toolCalls[0]!.id);
    expect((await call({ messages: [...answered, user("thanks")] })).text).toContain("no rule");
  });

  it("is the same every time", async () => {
    const request = { messages: [user("read a.txt and wait 1 s")] };
    expect(await call(request)).toStrictEqual(await call(request));
  });
});

it("says that it is a demo and how to set a key when it understands nothing", async () => {
  const { text: answer, costNanos } = await call({ messages: [user("Write a poem about rain")] });
  expect(answer).toContain("demo model");
  expect(answer).toContain('"Write a poem about rain"');
  expect(answer).toContain("ANTHROPIC_API_KEY");
  expect(costNanos).toBe(0);
});

it("stops in a pause between two words when it is aborted", async () => {
  const slow = createDemoModel({ wordDelayMs: 60_000 });
  const controller = new AbortController();
  const words: string[] = [];
  const onText = (word: string) => {
    words.push(word);
    controller.abort();
  };
  const result = await slow.call({ messages: [user("hello")], tools }, { signal: controller.signal, onText });
  expect(result).toMatchObject({ ok: false, code: "aborted", retryable: false, text: words.join("") });
  expect(words).toHaveLength(1);
});
