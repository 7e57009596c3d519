/**
 * One model call as the loop needs it: paid for beforehand, its text recorded while it streams, its reply as an event of the log as the
 * policies leave it, its abort obeyed whatever the model does, and a model that throws turned into a failure.
 */
import type { Model, ModelFailure, ModelMessage, ModelReply, ModelRequest, ModelResult } from "@drover/llm";
import { messageOf } from "@drover/telemetry";
import { policyEntry } from "../door/call.ts";
import type { DoorOptions } from "../door/door.ts";
import { openStray } from "../door/stray.ts";
import type { AgentDefinition } from "../library/agent.ts";
import { applyPolicies, type ChainAnswer } from "../policy/policy.ts";
import { type MoneyBudget, type Permit, permitCall } from "./budget.ts";
import type { NewEvent } from "./events.ts";
import { paused, plainReply, toUsd } from "./fold.ts";

export interface ReplyOptions extends DoorOptions {
  agent: AgentDefinition;
  model: Model;
  /** Caps around the run, and what to do at one. */
  budget: MoneyBudget;
  onBudget: "stop" | "pause";
  /** The reply's text as it streams. Silent while a policy looks at outputs: what it would take out must not be out already. */
  onText?(delta: string, at: { iteration: number; offset: number }): void;
  /** Longest silence between two `model.partial` of one call, ms (default 5,000). */
  partialEveryMs?: number;
}

export interface Turn {
  messages: ModelMessage[];
  signal: AbortSignal;
  /** The last turn, and what makes it the last: no tools, few tokens. */
  wrapUp?: "time" | "budget" | "iterations";
}

/** Why a call was not made. */
export type Refusal = Exclude<Permit, { ok: true }>;

const wrapUpTokens = 1024;

/**
 * Returns nothing once the reply is recorded, or once `onFailure` has dealt with its failure: by then the money for it is still set aside, so that an event
 * that tells of the failure can charge it. Throws only what an `append` or a callback threw; the call is aborted by then.
 */
export async function streamReply(
  loop: ReplyOptions,
  turn: Turn,
  onFailure: (failure: ModelFailure, reservedNanos: number | undefined) => Promise<void>,
): Promise<Refusal | undefined> {
  const request = requestOf(loop, turn);
  const permit = await permitCall(loop, request, turn.wrapUp !== undefined);
  if (!permit.ok) return permit;
  if (permit.maxOutputTokens !== undefined) request.maxOutputTokens = permit.maxOutputTokens;
  let costNanos: number | null = 0;
  try {
    const result = await stream(loop, turn, request);
    if (result.ok) costNanos = result.costNanos;
    else {
      costNanos = result.spent ? result.spent.costNanos : 0;
      await onFailure(result, permit.nanos);
    }
    return;
  } finally {
    // Without its log this owner must not write at all; what is set aside comes back by itself.
    if (loop.control.cause !== "lost" && loop.control.cause !== "broken") await loop.budget.settle(costNanos);
  }
}

async function stream(loop: ReplyOptions, turn: Turn, request: ModelRequest): Promise<ModelResult> {
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
  const judged = judgesOutput(loop);
  const ticker = setInterval(() => {
    if (text.length <= recorded || recording) return;
    recorded = text.length;
    const shown = showable(loop, text);
    if (shown === null) return;
    recording = loop
      .append({ type: "model.partial", data: { iteration, text: shown } })
      .catch(breakOff)
      .finally(() => {
        recording = undefined;
      });
  }, loop.partialEveryMs ?? 5000);
  let firstAt: number | undefined;
  const answered = await callOrAbort(loop, request, turn.signal, (delta) => {
    firstAt ??= performance.now();
    const offset = text.length;
    text += delta;
    try {
      if (!judged) loop.onText?.(delta, { iteration, offset });
    } catch (error) {
      breakOff(error);
    }
  });
  clearInterval(ticker);
  await recording;
  if (broken) throw broken.error;
  const result = silence(loop, turn, answered);
  if (result.ok) await recordReply(loop, turn, result, { iteration, startedAt, firstAt });
  return result;
}

/** A first reply that neither says nor calls anything is a failure, which passes mostly; it is paid for all the same. */
function silence({ model, state }: ReplyOptions, turn: Turn, result: ModelResult): ModelResult {
  if (!result.ok || turn.wrapUp || result.text.trim() !== "" || result.toolCalls.length > 0) return result;
  if (result.finishReason !== "stop" && result.finishReason !== "tool-calls") return result;
  if (state.turns.length > 0) return result;
  const { usage, costNanos } = result;
  const message = `${model.id} gave an empty answer`;
  return {
    ok: false,
    code: "model_error",
    retryable: true,
    message,
    text: "",
    isAnswer: true,
    spent: { usage, costNanos },
  };
}

/** Whether a policy looks at what the model says. */
const judgesOutput = ({ policies }: ReplyOptions): boolean => policies.some(({ stages }) => stages.includes("output"));

function judge(loop: ReplyOptions, text: string): ChainAnswer {
  return applyPolicies(loop.policies, text, { stage: "output", seen: loop.state.seen });
}

/** Unfinished text as the policies leave it; null: it must not be shown. */
export function showable(loop: ReplyOptions, text: string): string | null {
  if (!judgesOutput(loop)) return text;
  const { action, value } = judge(loop, text);
  return action === "block" || action === "ask" ? null : String(value);
}

/** The reply in the log, as the policies leave it. An answer that a person must let pass is held back; the loop asks. */
async function recordReply(
  loop: ReplyOptions,
  turn: Turn,
  reply: ModelReply,
  about: { iteration: number; startedAt: number; firstAt: number | undefined },
): Promise<void> {
  if (!judgesOutput(loop) || reply.text === "") return await loop.append(replyEvent(loop, turn, reply, about));
  const { action, value, findings } = judge(loop, reply.text);
  for (const finding of findings)
    await loop.append(
      { type: "policy.applied", data: { stage: "output", ...finding, iteration: about.iteration } },
      policyEntry(finding, { stage: "output" }, loop.agentName),
    );
  const withheld = action === "block";
  const isAnswer = turn.wrapUp !== undefined || reply.toolCalls.length === 0;
  const held = action === "ask" && isAnswer && loop.asking === "park";
  const text = withheld ? "" : String(value);
  const messages = text === reply.text ? reply.messages : rewritten(loop, reply, text, withheld);
  const event = replyEvent(loop, turn, { ...reply, text, messages }, about);
  if (event.type === "model.call") Object.assign(event.data, withheld && { withheld }, held && { held });
  await loop.append(event);
}

/**
 * The provider's own form of a reply whose text a policy changed: each text part as the policies leave it, the others (signed thinking among them) as they are.
 * What cannot be told apart so becomes plain.
 */
function rewritten(loop: ReplyOptions, reply: ModelReply, text: string, withheld: boolean): ModelMessage[] {
  const plain = plainReply(text, reply.toolCalls);
  let left = "";
  const messages = reply.messages.map((message): ModelMessage => {
    if (message.role !== "assistant" || typeof message.content === "string") return message;
    const content = message.content.flatMap((part): typeof message.content => {
      if (part.type !== "text") return [part];
      const kept = withheld ? "" : String(judge(loop, part.text).value);
      left += kept;
      return kept === "" ? [] : [{ ...part, text: kept }];
    });
    return { ...message, content };
  });
  return left === text ? messages.filter(({ content }) => content.length > 0) : plain;
}

/** The model's answer, or a failure the moment the signal aborts: a model that ignores it does not hold the run; its answer is dropped. */
async function callOrAbort(
  { model, runId, onLate }: ReplyOptions,
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
  // Half of a surrogate pair is no character: it waits for its other half.
  let half = "";
  const take = (delta: string) => {
    if (over) return;
    text += delta;
    const whole = half + delta;
    half = /[\ud800-\udbff]$/.test(whole) ? whole.slice(-1) : "";
    const out = half === "" ? whole : whole.slice(0, -1);
    if (out !== "") onText(out);
  };
  const stray = openStray({ runId, what: `The model ${model.id}` });
  try {
    const call = stray.run(() => model.call(request, { signal, onText: take }));
    const result = await Promise.race([call, aborted.promise, stray.failed]);
    if (!result.ok && result.code === "aborted")
      call.then(
        (late) => late.ok && onLate?.({ model: model.id }),
        () => {},
      );
    return result;
  } catch (error) {
    return failed("model_error", `${model.id} failed: ${messageOf(error)}`);
  } finally {
    stray.close();
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

/** Anthropic breaks off long turns of its own tools, to have them sent back. */
const isPause = ({ rawFinishReason, toolCalls }: ModelReply): boolean =>
  rawFinishReason === "pause_turn" && toolCalls.length === 0;

function replyEvent(
  { model }: ReplyOptions,
  { wrapUp }: Turn,
  reply: ModelReply,
  { iteration, startedAt, firstAt }: { iteration: number; startedAt: number; firstAt: number | undefined },
): NewEvent {
  const calls = wrapUp ? [] : reply.toolCalls;
  const plain = JSON.stringify(plainReply(reply.text, calls)) === JSON.stringify(reply.messages);
  return {
    type: "model.call",
    data: {
      iteration,
      model: model.id,
      text: reply.text,
      tool_calls: calls,
      ...(!plain && !wrapUp && { messages: reply.messages }),
      finish_reason: isPause(reply) ? paused : reply.finishReason,
      ...(reply.rawFinishReason !== undefined &&
        reply.rawFinishReason !== reply.finishReason && { raw_finish_reason: reply.rawFinishReason.slice(0, 100) }),
      usage: reply.usage,
      cost_usd: reply.costNanos === null ? null : toUsd(reply.costNanos),
      duration_ms: Math.round(performance.now() - startedAt),
      ...(firstAt !== undefined && { ttft_ms: Math.round(firstAt - startedAt) }),
      ...(reply.requestId !== undefined && { provider_request_id: reply.requestId.slice(0, 200) }),
      ...(wrapUp && { wrap_up: true }),
      ...(wrapUp !== undefined && wrapUp !== "time" && { wrap_up_for: wrapUp }),
    },
  };
}
