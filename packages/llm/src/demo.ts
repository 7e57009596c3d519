/**
 * `demo/demo`: a model without a network and without a key, so that Drover can be tried at once. It follows fixed rules
 * (`demo-plan.ts`), says so in its answers, and really uses the tools it is given. It reads everything from the
 * conversation and keeps nothing, so a resumed run goes on exactly where it was.
 */
import { setTimeout as delay } from "node:timers/promises";
import { type PlannedCall, plan } from "./demo-plan.ts";
import { demoModelId } from "./known.ts";
import type { Model, ModelCallOptions, ModelMessage, ModelRequest, ModelResult, ToolCallRequest } from "./model.ts";

export interface DemoModelOptions {
  /** Pause between two words of the stream in ms; 0 streams without any pause. */
  wordDelayMs: number;
}

/** The demo model. A call costs 0, which is its true price; its tokens are counted as four characters each. */
export function createDemoModel(options: DemoModelOptions): Model {
  return { id: demoModelId, worstCaseNanos: () => 0, call: (request, call) => answer(options, request, call) };
}

interface Step extends PlannedCall {
  id: string;
  /** The tool's output, once it is in the conversation. */
  result?: { failed: boolean; text: string };
  offered: boolean;
}

async function answer(
  { wordDelayMs }: DemoModelOptions,
  request: ModelRequest,
  call: ModelCallOptions,
): Promise<ModelResult> {
  const stages = steps(request);
  const open = stages.map((stage) => stage.filter((step) => step.offered && !step.result));
  const next = open.find((stage) => stage.length > 0) ?? [];
  const text = next.length > 0 ? announcement(next) : report(stages.flat(), query(request));
  const said = await stream(text, wordDelayMs, call);
  if (said !== text) {
    return { ok: false, code: "aborted", retryable: false, message: "the model call was aborted", text: said };
  }
  const toolCalls: ToolCallRequest[] = next.map(({ id, tool, input }) => ({ id, name: tool, input }));
  const parts = toolCalls.map(
    ({ id, name, input }) => ({ type: "tool-call", toolCallId: id, toolName: name, input }) as const,
  );
  return {
    ok: true,
    text,
    toolCalls,
    messages: [{ role: "assistant", content: [{ type: "text", text }, ...parts] }],
    finishReason: next.length > 0 ? "tool-calls" : "stop",
    usage: {
      input: tokens((request.system ?? "") + JSON.stringify([request.messages, request.tools])),
      output: tokens(text + JSON.stringify(toolCalls)),
      cached: 0,
    },
    costNanos: 0,
  };
}

const tokens = (text: string): number => Math.ceil(text.length / 4);

/** Streams word by word; returns what had been said when the signal came, else the whole text. */
async function stream(text: string, wordDelayMs: number, { signal, onText }: ModelCallOptions): Promise<string> {
  let said = "";
  for (const word of text.match(/\s*\S+/g) ?? []) {
    if (wordDelayMs > 0 && said !== "") await delay(wordDelayMs, undefined, { signal }).catch(() => {});
    if (signal.aborted) return said;
    said += word;
    onText?.(word);
  }
  return said;
}

/** What the user wants now, as steps with the results they already have. Ids are unique within the conversation. */
function steps({ messages, tools, toolChoice }: ModelRequest): Step[][] {
  const results = new Map<string, Step["result"]>();
  for (const { role, content } of messages) {
    if (role !== "tool") continue;
    for (const part of content) if (part.type === "tool-result") results.set(part.toolCallId, resultOf(part.output));
  }
  const offered = new Set(toolChoice === "none" ? [] : tools.map((tool) => tool.name));
  const stages = openMessages({ messages, toolChoice }).flatMap(({ index, text }) =>
    plan(text).map((stage) => ({ index, stage })),
  );
  return stages.map(({ index, stage }, s) =>
    stage.map((planned, n) => {
      const id = `demo_${index}_${s + 1}_${n + 1}`;
      const result = results.get(id);
      return { ...planned, id, ...(result ? { result } : {}), offered: offered.has(planned.tool) };
    }),
  );
}

/** The user's messages since the last answer: the query, and what came after it while it was worked on. */
function openMessages(request: Pick<ModelRequest, "messages" | "toolChoice">): { index: number; text: string }[] {
  const messages = withoutWrapUp(request);
  const answered = messages.findLastIndex((message) => message.role === "assistant" && !callsTools(message));
  return messages.flatMap((message, index) =>
    message.role === "user" && index > answered ? [{ index, text: textOf(message.content) }] : [],
  );
}

/** In a turn that may call nothing, the last message only asks to come to an end, and text before it was cut off. */
function withoutWrapUp({ messages, toolChoice }: Pick<ModelRequest, "messages" | "toolChoice">): ModelMessage[] {
  const last = messages.findLastIndex((message) => message.role === "user");
  const before = messages.slice(0, last);
  if (toolChoice !== "none" || !before.some((message) => message.role === "user")) return messages;
  const cut = before.at(-1)!;
  return cut.role === "assistant" && !callsTools(cut) ? before.slice(0, -1) : before;
}

const query = (request: ModelRequest): string => openMessages(request)[0]?.text ?? "";

const callsTools = ({ content }: ModelMessage): boolean =>
  Array.isArray(content) && content.some((part) => part.type === "tool-call");

const textOf = (content: ModelMessage["content"]): string =>
  typeof content === "string" ? content : content.map((part) => (part.type === "text" ? part.text : "")).join("");

type ToolOutput = Extract<
  Extract<ModelMessage, { role: "tool" }>["content"][number],
  { type: "tool-result" }
>["output"];

function resultOf(output: ToolOutput): Step["result"] {
  switch (output.type) {
    case "text":
    case "error-text":
      return { failed: output.type === "error-text", text: short(unmarked(output.value)) };
    case "json":
    case "error-json":
      return { failed: output.type === "error-json", text: short(shown(output.value)) };
    case "execution-denied":
      return { failed: true, text: short(output.reason ?? "it was not allowed") };
    default:
      return { failed: false, text: short(shown(output.value)) };
  }
}

/** What the harness marks as coming from outside, without the mark: this model follows no instructions anyway. */
function unmarked(text: string): string {
  const [, content] = /^<untrusted [^\n]*>\n([\s\S]*)\n<\/untrusted>$/.exec(text) ?? [];
  if (content === undefined) return text;
  try {
    return shown(JSON.parse(content));
  } catch {
    return content;
  }
}

/** The telling part of a tool's JSON, else all of it. */
function shown(value: unknown): string {
  if (typeof value === "string") return value;
  if (typeof value === "object" && value !== null) {
    for (const key of ["error", "message", "result", "content", "text", "body"]) {
      const inner = (value as Record<string, unknown>)[key];
      if (typeof inner === "string" || typeof inner === "number") return String(inner);
    }
  }
  return JSON.stringify(value);
}

const short = (text: string): string => (text.length > 600 ? `${text.slice(0, 600)} ...` : text);

const announcement = (next: Step[]): string => `I will ${next.map((step) => step.label).join(", ")}.`;

const introduction = "I am Drover's built-in demo model: a few fixed rules, no language model.";

function report(all: Step[], asked: string): string {
  if (all.length === 0) return helpless(asked);
  const lines = all.map(({ label, tool, result }) => {
    if (!result) return `- ${label}: not done, there is no tool ${tool} here`;
    return `- ${label}: ${result.failed ? `failed, ${result.text}` : result.text}`;
  });
  return `${introduction} This is what the tools say:\n${lines.join("\n")}`;
}

const helpless = (asked: string): string =>
  `${introduction} I have no rule for "${short(asked.trim())}". I understand arithmetic ("what is 17 * 23?"), "read notes.txt", ` +
  `"list files", "wait 3 seconds" and URLs; several at once, or one after the other with "then". For real answers set ` +
  "ANTHROPIC_API_KEY, OPENAI_API_KEY, GOOGLE_GENERATIVE_AI_API_KEY or OLLAMA_BASE_URL and start Drover again.";
