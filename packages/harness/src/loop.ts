/**
 * The agent loop: a turn is a model call, then its tool calls, until the model calls no more. It is the same loop the first time
 * and after a crash: it looks at the folded state, does what is open, appends, and looks again. It ends with a value, always;
 * only an `append` that fails (the log is lost to this owner) leaves it by throwing.
 */
import { ModelConfigError, type ModelFailure, type ModelMessage } from "@drover/llm";
import type { StopReason } from "@drover/protocol";
import { callTool, Interrupted, isUncertain } from "./call.ts";
import { pause, type RunControl } from "./control.ts";
import type { FinalData, FinalStatus } from "./events.ts";
import {
  applyEvent,
  conversation,
  hasSomethingToShow,
  latestText,
  openCalls,
  plainReply,
  type RunState,
  toUsd,
} from "./fold.ts";
import { type ReplyOptions, streamReply, type Turn } from "./stream-reply.ts";

export interface LoopOptions extends ReplyOptions {
  runId: string;
  tenant: string;
  workspace: string;
  /** See `DoorOptions.assertOwned`. */
  assertOwned?(): void | Promise<void>;
}

/** `final`: settle with this. `retry`: give the slot back and try the step again later. `handover`: another worker goes on. */
export type LoopOutcome =
  | { kind: "final"; status: FinalStatus; data: FinalData }
  | { kind: "retry"; failure: ModelFailure }
  | { kind: "handover" };

/** Retries in place: at most two for one step, and 5 s together. They are not attempts. */
const inPlace = { most: 2, firstMs: 400, togetherMs: 5000 };
const wrapUpPrompt =
  "The time for this task is over. Do not call any tool. Give the best final answer you can from what you have so far, and say briefly what is missing.";

export async function runLoop(options: LoopOptions): Promise<LoopOutcome> {
  const { state, control } = options;
  const loop: LoopOptions = {
    ...options,
    append: async (event) => {
      try {
        await options.append(event);
      } catch (error) {
        // Without its log this owner must do nothing more: whatever is in flight ends now.
        control.stop("broken");
        throw error;
      }
      applyEvent(state, event);
    },
  };
  try {
    return await takeTurns(loop);
  } catch (error) {
    if (error instanceof Interrupted) return stopped(state, control);
    throw error;
  }
}

async function takeTurns(loop: LoopOptions): Promise<LoopOutcome> {
  const { state, control } = loop;
  const maxIterations = state.input.max_iterations;
  for (;;) {
    if (control.signal.aborted) return stopped(state, control);
    if (openCalls(state).some((record) => isUncertain(record, loop.toolbox)))
      return early(
        state,
        "uncertain",
        "A worker died inside a tool that must not run twice; whether it took effect is not known.",
      );
    if (state.wrappedUp) return early(state, control.limit, limitMessage(control));
    if (openCalls(state).length > 0) {
      if (control.draining) return { kind: "handover" };
      await finishCalls(loop);
      continue;
    }
    const last = state.turns.at(-1);
    if (last && last.calls.length === 0) return completed(last.text);
    if (control.draining) return { kind: "handover" };
    if (state.iterations >= maxIterations)
      return early(state, "iteration_limit", `The run used up its ${maxIterations} iterations.`);
    const overBudget = budgetProblem(state);
    if (overBudget) return early(state, "budget", overBudget);
    if (control.softReached || control.cut.aborted) {
      await callModel(loop, wrapUpTurn(loop));
      // The turn is used up even when it failed: what there is already is the answer.
      state.wrappedUp = true;
      continue;
    }
    const failure = await callModel(loop, { messages: conversation(state), signal: control.cut });
    if (!failure || control.cut.aborted) continue;
    if (failure.retryable) return { kind: "retry", failure };
    return early(state, failure.code === "aborted" ? "internal_error" : failure.code, failure.message);
  }
}

/** Runs the open calls of the turn side by side; each outcome is recorded the moment it is there. */
async function finishCalls(loop: LoopOptions): Promise<void> {
  const results = await Promise.allSettled(openCalls(loop.state).map((record) => callTool(record, loop)));
  const failed = results.filter((result) => result.status === "rejected").map((result) => result.reason);
  // A lost log outranks an interruption: it must not be mistaken for an orderly stop.
  const worst = failed.find((reason) => !(reason instanceof Interrupted)) ?? failed[0];
  if (worst !== undefined) throw worst;
}

/**
 * One model call with its retries in place. Returns the failure that remains, or nothing when there is something to look at
 * anew: the reply is recorded, or the run was stopped, drained or out of time between two tries.
 */
async function callModel(loop: LoopOptions, turn: Turn): Promise<ModelFailure | undefined> {
  const { control } = loop;
  let spentMs = 0;
  for (let tries = 1; ; tries++) {
    const failure = await streamReply(loop, turn);
    if (!failure) return;
    const aborted = failure.code === "aborted" || turn.signal.aborted;
    const waitMs = failure.retryAfterMs ?? inPlace.firstMs * 2 ** (tries - 1) * (0.5 + Math.random() / 2);
    const again = !aborted && failure.retryable && tries <= inPlace.most && spentMs + waitMs <= inPlace.togetherMs;
    if (!again || turn.wrapUp) await keepText(loop, turn, failure.text);
    if (aborted) return failure;
    const { code, message } = failure;
    await loop.append({
      type: "model.failed",
      data: {
        iteration: loop.state.iterations + 1,
        model: loop.model.id,
        code,
        message,
        retry_in_ms: again ? Math.round(waitMs) : null,
      },
    });
    if (!again) return failure;
    const moot = () => turn.signal.aborted || (!turn.wrapUp && (control.draining || control.softReached));
    if (!moot()) await pause(waitMs, turn.signal);
    if (moot()) return;
    spentMs += waitMs;
  }
}

/** The last turn of a run at its time limit: no tools, few tokens, and only what is left of the time. */
function wrapUpTurn({ state, control }: LoopOptions): Turn {
  const cutText = state.partialText.trim() ? plainReply(state.partialText, []) : [];
  const messages: ModelMessage[] = [...conversation(state), ...cutText, { role: "user", content: wrapUpPrompt }];
  return { messages, signal: control.signal, wrapUp: true };
}

/** What a call had said before it was cut or failed for good is recorded, so that it outlives this process. */
async function keepText(loop: LoopOptions, turn: Turn, text: string): Promise<void> {
  const { state, control } = loop;
  if (control.cause === "lost" || control.cause === "broken" || !text.trim()) return;
  if (turn.wrapUp && text.length <= state.partialText.length) return;
  await loop.append({ type: "model.partial", data: { iteration: state.iterations + 1, text, cut: true } });
}

function budgetProblem(state: RunState): string | undefined {
  const { max_cost_usd } = state.input;
  if (max_cost_usd === undefined) return;
  if (state.costUnknown)
    return "max_cost_usd is set, but the model has no known price; add it to models.prices of the configuration.";
  if (toUsd(state.costNanos) >= max_cost_usd)
    return `The run cost ${toUsd(state.costNanos)} USD of its ${max_cost_usd} USD.`;
  return;
}

function completed(text: string): LoopOutcome {
  return { kind: "final", status: "completed", data: { output: text, stop_reason: null, error: null } };
}

/** An early end: `partial` with something to show, `failed` without. */
export function early(state: RunState, code: StopReason, message: string): Extract<LoopOutcome, { kind: "final" }> {
  return {
    kind: "final",
    status: hasSomethingToShow(state) ? "partial" : "failed",
    data: { output: latestText(state), stop_reason: code, error: { code, message } },
  };
}

function stopped(state: RunState, control: RunControl): LoopOutcome {
  switch (control.cause) {
    case "cancelled":
      return {
        kind: "final",
        status: "cancelled",
        data: { output: latestText(state), stop_reason: null, error: null },
      };
    case "shutdown":
    case "lost":
    case "broken":
      return { kind: "handover" };
    default:
      return early(state, control.limit, limitMessage(control));
  }
}

function limitMessage(control: RunControl): string {
  return control.limit === "deadline" ? "The run reached its deadline." : "The run reached its time limit.";
}

/** What a model that cannot be resolved ends its run with. */
export function modelProblem(error: unknown): StopReason {
  return error instanceof ModelConfigError && error.missingKey ? "auth_failed" : "invalid_input";
}
