/**
 * One model call through the AI SDK, always streamed. It uses the SDK's single call (`streamLanguageModelCall`) and not
 * `streamText`: the loop around it is Drover's own, and `streamText` costs 2.5 times the CPU and twice the memory of an open
 * stream (docs/decisions). Nothing is retried here.
 */
import type { LanguageModelV4 } from "@ai-sdk/provider";
import {
  jsonSchema,
  type SystemModelMessage,
  experimental_streamLanguageModelCall as streamLanguageModelCall,
  type ToolSet,
} from "ai";
import { type FailureContext, toFailure, unfinished } from "./failure.ts";
import type {
  Model,
  ModelCallOptions,
  ModelFailure,
  ModelMessage,
  ModelRequest,
  ModelResult,
  ToolCallRequest,
  Usage,
} from "./model.ts";
import type { TokenCounts } from "./pricing.ts";
import { acceptable } from "./prompt.ts";
import { Reply, tokenCount } from "./reply.ts";

/** The SDK's own way to say: print no warnings. */
(globalThis as { AI_SDK_LOG_WARNINGS?: boolean }).AI_SDK_LOG_WARNINGS = false;

type ProviderOptions = NonNullable<SystemModelMessage["providerOptions"]>;

export interface ProviderModelOptions {
  /** `provider/model`. */
  id: string;
  languageModel: LanguageModelV4;
  context: FailureContext;
  /** Nano-USD of a call, null when the price or the usage is not known. */
  price: (counts: TokenCounts) => number | null;
  /** Options of the adapter for every call. */
  providerOptions?: ProviderOptions;
  /** Marks the end of the system prompt and of the conversation for a provider that caches only what is marked. */
  cacheMark?: ProviderOptions;
}

export function createProviderModel(options: ProviderModelOptions): Model {
  return {
    id: options.id,
    // What is written to a cache costs more than what is read plainly.
    worstCaseNanos: ({ input, output }) =>
      options.price({ input, output, cached: 0, cacheWrite: options.cacheMark ? input : 0 }),
    call: (request, call) => callProvider(options, request, call),
  };
}

async function callProvider(
  model: ProviderModelOptions,
  request: ModelRequest,
  { signal, onText }: ModelCallOptions,
): Promise<ModelResult> {
  const reply = new Reply(request.messages);
  if (signal.aborted) return aborted(reply.text);
  // Own controller: the SDK and fetch leave listeners behind, which must not pile up on a run's signal over many turns.
  const controller = new AbortController();
  const abort = () => controller.abort();
  signal.addEventListener("abort", abort, { once: true });
  try {
    const { stream } = await streamLanguageModelCall({
      model: model.languageModel,
      ...prompt(model, request),
      ...(model.providerOptions ? { providerOptions: model.providerOptions } : {}),
      download: refuseDownload,
      abortSignal: controller.signal,
    });
    for await (const part of stream) {
      // It called a tool in a turn that may call none, and the turn is over: what it said counts.
      if (part.type === "error" && isViolation(part.error)) {
        reply.finishReason = "tool-calls";
        continue;
      }
      if (part.type === "error") throw part.error;
      const delta = reply.add(part);
      if (delta !== "") onText?.(delta);
    }
  } catch (error) {
    if (signal.aborted) return aborted(reply.text, spent(model, reply));
    const { sent, ...failure } = toFailure(error, model.context);
    return { ...failure, text: reply.text, ...((reply.began || sent) && { spent: spent(model, reply) }) };
  } finally {
    signal.removeEventListener("abort", abort);
  }
  const { finishReason } = reply;
  if (finishReason === undefined || finishReason === "error" || finishReason === "interrupted") {
    if (signal.aborted) return aborted(reply.text, spent(model, reply));
    return { ...unfinished(reply.rawFinishReason, model.context), text: reply.text, spent: spent(model, reply) };
  }
  return finished(model, reply, finishReason);
}

function finished(model: ProviderModelOptions, reply: Reply, finishReason: string): ModelResult {
  const isCut = finishReason === "length";
  return {
    ok: true,
    text: reply.text,
    toolCalls: isCut ? reply.toolCalls.map(sayCut) : reply.toolCalls,
    messages: reply.messages(),
    finishReason,
    rawFinishReason: reply.rawFinishReason,
    requestId: reply.id,
    ...counted(model, reply),
  };
}

/** Arguments that are no JSON because the reply ended in the middle of them. */
const sayCut = (call: ToolCallRequest): ToolCallRequest =>
  call.invalid === undefined
    ? call
    : {
        ...call,
        invalid: `The reply was cut at its longest in the middle of the arguments of ${call.name}. Call it again with shorter ones, or do it in several calls.`,
      };

/** What a call took, as the provider counted it at its end; null where it counted nothing, or what cannot be. */
function counted(model: ProviderModelOptions, { usage }: Reply): { usage: Usage; costNanos: number | null } {
  const input = tokenCount(usage?.inputTokens);
  const output = tokenCount(usage?.outputTokens);
  const { cacheReadTokens, cacheWriteTokens } = usage?.inputTokenDetails ?? {};
  const cached = tokenCount(cacheReadTokens ?? 0);
  const cacheWrite = tokenCount(cacheWriteTokens ?? 0);
  const isWhole =
    input !== undefined &&
    output !== undefined &&
    cached !== undefined &&
    cacheWrite !== undefined &&
    cached + cacheWrite <= input;
  return {
    usage: { input: input ?? 0, output: output ?? 0, cached: Math.min(cached ?? 0, input ?? 0) },
    costNanos: isWhole ? model.price({ input, output, cached, cacheWrite }) : null,
  };
}

/** Of a call that did not end well, as far as it was counted; the reply's part by its length, four bytes a token. */
function spent(model: ProviderModelOptions, reply: Reply): NonNullable<ModelFailure["spent"]> {
  if (reply.usage?.inputTokens !== undefined) return counted(model, reply);
  if (!reply.inputSoFar) return { usage: { input: 0, output: 0, cached: 0 }, costNanos: null };
  const output = Math.ceil(Buffer.byteLength(reply.text) / 4);
  const { input, cached, cacheWrite } = reply.inputSoFar;
  return { usage: { input, output, cached }, costNanos: model.price({ input, output, cached, cacheWrite }) };
}

const isViolation = (error: unknown): boolean => (error as Error | undefined)?.name === "AI_ToolChoiceViolationError";

function prompt({ cacheMark }: ProviderModelOptions, request: ModelRequest) {
  const { system, tools, toolChoice, temperature, maxOutputTokens } = request;
  // One-shot calls are never read back from a cache, and writing to it costs more than plain input.
  const mark = tools.length > 0 ? cacheMark : undefined;
  const messages = acceptable(request.messages);
  const instructions: string | SystemModelMessage | undefined =
    system && mark ? { role: "system", content: system, providerOptions: mark } : system;
  return {
    ...(instructions ? { instructions } : {}),
    messages: mark ? marked(messages, mark) : messages,
    ...(tools.length > 0 ? { tools: toolSet(request), toolChoice: toolChoice ?? "auto" } : {}),
    ...(temperature === undefined ? {} : { temperature }),
    ...(maxOutputTokens === undefined ? {} : { maxOutputTokens }),
  } as const;
}

/** The messages with the mark on the last one; the caller's own stay as they are. */
function marked(messages: ModelMessage[], mark: ProviderOptions): ModelMessage[] {
  const last = messages.at(-1);
  if (!last) return messages;
  return [...messages.slice(0, -1), { ...last, providerOptions: { ...last.providerOptions, ...mark } }];
}

function toolSet({ tools }: ModelRequest): ToolSet {
  const set: ToolSet = {};
  for (const { name, description, inputSchema } of tools)
    set[name] = { description, inputSchema: jsonSchema(inputSchema) };
  return set;
}

/** A message that names a file by URL is not fetched by this process: that is the business of a tool behind the egress guard. */
async function refuseDownload(files: { isUrlSupportedByModel: boolean }[]): Promise<null[]> {
  if (files.every((file) => file.isUrlSupportedByModel)) return files.map(() => null);
  const refused = new Error("files by URL are not fetched for a model that does not take URLs");
  throw Object.assign(refused, { name: "DownloadRefused" });
}

function aborted(text: string, spent?: ModelFailure["spent"]): ModelFailure {
  const message = "the model call was aborted";
  return { ok: false, code: "aborted", retryable: false, message, text, ...(spent && { spent }) };
}
