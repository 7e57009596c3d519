/** What the three wire modules give the server: how to read a request, how to stream a reply, how to word an error. */
import type { ModelServerCall, ScriptedReply, ScriptedUsage, ServedMessage } from "./script.ts";

/** A piece of the answer's body. `text` frames are what a reply's chunk numbers count. */
export interface Frame {
  data: string;
  text?: true;
}

type ParsedRequest = Pick<ModelServerCall, "model" | "system" | "tools" | "messages">;
export type Json = Record<string, unknown>;

export interface Wire {
  parse(body: Json, path: string): ParsedRequest;
  frames(reply: ResolvedReply): Frame[];
  /** The wire's error event in the middle of a stream. */
  errorFrame(error: { type: string; message: string; code?: number }): string;
  /** The body of an HTTP error. */
  errorBody(status: number, message: string): string;
}

export interface ResolvedReply {
  index: number;
  model: string;
  chunks: string[];
  reasoning: string | undefined;
  toolCalls: { id: string; name: string; arguments: string }[];
  usage: Required<ScriptedUsage> | null;
  finishReason: string | undefined;
}

/** Fills in a reply's defaults; tool call ids are `call_<server call>_<n>`. */
export function resolveReply(reply: ScriptedReply, index: number, model: string): ResolvedReply {
  const { usage } = reply;
  return {
    index,
    model,
    chunks: typeof reply.text === "string" ? (reply.text.match(/\s*\S+\s*$|\s*\S+/g) ?? []) : (reply.text ?? []),
    reasoning: reply.reasoning,
    toolCalls: (reply.toolCalls ?? []).map((call, n) => ({
      id: call.id ?? `call_${index}_${n}`,
      name: call.name,
      arguments: call.rawInput ?? JSON.stringify(call.input ?? {}),
    })),
    usage: usage === null ? null : { cached: 0, cacheWrite: 0, ...(usage ?? { input: 10, output: 5 }) },
    finishReason: reply.finishReason,
  };
}

export const sse = (data: unknown, event?: string): string =>
  `${event === undefined ? "" : `event: ${event}\n`}data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`;

/** Text of a content that is a string or a list of parts with `text`. */
export function textOf(content: unknown): string {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return "";
  return content.map((part: Json) => (typeof part.text === "string" ? part.text : "")).join("");
}

export const message = (role: "user" | "assistant", more: Partial<ServedMessage> = {}): ServedMessage => ({
  role,
  text: "",
  toolCalls: [],
  toolResults: [],
  ...more,
});

export const asString = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));

/** Parsed JSON, or the text itself where it is none. */
export function parseLoosely(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
