/**
 * Undoing. A rollback is a run like every other: a planner in the model's place calls one `undo_…` tool a turn, in the reverse order of the
 * effects, through the same door, loop and log. So it resumes after a crash, asks a person when it must, and says what it did.
 */
import type { Model, ModelRequest, ModelResult } from "@drover/llm";
import { z } from "zod";
import type { AgentDefinition } from "./agent.ts";
import { plainReply, type RunState, type ToolRecord } from "./fold.ts";
import { type AnyTool, ToolRegistry } from "./registry.ts";

/** One finished call that changed something. */
interface Effect {
  call: ToolRecord["call"];
  input: unknown;
  output: unknown;
  /** What undoes it, or why nothing does. */
  undo: AnyTool | string;
}

export interface RollbackPlan {
  agent: AgentDefinition;
  model: Model;
  registry: ToolRegistry;
  /** Model turns it takes at most. */
  iterations: number;
}

const prefix = "undo_";
const name = (index: number, tool: string): string => `${prefix}${index}_${tool}`.slice(0, 64);

/**
 * The plan to undo what a run did: its calls of tools that are not reads and that ended well or in doubt, the last one first. A pure function of
 * its log and the tools, so that a resumed rollback has the same plan.
 */
export function planRollback(of: RunState, tools: ToolRegistry): RollbackPlan {
  const effects = effectsOf(of, tools);
  const undo = effects.flatMap((effect) => (typeof effect.undo === "string" ? [] : [effect.undo]));
  return {
    agent: { description: "Undoes what a run did." },
    model: planner(effects),
    registry: new ToolRegistry(undo),
    iterations: effects.length + 1,
  };
}

function effectsOf(of: RunState, tools: ToolRegistry): Effect[] {
  const changed = of.turns
    .flatMap((turn) => turn.calls)
    .filter((record) => {
      const tool = tools.get(record.call.name);
      // A pure call that failed did nothing; any other that was begun may have.
      return tool?.permission !== "read" && (record.intended || (tool && record.result?.status === "ok"));
    });
  return changed.reverse().map((record, index) => {
    const input = record.intendedInput ?? record.call.input;
    const output = record.result?.output;
    return { call: record.call, input, output, undo: undoOf(record, index, input, output, tools) };
  });
}

function undoOf(
  record: ToolRecord,
  index: number,
  input: unknown,
  output: unknown,
  tools: ToolRegistry,
): AnyTool | string {
  const tool = tools.get(record.call.name);
  if (!tool) return "there is no such tool any more";
  if (tool.permission === "irreversible") return "it is irreversible";
  if (!tool.compensate) return "the tool has no compensate";
  if (!record.result) return "whether it took effect is not known";
  // There is no output that `compensate` could be given.
  if (record.result.status === "denied") return "its result was withheld";
  if (record.result.status !== "ok") return "it failed, and whether it took effect is not known";
  return undoTool(tool, index, input, output);
}

function undoTool(tool: AnyTool, index: number, input: unknown, output: unknown): AnyTool {
  return {
    name: name(index, tool.name),
    description: `Undoes a call of ${tool.name}.`,
    input: z.object({}),
    permission: "write",
    effect: tool.effect === "pure" ? "idempotent" : tool.effect,
    ...(tool.timeoutMs !== undefined && { timeoutMs: tool.timeoutMs }),
    async execute(_nothing, context) {
      const parsed = await tool.input.safeParseAsync(structuredClone(input));
      return (await tool.compensate!({ input: parsed.success ? parsed.data : input, output }, context)) ?? "undone";
    },
  };
}

/** Takes the model's place: what is next follows from how many results the conversation has. */
function planner(effects: Effect[]): Model {
  const steps = effects.flatMap(({ undo }) => (typeof undo === "string" ? [] : [undo.name]));
  return {
    id: "drover/rollback",
    worstCaseNanos: () => 0,
    async call(request): Promise<ModelResult> {
      const results = resultsOf(request);
      const next = steps[results.length];
      const toolCalls =
        next === undefined || request.toolChoice === "none"
          ? []
          : [{ id: `undo_${results.length}`, name: next, input: {} }];
      const text = toolCalls.length > 0 ? "" : report(effects, results);
      return {
        ok: true,
        text,
        toolCalls,
        messages: plainReply(text, toolCalls),
        finishReason: toolCalls.length > 0 ? "tool-calls" : "stop",
        usage: { input: 0, output: 0, cached: 0 },
        costNanos: 0,
      };
    },
  };
}

interface UndoResult {
  ok: boolean;
  text: string;
}

function resultsOf({ messages }: ModelRequest): UndoResult[] {
  return messages.flatMap((message) =>
    message.role === "tool"
      ? message.content.flatMap((part) => {
          if (part.type !== "tool-result") return [];
          const { type, ...value } = part.output;
          const ok = type !== "error-text" && type !== "error-json";
          return [{ ok, text: "value" in value ? asText(value.value) : "" }];
        })
      : [],
  );
}

/** One line for every effect, the last one first: undone, or why not. */
function report(effects: Effect[], results: UndoResult[]): string {
  if (effects.length === 0) return "There was nothing to undo: the run changed nothing.";
  let at = 0;
  const lines = effects.map(({ call, undo }) => {
    const what = `${call.name} ${asText(call.input)}`;
    if (typeof undo === "string") return `NOT undone: ${what} (${undo})`;
    const result = results[at++];
    if (!result) return `NOT undone: ${what} (the rollback ended before it)`;
    return result.ok ? `undone: ${what}` : `NOT undone: ${what} (${result.text})`;
  });
  const undone = results.filter(({ ok }) => ok).length;
  return [`${undone} of ${effects.length} effects undone, the last one first.`, ...lines].join("\n");
}

const longest = 200;
function asText(value: unknown): string {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length > longest ? `${text.slice(0, longest)}…` : text;
}
