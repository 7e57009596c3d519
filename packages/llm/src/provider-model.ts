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
import type { Model, ModelCallOptions, ModelMessage, ModelRequest, ModelResult } from "./model.ts";
import type { TokenCounts } from "./pricing.ts";
import { Reply } from "./reply.ts";

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
      if (part.type === "error") throw part.error;
      const delta = reply.add(part);
      if (delta !== "") onText?.(delta);
    }
  } catch (error) {
    if (signal.aborted) return aborted(reply.text);
    return { ...toFailure(error, model.context), text: reply.text };
  } finally {
    signal.removeEventListener("abort", abort);
  }
  const { finishReason } = reply;
  if (finishReason === undefined || finishReason === "error" || finishReason === "interrupted") {
    if (signal.aborted) return aborted(reply.text);
    return { ...unfinished(reply.rawFinishReason, model.context), text: reply.text };
  }
  return finished(model, reply, finishReason);
}

function finished(model: ProviderModelOptions, reply: Reply, finishReason: string): ModelResult {
  const { inputTokens, outputTokens, inputTokenDetails } = reply.usage ?? {};
  const usage = {
    input: inputTokens ?? 0,
    output: outputTokens ?? 0,
    cached: inputTokenDetails?.cacheReadTokens ?? 0,
  };
  const counted = inputTokens !== undefined && outputTokens !== undefined;
  return {
    ok: true,
    text: reply.text,
    toolCalls: reply.toolCalls,
    messages: reply.messages(),
    finishReason,
    usage,
    costNanos: counted ? model.price({ ...usage, cacheWrite: inputTokenDetails?.cacheWriteTokens ?? 0 }) : null,
  };
}

function prompt({ cacheMark }: ProviderModelOptions, request: ModelRequest) {
  const { system, tools, toolChoice, temperature, maxOutputTokens } = request;
  // One-shot calls are never read back from a cache, and writing to it costs more than plain input.
  const mark = tools.length > 0 ? cacheMark : undefined;
  const instructions: string | SystemModelMessage | undefined =
    system && mark ? { role: "system", content: system, providerOptions: mark } : system;
  return {
    ...(instructions ? { instructions } : {}),
    messages: mark ? marked(request.messages, mark) : request.messages,
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

function aborted(text: string): ModelResult {
  return { ok: false, code: "aborted", retryable: false, message: "the model call was aborted", text };
}
