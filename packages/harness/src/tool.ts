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

export interface ToolDefinition<Input = unknown> {
  name: string;
  description: string;
  /** An object schema; the model sees it as JSON Schema. */
  input: z.ZodType<Input>;
  permission: Permission;
  effect: Effect;
  /** Own time limit of one call in ms (default 60,000). */
  timeoutMs?: number;
  /** What the model sees of the output at most, in bytes of JSON (default 65,536); the rest is cut and said to be cut. */
  maxOutputBytes?: number;
  /** Returns JSON. Throwing is a tool result that the model sees; its message is shown to the model, so keep secrets out of it. */
  execute(input: Input, context: ToolContext): unknown;
}

/** Declares a tool; only fixes the types. */
export function defineTool<Input>(definition: ToolDefinition<Input>): ToolDefinition<Input> {
  return definition;
}
