/**
 * One model call as the loop needs it: its text recorded while it streams, its reply as an event of the log, its abort obeyed
 * whatever the model does, and a model that throws turned into a failure.
 */
import type { Model, ModelFailure, ModelMessage, ModelReply, ModelRequest, ModelResult } from "@drover/llm";
import type { AgentDefinition } from "./agent.ts";
import type { RunControl } from "./control.ts";
import type { NewEvent } from "./events.ts";
import { plainReply, type RunState, toUsd } from "./fold.ts";
import type { Toolbox } from "./registry.ts";

export interface ReplyOptions {
  agent: AgentDefinition;
  model: Model;
  toolbox: Toolbox;
  state: RunState;
  control: RunControl;
  /** Makes one event durable; the loop goes on when it resolves. */
  append(event: NewEvent): Promise<void>;
  onText?(delta: string): void;
  /** Longest silence between two `model.partial` of one call, ms (default 5,000). */
  partialEveryMs?: number;
}

export interface Turn {
  messages: ModelMessage[];
  signal: AbortSignal;
  /** The last turn: no tools, few tokens. */
  wrapUp?: true;
}

const wrapUpTokens = 1024;

/**
 * Returns the failure, or nothing once the reply is recorded. Throws only what an `append` or a callback threw; the call is
 * aborted by then.
 */
export async function streamReply(loop: ReplyOptions, turn: Turn): Promise<ModelFailure | undefined> {
  const { state, control } = loop;
  const iteration = state.iterations + 1;
  const startedAt = performance.now();
  let text = "";
  // The wrap-up's text is worth recording once it says more than the call that was cut.
  let recorded = turn.wrapUp ? state.partialText.length : 0;
  let recording: Promise<void> | undefined;
  let broken: { error: unknown } | undefined;
  const breakOff = (error: unknown) => {
    broken ??= { error };
    control.stop("broken");
  };
  const ticker = setInterval(() => {
    if (text.length <= recorded || recording) return;
    recorded = text.length;
    recording = loop
      .append({ type: "model.partial", data: { iteration, text } })
      .catch(breakOff)
      .finally(() => {
        recording = undefined;
      });
  }, loop.partialEveryMs ?? 5000);
  const result = await callOrAbort(loop, requestOf(loop, turn), turn.signal, (delta) => {
    text += delta;
    try {
      loop.onText?.(delta);
    } catch (error) {
      breakOff(error);
    }
  });
  clearInterval(ticker);
  await recording;
  if (broken) throw broken.error;
  if (!result.ok) return result;
  await loop.append(
    replyEvent(result, { iteration, model: loop.model.id, startedAt, ...(turn.wrapUp && { wrap_up: true }) }),
  );
  return undefined;
}

/** The model's answer, or a failure the moment the signal aborts: a model that ignores it does not hold the run. */
async function callOrAbort(
  { model }: ReplyOptions,
  request: ModelRequest,
  signal: AbortSignal,
  onText: (delta: string) => void,
): Promise<ModelResult> {
  let text = "";
  let over = false;
  const failed = (code: "aborted" | "model_error", message: string): ModelFailure => ({
    ok: false,
    code,
    retryable: false,
    message,
    text,
  });
  const aborted = Promise.withResolvers<ModelResult>();
  const abort = () => aborted.resolve(failed("aborted", "the model call was aborted"));
  signal.addEventListener("abort", abort);
  if (signal.aborted) abort();
  const take = (delta: string) => {
    if (over) return;
    text += delta;
    onText(delta);
  };
  try {
    return await Promise.race([model.call(request, { signal, onText: take }), aborted.promise]);
  } catch (error) {
    return failed("model_error", `${model.id} failed: ${error instanceof Error ? error.message : String(error)}`);
  } finally {
    over = true;
    signal.removeEventListener("abort", abort);
  }
}

function requestOf({ state: { input }, agent, toolbox }: ReplyOptions, turn: Turn): ModelRequest {
  const system = input.system_prompt ?? agent.systemPrompt;
  const temperature = input.temperature ?? agent.temperature;
  const maxTokens = input.max_tokens ?? agent.maxTokens;
  const maxOutputTokens = turn.wrapUp ? Math.min(maxTokens ?? wrapUpTokens, wrapUpTokens) : maxTokens;
  return {
    messages: turn.messages,
    tools: toolbox.specs,
    ...(turn.wrapUp && { toolChoice: "none" as const }),
    ...(system !== undefined && { system }),
    ...(temperature !== undefined && { temperature }),
    ...(maxOutputTokens !== undefined && { maxOutputTokens }),
  };
}

function replyEvent(
  reply: ModelReply,
  about: { iteration: number; model: string; startedAt: number; wrap_up?: true },
): NewEvent {
  const { startedAt, wrap_up, ...rest } = about;
  const calls = wrap_up ? [] : reply.toolCalls;
  const plain = JSON.stringify(plainReply(reply.text, calls)) === JSON.stringify(reply.messages);
  return {
    type: "model.call",
    data: {
      ...rest,
      text: reply.text,
      tool_calls: calls,
      ...(!plain && !wrap_up && { messages: reply.messages }),
      finish_reason: reply.finishReason,
      usage: reply.usage,
      cost_usd: reply.costNanos === null ? null : toUsd(reply.costNanos),
      duration_ms: Math.round(performance.now() - startedAt),
      ...(wrap_up && { wrap_up }),
    },
  };
}
