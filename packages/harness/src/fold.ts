/**
 * The fold of a log: everything the loop knows. The same function feeds a run that goes on, a run that resumes after a crash
 * and a reader who wants the result; there is no second code path for recovery. Events come in the order of their seq.
 */
import type { ModelMessage } from "@drover/llm";
import type { EventData, LoggedToolCall, NewEvent, RunInput } from "./events.ts";

export interface ToolRecord {
  iteration: number;
  index: number;
  call: LoggedToolCall;
  /** Set when an intent is recorded. */
  intended: boolean;
  /** The intent's key, so that a later try uses the same. */
  idempotencyKey?: string;
  result?: EventData["tool.result"];
}

export interface RunState {
  input: RunInput;
  /** Model calls finished, the wrap-up turn not counted. */
  iterations: number;
  /** Finished model and tool calls. */
  steps: number;
  /** The conversation after the query: replies and tool results, in the order of the calls. */
  turns: { reply: ModelMessage[]; text: string; calls: ToolRecord[] }[];
  /** Text of a call that was cut or is under way. */
  partialText: string;
  wrappedUp: boolean;
  usage: { input: number; output: number; cached: number };
  costNanos: number;
  costUnknown: boolean;
}

/** A state with nothing but its input. */
export function initialState(input: RunInput): RunState {
  return {
    input,
    iterations: 0,
    steps: 0,
    turns: [],
    partialText: "",
    wrappedUp: false,
    usage: { input: 0, output: 0, cached: 0 },
    costNanos: 0,
    costUnknown: false,
  };
}

/** Folds a whole log; its first event must be `run.queued`. */
export function fold(events: Iterable<NewEvent>): RunState {
  let state: RunState | undefined;
  for (const event of events) {
    if (event.type === "run.queued") state = initialState(event.data);
    else if (!state) throw new Error("a log begins with run.queued");
    else applyEvent(state, event);
  }
  if (!state) throw new Error("the log is empty");
  return state;
}

/** Moves a state on by one event, in place. */
export function applyEvent(state: RunState, event: NewEvent): void {
  switch (event.type) {
    case "model.call": {
      const { text, tool_calls, messages, usage, cost_usd, iteration } = event.data;
      state.turns.push({
        reply: messages ?? plainReply(text, tool_calls),
        text,
        calls: tool_calls.map((call, index) => ({ iteration, index, call, intended: false })),
      });
      if (event.data.wrap_up) state.wrappedUp = true;
      else state.iterations++;
      state.steps++;
      // A wrap-up that says nothing must not take away what the cut call had said.
      if (!event.data.wrap_up || text !== "") state.partialText = "";
      state.usage.input += usage.input;
      state.usage.output += usage.output;
      state.usage.cached += usage.cached;
      if (cost_usd === null) state.costUnknown = true;
      else state.costNanos += toNanos(cost_usd);
      break;
    }
    case "model.partial":
      state.partialText = event.data.text;
      break;
    case "tool.intent": {
      const record = findCall(state, event.data);
      if (record) {
        record.intended = true;
        record.idempotencyKey = event.data.idempotency_key;
      }
      break;
    }
    case "tool.result": {
      const record = findCall(state, event.data);
      if (record && !record.result) {
        record.result = event.data;
        state.steps++;
      }
      break;
    }
  }
}

/** Calls of the last turn that have no result yet. */
export function openCalls(state: RunState): ToolRecord[] {
  return state.turns.at(-1)?.calls.filter((record) => !record.result) ?? [];
}

/** The conversation as the model gets it next: query, replies, results. A pure function of the state: resumed prompts are byte-equal. */
export function conversation(state: RunState): ModelMessage[] {
  const messages: ModelMessage[] = [{ role: "user", content: firstMessage(state.input) }];
  for (const turn of state.turns) {
    messages.push(...turn.reply);
    if (turn.calls.length > 0) messages.push({ role: "tool", content: turn.calls.map(toolResultPart) });
  }
  return messages;
}

/** What there is to show: the cut text, else the last text the model finished, else null. */
export function latestText(state: RunState): string | null {
  if (state.partialText.trim()) return state.partialText;
  return state.turns.findLast((turn) => turn.text.trim())?.text ?? null;
}

/** Whether an early end is `partial` (there is text or a tool's finished work) or `failed`. */
export function hasSomethingToShow(state: RunState): boolean {
  return (
    latestText(state) !== null || state.turns.some((turn) => turn.calls.some((call) => call.result?.status === "ok"))
  );
}

/** USD on the wire and nano-USD inside: the round trip is exact up to a million USD. */
export const toNanos = (usd: number): number => Math.round(usd * 1e9);
export const toUsd = (nanos: number): number => nanos / 1e9;

/** A reply that is nothing but text and calls. */
export function plainReply(text: string, calls: LoggedToolCall[]): ModelMessage[] {
  const content = [
    ...(text === "" ? [] : [{ type: "text" as const, text }]),
    ...calls.map(({ id, name, input }) => ({ type: "tool-call" as const, toolCallId: id, toolName: name, input })),
  ];
  return content.length === 0 ? [] : [{ role: "assistant", content }];
}

function firstMessage(input: RunInput): string {
  return input.context === undefined
    ? input.query
    : `${input.query}\n\nContext:\n${JSON.stringify(input.context, null, 2)}`;
}

function toolResultPart(record: ToolRecord) {
  const { result, call } = record;
  const output =
    result === undefined
      ? ({ type: "error-text", value: "No result." } as const)
      : result.status === "ok"
        ? typeof result.output === "string"
          ? ({ type: "text", value: result.output } as const)
          : ({ type: "json", value: result.output as never } as const)
        : ({ type: "error-text", value: String(result.output) } as const);
  return { type: "tool-result" as const, toolCallId: call.id, toolName: call.name, output };
}

/** By its place in the turn, not by its id: some servers give two calls of one reply the same id. */
function findCall(state: RunState, at: { iteration: number; index: number }): ToolRecord | undefined {
  return state.turns.findLast((turn) => turn.calls[0]?.iteration === at.iteration)?.calls[at.index];
}
