/**
 * The agent loop: a turn is a model call, then its tool calls, until the model calls no more. It is the same loop the first time
 * and after a crash: it looks at the folded state, does what is open, appends, and looks again. It ends with a value, always;
 * only an `append` that fails (the log is lost to this owner) leaves it by throwing.
 */
import { ModelConfigError, type ModelFailure, type ModelMessage } from "@drover/llm";
import type { StopReason } from "@drover/protocol";
import { contentHash } from "../audit/trail.ts";
import { askPerson } from "../door/approval.ts";
import { callTool, policyEntry, skipForBudget } from "../door/call.ts";
import { Interrupted } from "../door/execute.ts";
import { applyPolicies } from "../policy/policy.ts";
import { pause, type RunControl } from "./control.ts";
import type { BudgetLevel, EventData, FinalData, FinalStatus } from "./events.ts";
import {
  applyEvent,
  conversation,
  hasSomethingToShow,
  isSilent,
  lastAnswer,
  latestText,
  openCalls,
  paused,
  plainReply,
  type RunState,
  toUsd,
} from "./fold.ts";
import { type Refusal, type ReplyOptions, showable, streamReply, type Turn } from "./stream-reply.ts";

export type LoopOptions = ReplyOptions;

/**
 * `final`: settle with this. `retry`: give the slot back and try the step again later. `handover`: another worker goes on, after
 * `delayMs`. `park`: give the slot back until somebody decides, or raises the cap at `level`.
 */
export type LoopOutcome =
  | { kind: "final"; status: FinalStatus; data: FinalData }
  | { kind: "retry"; failure: ModelFailure }
  | { kind: "handover"; delayMs?: number }
  | { kind: "park"; waitingFor: "approval" }
  | { kind: "park"; waitingFor: "budget"; level: BudgetLevel };

/** Retries in place: at most two for one step, and 5 s together. They are not attempts. */
const inPlace = { most: 2, firstMs: 400, togetherMs: 5000 };
const isOver = {
  time: "time for this task is over",
  budget: "budget for this task is used up",
  iterations: "turns for this task are used up",
};
const wrapUpPrompt = (why: keyof typeof isOver) =>
  `The ${isOver[why]}. Do not call any tool. Give the best final answer you can from what you have so far, and say briefly what is missing.`;

export async function runLoop(options: LoopOptions): Promise<LoopOutcome> {
  const { state, control } = options;
  const loop: LoopOptions = {
    ...options,
    append: async (event, audit) => {
      try {
        await options.append(event, audit);
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
    const refused = refusal(state);
    if (refused) return refused;
    if (state.wrappedUp === "budget") return early(state, "budget", budgetMessage(state));
    if (state.wrappedUp === "iterations") return early(state, "iteration_limit", iterationsMessage(maxIterations));
    if (state.wrappedUp) return early(state, control.limit, limitMessage(control));
    if (openCalls(state).length > 0) {
      if (control.draining) return { kind: "handover" };
      const parked = await finishCalls(loop);
      if (parked) return parked;
      continue;
    }
    const last = state.turns.at(-1);
    if (last && last.calls.length === 0) {
      if (last.hidden === "held") return await holdAnswer(loop, last.text);
      const answer = answered(loop, last);
      if (answer) return answer;
    }
    if (control.draining) return { kind: "handover" };
    if (!last) {
      const kept = await checkInput(loop);
      if (kept) return kept;
    }
    if (state.caps.costNanos !== undefined && state.unpriced)
      return early(state, "price_unknown", `The model ${loop.model.id} did not say what its call cost.`);
    await loop.assertOwned?.();
    if (control.signal.aborted) continue;
    const outOfTime = control.softReached || control.cut.aborted;
    const outOfTurns = state.iterations - state.copiedIterations >= maxIterations;
    if (outOfTime || state.exhausted || outOfTurns) {
      const why = outOfTime ? "time" : state.exhausted ? "budget" : "iterations";
      const failure = await callModel(loop, wrapUpTurn(loop, why));
      // The turn is used up even when it failed: what there is already is the answer.
      if (failure && "why" in failure && failure.why === "exhausted") state.exhausted ??= failure.level;
      state.wrappedUp = why;
      continue;
    }
    const failure = await callModel(loop, { messages: conversation(state), signal: control.cut });
    if (!failure || control.cut.aborted) continue;
    if ("why" in failure) {
      if (failure.why === "price_unknown") return early(state, "price_unknown", noPrice(loop.model.id));
      if (loop.onBudget === "pause") return { kind: "park", waitingFor: "budget", level: failure.level };
      state.exhausted = failure.level;
      continue;
    }
    if (failure.retryable) return { kind: "retry", failure };
    return early(state, failure.code === "aborted" ? "internal_error" : failure.code, failure.message);
  }
}

/** What comes of a turn that calls nothing; undefined: it goes on. */
function answered({ state, agent, model }: LoopOptions, last: RunState["turns"][number]): LoopOutcome | undefined {
  const silent = isSilent(last);
  switch (last.ended) {
    case "length":
      if (!silent && agent.onLength === "continue") return;
      return early(state, "output_limit", `The reply of ${model.id} was cut at its greatest length.`);
    case "content-filter":
      return early(state, "model_refused", `${model.id} did not want to answer${inItsWords(last)}.`);
    case paused:
      return;
    case "stop":
    case "tool-calls":
      break;
    default:
      if (silent) return early(state, "model_error", `${model.id} ended without an answer${inItsWords(last)}.`);
      return early(state, "model_error", `${model.id} ended its answer in a way that is not known${inItsWords(last)}.`);
  }
  if (!silent) return completed(lastAnswer(state));
  const before = state.turns.slice(0, -1);
  // An empty end is legitimate after the tools have done what there was to do: what was said before them is the answer.
  if (latestText(state) !== null) return completed(latestText(state)!);
  if (before.at(-1) && !isSilent(before.at(-1)!)) return;
  return early(state, "model_error", `${model.id} gave an empty answer, also when it was asked once more.`);
}

const inItsWords = ({ rawEnd }: RunState["turns"][number]): string => (rawEnd === undefined ? "" : ` (${rawEnd})`);

/**
 * Carries out the open calls of the turn side by side, some at a time; each outcome is recorded the moment it is there. Returns where the run must wait,
 * once none of them is in flight.
 */
async function finishCalls(loop: LoopOptions): Promise<LoopOutcome | undefined> {
  const open = openCalls(loop.state);
  const results = await someAtOnce(open, loop.agent.maxParallelCalls ?? mostAtOnce, (record) => callTool(record, loop));
  const failed = results.filter((result) => result.status === "rejected").map((result) => result.reason);
  // A lost log outranks an interruption: it must not be mistaken for an orderly stop.
  const worst = failed.find((reason) => !(reason instanceof Interrupted)) ?? failed[0];
  if (worst !== undefined) throw worst;
  const answers = results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
  const exhausted = open.filter((_, at) => answers[at]?.kind === "exhausted");
  if (exhausted.length > 0) {
    if (loop.onBudget === "pause" && !loop.control.softReached)
      return { kind: "park", waitingFor: "budget", level: "actions" };
    for (const record of exhausted) await skipForBudget(record, loop);
  }
  if (answers.some(({ kind }) => kind === "waiting")) return { kind: "park", waitingFor: "approval" };
  const later = answers.flatMap((answer) => (answer.kind === "later" ? [answer.ms] : []));
  return later.length > 0 ? { kind: "handover", delayMs: Math.ceil(Math.max(...later)) } : undefined;
}

/** Tool calls of one turn that are under way at once. */
const mostAtOnce = 16;

/** As `Promise.allSettled`, with so many at once; after a rejection none begins any more. */
async function someAtOnce<T, R>(
  all: T[],
  most: number,
  work: (one: T) => Promise<R>,
): Promise<PromiseSettledResult<R>[]> {
  const results: PromiseSettledResult<R>[] = [];
  let next = 0;
  let failed = false;
  const lane = async () => {
    for (let at = next++; at < all.length && !failed; at = next++) {
      const [result] = await Promise.allSettled([work(all[at]!)]);
      results[at] = result!;
      failed ||= result!.status === "rejected";
    }
  };
  await Promise.all(Array.from({ length: Math.min(most, all.length) }, lane));
  return results.filter((result) => result !== undefined);
}

/** What a parked run waits for, as its log says it. One that waits for its budget may have questions open as well: their time runs. */
export function waitingOf(state: RunState, outcome: Extract<LoopOutcome, { kind: "park" }>): EventData["run.waiting"] {
  const approvals = [...state.approvals.values()].flatMap(({ request, decision }) => (decision ? [] : [request]));
  if (outcome.waitingFor === "approval") return { waiting_for: "approval", approvals };
  return { waiting_for: "budget", level: outcome.level, ...(approvals.length > 0 && { approvals }) };
}

/** What people, or their silence, have put an end to. */
function refusal(state: RunState): LoopOutcome | undefined {
  for (const { request, decision } of state.approvals.values()) {
    if (!decision || decision.decision === "approve" || decision.decision === "retry" || decision.decision === "done")
      continue;
    const { subject, on_expiry } = request;
    const note = decision.note ? ` (${decision.note})` : "";
    if (subject === "uncertain")
      return early(state, "uncertain", `Whether ${request.tool_name} took effect is not known${note}.`);
    if (decision.decision === "expire" && on_expiry === "fail")
      return early(state, "approval_expired", "Nobody decided in time.");
    if (subject === "input") return early(state, "policy_blocked", `A person did not let the input pass${note}.`);
    if (subject === "output") return early(state, "policy_blocked", `A person did not let the answer pass${note}.`);
  }
  const last = state.turns.at(-1);
  if (last?.hidden === "withheld") return early(state, "policy_blocked", "A policy did not let the answer pass.");
  return;
}

/** What was asked, before any model sees it. */
async function checkInput(loop: LoopOptions): Promise<LoopOutcome | undefined> {
  const { state, policies, agentName } = loop;
  if (!policies.some(({ stages }) => stages.includes("input"))) return;
  const { query, context } = state.input;
  const given = context === undefined ? { query } : { query, context };
  const { action, value, findings } = applyPolicies(policies, given, { stage: "input", seen: state.seen });
  const asked = [...state.approvals.values()].find(({ request }) => request.subject === "input");
  const clean = value === given ? undefined : (value as typeof given);
  if (!asked)
    for (const [at, finding] of findings.entries())
      await loop.append(
        // The last finding carries what all of them left.
        {
          type: "policy.applied",
          data: { stage: "input", ...finding, ...(clean && at === findings.length - 1 && { input: clean }) },
        },
        policyEntry(finding, { stage: "input" }, agentName),
      );
  if (action === "block") return early(state, "policy_blocked", "A policy did not let the input pass.");
  if (action !== "ask" || loop.asking !== "park" || asked?.decision) return;
  if (!asked) {
    const { reason } = findings.find((finding) => finding.action === "ask")!;
    const question = { subject: "input" as const, input: value, hash: contentHash(value) };
    await askPerson({ ...question, reason: `A policy asks: ${reason}` }, loop);
  }
  return { kind: "park", waitingFor: "approval" };
}

/** An answer that a person must let pass. */
async function holdAnswer(loop: LoopOptions, text: string): Promise<LoopOutcome> {
  const asked = [...loop.state.approvals.values()].some(({ request }) => request.subject === "output");
  const reason = "A policy asks before this answer goes out.";
  if (!asked) await askPerson({ subject: "output", input: text, hash: contentHash(text), reason }, loop);
  return { kind: "park", waitingFor: "approval" };
}

/**
 * One model call with its retries in place. Returns the failure that remains, or nothing when there is something to look at
 * anew: the reply is recorded, or the run was stopped, drained or out of time between two tries.
 */
async function callModel(loop: LoopOptions, turn: Turn): Promise<ModelFailure | Refusal | undefined> {
  const { control, state } = loop;
  let spentMs = 0;
  let answeredBefore: string | undefined;
  for (let tries = 1; ; tries++) {
    let failure: ModelFailure | undefined;
    let waitMs: number | null = null;
    const refused = await streamReply(loop, turn, async (failed, reservedNanos) => {
      failure = failed;
      const { code, message, retryable, spent } = failed;
      const aborted = code === "aborted" || turn.signal.aborted;
      // The same answer twice would be the same again.
      const final = failed.isAnswer && answeredBefore === message;
      answeredBefore = failed.isAnswer && message;
      const wait = failed.retryAfterMs ?? inPlace.firstMs * 2 ** (tries - 1) * (0.5 + Math.random() / 2);
      const again = !aborted && retryable && !final && tries <= inPlace.most && spentMs + wait <= inPlace.togetherMs;
      if (again) waitMs = wait;
      if (final) failure = { ...failed, retryable: false };
      if (!again || turn.wrapUp) await keepText(loop, turn, failed.text);
      if (control.cause === "lost" || control.cause === "broken" || (aborted && !spent)) return;
      await loop.append({
        type: "model.failed",
        data: {
          iteration: state.iterations + 1,
          model: loop.model.id,
          code,
          message,
          retry_in_ms: again ? Math.round(wait) : null,
          ...(spent && { usage: spent.usage, cost_usd: spent.costNanos === null ? null : toUsd(spent.costNanos) }),
          ...(spent?.costNanos === null && reservedNanos !== undefined && { reserved_usd: toUsd(reservedNanos) }),
        },
      });
    });
    if (refused) return refused;
    if (!failure || waitMs === null) return failure;
    const moot = () => turn.signal.aborted || (!turn.wrapUp && (control.draining || control.softReached));
    if (!moot()) await pause(waitMs, turn.signal);
    if (moot()) return;
    spentMs += waitMs;
  }
}

/** The last turn of a run at its limit of time or money: no tools, few tokens, and only what is left of either. */
function wrapUpTurn({ state, control }: LoopOptions, why: "time" | "budget" | "iterations"): Turn {
  const cutText = state.partialText.trim() ? plainReply(state.partialText, []) : [];
  const messages: ModelMessage[] = [...conversation(state), ...cutText, { role: "user", content: wrapUpPrompt(why) }];
  return { messages, signal: control.signal, wrapUp: why };
}

/** What a call had said before it was cut or failed for good is recorded, so that it outlives this process. */
async function keepText(loop: LoopOptions, turn: Turn, text: string): Promise<void> {
  const { state, control } = loop;
  if (control.cause === "lost" || control.cause === "broken" || !text.trim()) return;
  if (turn.wrapUp && text.length <= state.partialText.length) return;
  const shown = showable(loop, text);
  if (shown !== null)
    await loop.append({ type: "model.partial", data: { iteration: state.iterations + 1, text: shown, cut: true } });
}

const iterationsMessage = (most: number): string => `The run used up its ${most} iterations.`;

function budgetMessage({ caps, costNanos, exhausted, spentPoints }: RunState): string {
  switch (exhausted) {
    case "actions":
      return `The run used ${spentPoints} of its ${caps.points} action points, and the next call takes more than is left.`;
    case "run":
      return `The run cost ${toUsd(costNanos)} USD of its ${toUsd(caps.costNanos ?? 0)} USD, and the next call may cost more than is left.`;
    case "session":
      return "The session's budget is used up.";
    case "tenant_day":
      return "The tenant's budget of the day is used up.";
    default:
      return "The tenant's budget of the month is used up.";
  }
}

const noPrice = (model: string): string =>
  `There is a cap of money, but the model ${model} has no known price; set it in MODEL_PRICES or models.prices, or run without the cap.`;

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
