/** What a tool is: a name, a zod schema, and two promises to the harness, its `permission` and its `effect`. */
import type { z } from "zod";

export const permissions = ["read", "write", "admin", "irreversible"] as const;
export type Permission = (typeof permissions)[number];

/**
 * What a crash between start and recorded outcome means: `pure` and `idempotent` calls run again (an idempotent one with
 * the same `idempotencyKey`), an `unsafe` one never does by itself.
 */
export const effects = ["pure", "idempotent", "unsafe"] as const;
export type Effect = (typeof effects)[number];

/** Of one call, ms, where a tool says nothing else. */
export const defaultTimeoutMs = 60_000;

export interface ToolContext {
  runId: string;
  tenant: string;
  /** The model's id of this call. */
  callId: string;
  /** The same for every try of this call of this run, over crashes too. */
  idempotencyKey: string;
  /** Aborted at the run's hard limit, at cancel, at the tool's own timeout, and when this worker no longer owns the run. */
  signal: AbortSignal;
  /** Absolute path of the run's own folder; made on first use by the tool. */
  workspace: string;
}

/** What is known of a call whose outcome is not. */
export interface ToolIntent<Input> {
  input: Input;
  idempotencyKey: string;
}

/** Whether an effect took place. `output` is what the call would have returned, where that can be found out. */
export type Verified = "done" | "not_done" | "unknown" | { done: true; output: unknown };

export interface ToolDefinition<Input = unknown, Output = unknown> {
  name: string;
  description: string;
  /** An object schema; the model sees it as JSON Schema. */
  input: z.ZodType<Input>;
  /** What it returns; a result that does not fit is a failure that the model sees. */
  output?: z.ZodType<Output>;
  /** `irreversible` asks a person before every call. */
  permission: Permission;
  effect: Effect;
  /** Change it when the tool does something else than before: what was approved holds for one version only (default "1"). */
  version?: string;
  /** Points of the run's action budget that one call takes (default 0). */
  budgetCost?: number;
  /** Calls in one run at most. */
  maxCallsPerRun?: number;
  /** Calls of one tenant in this process at most; a call that would be one too many is an error that says when to come back. */
  rate?: { calls: number; perSeconds: number };
  /** Agents that may call it; default: every one whose `tools` allow it. */
  allowedAgents?: string[];
  /** Whether a person must approve these arguments. `irreversible` tools ask always. Throwing counts as yes. */
  needsApproval?(input: Input, about: { runId: string; tenant: string }): boolean | Promise<boolean>;
  /** Its results come from outside: the model sees them marked as data, not instructions. */
  untrusted?: boolean;
  /** Its results are private data. */
  private?: boolean;
  /** A call tells or changes something outside (default: every permission but `read`). */
  external?: boolean;
  /**
   * Asked when the worker died between the intent and the outcome of an `unsafe` call: did the effect take place? Without it, or
   * when it says `unknown` or throws, a person is asked.
   */
  verify?(intent: ToolIntent<Input>, context: ToolContext): Verified | Promise<Verified>;
  /** Undoes what one call did; for `write` and `admin` tools. It runs through the same door, with this tool's `effect` and limits. */
  compensate?(done: { input: Input; output: Output }, context: ToolContext): unknown;
  /**
   * `process`: its code runs in a child process, which is killed with all it started when its time is up; a crash in it is an error that the model
   * sees. Arguments and results are copied; a schema's and policies' work, and `needsApproval`, stay in this process.
   */
  isolation?: "process";
  /** With `isolation`: `import.meta.url` of the file that exports it (default: the configuration file). */
  module?: string;
  /** With `isolation`: names of environment variables it gets besides the harmless ones (`PATH`, `HOME`, …). */
  env?: string[];
  /** With `isolation`: memory of its process in MiB (default 512); more ends it. */
  maxMemoryMb?: number;
  /** Own time limit of one call in ms (default 60,000). */
  timeoutMs?: number;
  /** What the model sees of the output at most, in bytes of JSON (default 65,536); the rest is cut, said to be cut, and kept as an artifact. */
  maxOutputBytes?: number;
  /** Returns JSON. Throwing is a tool result that the model sees; its message is shown to the model, so keep secrets out of it. */
  execute(input: Input, context: ToolContext): unknown;
}

/** Declares a tool; only fixes the types. */
export function defineTool<Input, Output = unknown>(
  definition: ToolDefinition<Input, Output>,
): ToolDefinition<Input, Output> {
  return definition;
}

/** Throw it from `execute` when the call failed before it had any effect: its points are given back. */
export class NothingDone extends Error {
  override name = "NothingDone";
}

/** What the policies and the log know of a tool. */
// biome-ignore lint/suspicious/noExplicitAny: of any input and output.
export function traitsOf(tool: ToolDefinition<any, any>) {
  return {
    name: tool.name,
    permission: tool.permission,
    external: tool.external ?? tool.permission !== "read",
    untrusted: tool.untrusted ?? false,
    private: tool.private ?? false,
  };
}

// biome-ignore lint/suspicious/noExplicitAny: tools of any input and output live side by side.
export type AnyTool = ToolDefinition<any, any>;
