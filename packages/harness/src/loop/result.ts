/** What a run's log says to the one who asked: the result, the same from the library and over HTTP. */
import type { StopReason } from "@drover/protocol";
import type { FinalData, FinalStatus, ToolStatus } from "./events.ts";
import { type RunState, toUsd } from "./fold.ts";

export interface ToolCallSummary {
  tool_name: string;
  /** What ran. */
  input: unknown;
  /** What the model had asked for, where a person changed it. */
  requested_input?: unknown;
  output: unknown;
  duration_ms: number;
  status: ToolStatus;
}

export interface RunResult {
  task_id: string;
  status: "success" | "partial" | "error";
  output: string | null;
  stop_reason: StopReason | null;
  /** null when a step's price is not known. */
  cost_usd: number | null;
  tokens_used: { input: number; output: number; cached: number; total: number };
  iterations: number;
  duration_seconds: number;
  /** Names of the tools called, each once, in the order of their first call. */
  tools_called: string[];
  /** Every call that was begun, in the order the model made them. */
  tool_calls: ToolCallSummary[];
  /** It ended longer ago than contents are kept: output and calls are gone, the totals are not. */
  contents_expired?: true;
  metadata: Record<string, string>;
}

const resultStatus = { completed: "success", partial: "partial", failed: "error", cancelled: "error" } as const;

/** Folds a final state into a result. `durationMs` is active time. */
export function resultOf(
  state: RunState,
  final: { status: FinalStatus; data: FinalData },
  about: { taskId: string; durationMs: number; metadata?: Record<string, string> },
): RunResult {
  const calls = state.turns.flatMap((turn) => turn.calls);
  return {
    task_id: about.taskId,
    status: resultStatus[final.status],
    output: final.data.output,
    stop_reason: final.data.stop_reason,
    cost_usd: state.costUnknown ? null : toUsd(state.costNanos),
    tokens_used: { ...state.usage, total: state.usage.input + state.usage.output },
    iterations: state.iterations - state.copiedIterations,
    duration_seconds: Math.round(about.durationMs) / 1000,
    tools_called: [...new Set(calls.filter((record) => record.result).map((record) => record.call.name))],
    tool_calls: calls.flatMap((record): ToolCallSummary[] => {
      const { call, result, intended, edited, intendedInput } = record;
      // It was begun, and nobody saw how it ended.
      const ended = result ?? (intended ? { output: null, duration_ms: 0, status: "uncertain" as const } : undefined);
      if (!ended) return [];
      return [
        {
          tool_name: call.name,
          input: intendedInput ?? (edited ? edited.input : call.input),
          ...(edited && { requested_input: call.input }),
          output: ended.output,
          duration_ms: ended.duration_ms,
          status: ended.status,
        },
      ];
    }),
    metadata: about.metadata ?? {},
  };
}
