/**
 * Undoing. A rollback is a run like every other: a planner in the model's place calls one `undo_…` tool a turn, in the reverse order of the
 * effects, through the same door, loop and log. So it resumes after a crash, asks a person when it must, and says what it did.
 */
import type { Model, ModelRequest, ModelResult } from "@drover/llm";
import { z } from "zod";
import type { AgentDefinition } from "../library/agent.ts";
import { ToolRegistry } from "../library/registry.ts";
import type { AnyTool } from "../library/tool.ts";
import { asText, plainReply, type RunState, type ToolRecord } from "./fold.ts";

/** One call that changed something. */
interface Effect {
  /** Of the tool that undoes it. */
  name: string;
  /** The call, as the report names it. */
  what: string;
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

/** By the call's place in its run: the same whatever tools a later deploy has. */
const nameOf = ({ iteration, index, call }: ToolRecord): string =>
  `undo_${iteration}_${index}_${call.name}`.slice(0, 64);

/**
 * The plan to undo what a run did: its calls of tools that are not reads and that ended well or in doubt, the last one first. A pure function of
 * its log and the tools, so that a resumed rollback goes on where it was. What `earlier` rollbacks of the same run undid is not undone again.
 */
export function planRollback(of: RunState, tools: ToolRegistry, earlier: readonly RunState[] = []): RollbackPlan {
  const effects = effectsOf(of, tools);
  const registry = new ToolRegistry(effects.flatMap(({ undo }) => (typeof undo === "string" ? [] : [undo])));
  return {
    agent: { description: "Undoes what a run did." },
    model: planner(effects, undoneBefore(earlier, registry)),
    registry,
    iterations: effects.length + 1,
  };
}

function effectsOf(of: RunState, tools: ToolRegistry): Effect[] {
  const changed = of.turns
    .flatMap((turn) => turn.calls)
    .filter((record) => {
      const tool = tools.get(record.call.name);
      // An effect is undone with the run that had it, so that no two runs undo it.
      if (record.copied || record.result?.problem === "nothing_done") return false;
      // A pure call that failed did nothing; any other that was begun may have.
      return tool?.permission !== "read" && (record.intended || (tool && record.result?.status === "ok"));
    });
  return changed.reverse().map((record) => {
    const input = record.intendedInput ?? record.call.input;
    return { name: nameOf(record), what: `${record.call.name} ${inShort(input)}`, undo: undoOf(record, input, tools) };
  });
}

function undoOf(record: ToolRecord, input: unknown, tools: ToolRegistry): AnyTool | string {
  const tool = tools.get(record.call.name);
  if (!tool) return "there is no such tool any more";
  if (tool.permission === "irreversible") return "it is irreversible";
  if (!tool.compensate) return "the tool has no compensate";
  if (!record.result) return "whether it took effect is not known";
  // There is no output that `compensate` could be given.
  if (record.result.status === "denied") return "its result was withheld";
  if (record.result.status !== "ok") return "it failed, and whether it took effect is not known";
  return undoTool(tool, nameOf(record), input, record.result.output);
}

function undoTool(tool: AnyTool, name: string, input: unknown, output: unknown): AnyTool {
  return {
    name,
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

/** Takes the model's place: what is next follows from the results that the conversation has. */
function planner(effects: Effect[], before: Map<string, UndoResult>): Model {
  return {
    id: "drover/rollback",
    worstCaseNanos: () => 0,
    async call(request): Promise<ModelResult> {
      const results = new Map([...before, ...resultsOf(request)]);
      const next = effects.find(({ name, undo }) => typeof undo !== "string" && !results.has(name))?.name;
      const toolCalls =
        next === undefined || request.toolChoice === "none" ? [] : [{ id: next, name: next, input: {} }];
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

/** What the rollbacks before this one did, by the name of the tool. What they began and nobody saw end is not tried again, unless it may be. */
function undoneBefore(earlier: readonly RunState[], registry: ToolRegistry): Map<string, UndoResult> {
  const results = new Map<string, UndoResult>();
  for (const { call, intended, result } of earlier.flatMap((state) => state.turns.flatMap((turn) => turn.calls))) {
    if (result?.status === "ok") results.set(call.name, { ok: true, text: "" });
    else if (intended && !result && registry.get(call.name)?.effect === "unsafe")
      results.set(call.name, { ok: false, text: "an earlier rollback may have undone it" });
  }
  return results;
}

function resultsOf({ messages }: ModelRequest): Map<string, UndoResult> {
  const results = new Map<string, UndoResult>();
  for (const part of messages.flatMap((message) => (message.role === "tool" ? message.content : []))) {
    if (part.type !== "tool-result") continue;
    const { type, ...value } = part.output;
    const ok = type !== "error-text" && type !== "error-json";
    results.set(part.toolName, { ok, text: "value" in value ? inShort(value.value) : "" });
  }
  return results;
}

/** One line for every effect, the last one first: undone, or why not. */
function report(effects: Effect[], results: Map<string, UndoResult>): string {
  if (effects.length === 0) return "There was nothing to undo: the run changed nothing.";
  let undone = 0;
  const lines = effects.map(({ name, what, undo }) => {
    const result = results.get(name);
    if (result?.ok) {
      undone++;
      return `undone: ${what}`;
    }
    const why = result?.text ?? (typeof undo === "string" ? undo : "the rollback ended before it");
    return `NOT undone: ${what} (${why})`;
  });
  return [`${undone} of ${effects.length} effects undone, the last one first.`, ...lines].join("\n");
}

const longest = 200;
function inShort(value: unknown): string {
  const text = asText(value);
  return text.length > longest ? `${text.slice(0, longest)}…` : text;
}
