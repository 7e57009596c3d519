/**
 * The port of one model call. Everything that can go wrong is a value (`ModelFailure`), never a throw: the loop decides by
 * `retryable` what to do. Implementations: the AI SDK's providers, the built-in demo model, and models of a user's own.
 */
import type { ModelMessage } from "ai";

export type { ModelMessage };

/** What a model may call, in JSON Schema. */
export interface ToolSpec {
  name: string;
  description: string;
  inputSchema: Record<string, unknown>;
}

export interface ModelRequest {
  system?: string;
  messages: ModelMessage[];
  tools: ToolSpec[];
  /** `none`: the tools are named (some providers insist, when the conversation has calls) but must not be called. Default `auto`. */
  toolChoice?: "auto" | "none";
  temperature?: number;
  maxOutputTokens?: number;
}

export interface ModelCallOptions {
  /** Aborting ends the call with a failure of code `aborted` that carries the text so far. */
  signal: AbortSignal;
  /** Called for every piece of text as it streams in. Must not throw. */
  onText?: (delta: string) => void;
}

/** Tokens as the provider counted them; `input` includes `cached`. */
export interface Usage {
  input: number;
  output: number;
  cached: number;
}

export interface ToolCallRequest {
  id: string;
  name: string;
  input: unknown;
  /** Set when the model named an unknown tool or wrote arguments that are not JSON: what to tell it. */
  invalid?: string;
}

export interface ModelReply {
  ok: true;
  /** The answer's text, "" when it only calls tools. */
  text: string;
  toolCalls: ToolCallRequest[];
  /**
   * What to append to the conversation: the reply as the provider's adapter wants it back, plain JSON. Every tool call in
   * it, the invalid ones too, needs a result in the message after it. Empty when the model said nothing at all.
   */
  messages: ModelMessage[];
  /** `stop`, `tool-calls`, `length` (cut), `content-filter` (refused), `other` (paused, or a word we do not know). */
  finishReason: string;
  /** The provider's own word, where it says more: `pause_turn`, say. */
  rawFinishReason?: string | undefined;
  /** The provider's id of the answer. */
  requestId?: string | undefined;
  usage: Usage;
  /** Price of this call in nano-USD; null when the model's price is not known or the provider reports no usage. */
  costNanos: number | null;
}

export interface ModelFailure {
  ok: false;
  code: "auth_failed" | "invalid_input" | "model_error" | "aborted";
  retryable: boolean;
  /** The provider's own wish (`Retry-After`), in ms. */
  retryAfterMs?: number;
  /** For people. Never contains a key. */
  message: string;
  /** Text that had streamed before the failure. */
  text: string;
  /** The provider may bill it, as it does what was cut: what was counted so far, and its price; null: not known. Absent: it does not. */
  spent?: { usage: Usage; costNanos: number | null };
  /** It is the provider's answer, and would be the same next time: tried once more at most. */
  isAnswer?: true;
}

export type ModelResult = ModelReply | ModelFailure;

export interface Model {
  /** `provider/model`. */
  readonly id: string;
  /** Nano-USD that a call of so many tokens costs at most; null: its price is not known. Without it no run with a cap may use this model. */
  worstCaseNanos?(tokens: { input: number; output: number }): number | null;
  call(request: ModelRequest, options: ModelCallOptions): Promise<ModelResult>;
}
