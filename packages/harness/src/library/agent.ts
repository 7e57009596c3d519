/** Agents and the configuration file: what `drover.config.ts` default-exports. */
import { type CustomProvider, type Model, type PriceTable, priceTable } from "@drover/llm";
import { z } from "zod";
import { type Policy, policyStages } from "../policy/policy.ts";
import { effects, permissions, type ToolDefinition } from "./tool.ts";

export interface AgentDefinition {
  /** Shown to people and, later, to the router. */
  description?: string;
  /** `provider/model`; default: the process's default model. */
  model?: string;
  systemPrompt?: string;
  /** Names of the tools it may call; default: all that are registered. */
  tools?: string[];
  temperature?: number;
  maxTokens?: number;
  /** A reply that is cut at its greatest length: `stop` ends the run with `output_limit`, `continue` asks for the rest (default `stop`). */
  onLength?: "stop" | "continue";
  /** Tool calls of one turn that are under way at once (default 16); the others wait. */
  maxParallelCalls?: number;
  maxIterations?: number;
  /** Points its tool calls may take together (`budgetCost`); default: no limit. */
  actionBudget?: number;
  /** At a cap of points or money: `stop` wraps up and ends, `pause` waits until somebody raises it (default `stop`). */
  onBudget?: "stop" | "pause";
  /** How long a person has to decide (default a day), and what silence means (default `reject`). */
  approvals?: { expiresAfterSeconds?: number; onExpiry?: "reject" | "fail" };
  /** What becomes of a run's effects when it does not complete: `rollback` undoes them (default `keep`). */
  onFailure?: "keep" | "rollback";
  /**
   * What becomes of a run in flight when this definition, or one of its tools, is another one after a deploy: `latest` goes on with the new one
   * and logs it, `strict` ends with `agent_changed` (default `latest`).
   */
  onChange?: "latest" | "strict";
  /** What submissions to it may ask for. */
  submit?: SubmitBounds;
  /** Asked after those of the whole configuration. */
  policies?: Policy[];
}

/** What a submission may ask for, beyond which it is refused by name. Left out: as much as the contract lets anybody. */
export interface SubmitBounds {
  /** `provider/model`, or `provider/*`. */
  models?: string[];
  hardSeconds?: number;
  maxIterations?: number;
  maxAttempts?: number;
  priority?: number;
  maxTokens?: number;
  maxCostUsd?: number;
  /** Whether it may replace the agent's system prompt (default yes). */
  systemPrompt?: boolean;
  /** Hosts of `callback_url`, as `example.com` or `*.example.com`. */
  callbackHosts?: string[];
}

export const submitRoles = ["submitter", "approver", "operator", "admin"] as const;

export interface DroverConfig {
  agents?: Record<string, AgentDefinition>;
  // biome-ignore lint/suspicious/noExplicitAny: tools of any input live side by side.
  tools?: ToolDefinition<any, any>[];
  /** What keys of a role may ask for (default: a submitter's runs may last a day). An agent's own `submit` holds as well. */
  submit?: Partial<Record<(typeof submitRoles)[number], SubmitBounds>>;
  /** Asked about every agent's inputs, tool calls, results and outputs, in this order. */
  policies?: Policy[];
  models?: { providers?: Record<string, CustomProvider>; custom?: Record<string, Model>; prices?: PriceTable };
}

/** Declares a configuration; only fixes the types. */
export function defineConfig(config: DroverConfig): DroverConfig {
  return config;
}

const name = z
  .string()
  .regex(/^[a-z][a-z0-9_-]{0,63}$/, "must be lower-case letters, digits, - or _, and start with a letter");
const modelId = z.string().regex(/^[^/\s]+\/\S+$/, "must be provider/model");
const isFunction = z.custom<never>((value) => typeof value === "function", "must be a function");

const policySchema = z.strictObject({
  name,
  stages: z.array(z.enum(policyStages)).min(1),
  check: isFunction,
});

const boundsSchema = z.strictObject({
  models: z.array(modelId).min(1).optional(),
  hardSeconds: z.number().positive().max(604_800).optional(),
  maxIterations: z.number().int().min(1).max(50).optional(),
  maxAttempts: z.number().int().min(1).max(10).optional(),
  priority: z.number().int().min(0).max(9).optional(),
  maxTokens: z.number().int().positive().optional(),
  maxCostUsd: z.number().positive().optional(),
  systemPrompt: z.boolean().optional(),
  callbackHosts: z
    .array(z.string().regex(/^(\*\.)?[a-z0-9.-]+$/, "must be a host such as example.com or *.example.com"))
    .min(1)
    .optional(),
});

const agentSchema = z.strictObject({
  description: z.string().optional(),
  model: modelId.optional(),
  systemPrompt: z.string().optional(),
  tools: z.array(z.string()).optional(),
  temperature: z.number().min(0).max(2).optional(),
  maxTokens: z.number().int().positive().optional(),
  onLength: z.enum(["stop", "continue"]).optional(),
  maxParallelCalls: z.number().int().min(1).max(1000).optional(),
  maxIterations: z.number().int().min(1).max(50).optional(),
  actionBudget: z.number().min(0).optional(),
  onBudget: z.enum(["stop", "pause"]).optional(),
  approvals: z
    .strictObject({
      expiresAfterSeconds: z.number().positive().max(31_536_000).optional(),
      onExpiry: z.enum(["reject", "fail"]).optional(),
    })
    .optional(),
  onFailure: z.enum(["keep", "rollback"]).optional(),
  onChange: z.enum(["latest", "strict"]).optional(),
  submit: boundsSchema.optional(),
  policies: z.array(policySchema).optional(),
});

const toolSchema = z.strictObject({
  name: z.string().regex(/^[a-zA-Z][a-zA-Z0-9_-]{0,63}$/, "must be letters, digits, - or _, and start with a letter"),
  description: z.string().min(1, "tells the model what the tool does and must not be empty"),
  input: z.custom<z.ZodType>((value) => value instanceof z.ZodType, "must be a zod object schema (zod 4)"),
  output: z.custom<z.ZodType>((value) => value instanceof z.ZodType, "must be a zod schema (zod 4)").optional(),
  permission: z.enum(permissions),
  effect: z.enum(effects),
  version: z.string().min(1).max(64).optional(),
  budgetCost: z.number().min(0).optional(),
  maxCallsPerRun: z.number().int().positive().optional(),
  rate: z.strictObject({ calls: z.number().int().positive(), perSeconds: z.number().positive() }).optional(),
  allowedAgents: z.array(z.string()).min(1).optional(),
  needsApproval: isFunction.optional(),
  untrusted: z.boolean().optional(),
  private: z.boolean().optional(),
  external: z.boolean().optional(),
  verify: isFunction.optional(),
  compensate: isFunction.optional(),
  timeoutMs: z.number().int().positive().optional(),
  maxOutputBytes: z.number().int().positive().optional(),
  isolation: z.literal("process").optional(),
  module: z.string().min(1).optional(),
  env: z.array(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, "must be the name of an environment variable")).optional(),
  maxMemoryMb: z.number().int().min(32).optional(),
  execute: isFunction,
});

const configSchema = z.strictObject({
  agents: z.record(name, agentSchema).optional(),
  tools: z.array(toolSchema).optional(),
  submit: z.partialRecord(z.enum(submitRoles), boundsSchema).optional(),
  policies: z.array(policySchema).optional(),
  models: z
    .strictObject({
      providers: z
        .record(
          name,
          z.strictObject({
            type: z.literal("openai-compatible"),
            baseURL: z.url({ protocol: /^https?$/, error: "must be an http:// or https:// URL" }),
            apiKey: z.string().optional(),
          }),
        )
        .optional(),
      custom: z.record(modelId, z.looseObject({ call: isFunction })).optional(),
      prices: priceTable.optional(),
    })
    .optional(),
});

/** Thrown by `checkConfig`: every problem at once, a line each. */
export class ConfigError extends Error {
  readonly problems: string[];
  constructor(source: string, problems: string[]) {
    super(`${source} is not valid:\n${problems.map((problem) => `  - ${problem}`).join("\n")}`);
    this.name = "ConfigError";
    this.problems = problems;
  }
}

/** Validates what a configuration file exported, built-in tool names included. Throws `ConfigError` naming every problem. */
export function checkConfig(
  value: unknown,
  source: string,
  builtinTools: readonly { name: string }[] = [],
): DroverConfig {
  const issues = configSchema.safeParse(value).error?.issues ?? [];
  const problems = issues.map((issue) => {
    // What is wrong with a key of a record stands one level deeper.
    const message = issue.code === "invalid_key" ? (issue.issues[0]?.message ?? issue.message) : issue.message;
    return `${issue.path.join(".") || "(default export)"}: ${message}`;
  });
  problems.push(...crossProblems(value, builtinTools));
  if (problems.length > 0) throw new ConfigError(source, problems);
  return value as DroverConfig;
}

/** What no part alone shows: names taken twice, names nobody has, inputs no model can be told. Skips what is malformed. */
function crossProblems(value: unknown, builtinTools: readonly { name: string }[]): string[] {
  const { tools, agents } = (value ?? {}) as { tools?: unknown; agents?: unknown };
  const problems: string[] = [];
  const names = new Set<unknown>(builtinTools.map((tool) => tool.name));
  for (const [index, tool] of (Array.isArray(tools) ? tools : []).entries()) {
    if (names.has(tool?.name)) problems.push(`tools.${index}.name: "${tool.name}" is taken by another tool`);
    if (typeof tool?.name === "string") names.add(tool.name);
    const problem = tool?.input instanceof z.ZodType ? inputProblem(tool.input) : undefined;
    if (problem) problems.push(`tools.${index}.input: ${problem}`);
    if (tool?.compensate && tool.permission !== "write" && tool.permission !== "admin")
      problems.push(`tools.${index}.compensate: only write and admin tools can be undone, not ${tool.permission}`);
    for (const agent of Array.isArray(tool?.allowedAgents) ? tool.allowedAgents : [])
      if (agent !== "default" && !Object.hasOwn(agents ?? {}, agent))
        problems.push(`tools.${index}.allowedAgents: there is no agent "${agent}"`);
  }
  for (const [agent, definition] of Object.entries(agents ?? {}))
    for (const tool of Array.isArray(definition?.tools) ? definition.tools : [])
      if (typeof tool === "string" && !names.has(tool))
        problems.push(`agents.${agent}.tools: there is no tool "${tool}"`);
  return problems;
}

function inputProblem(input: z.ZodType): string | undefined {
  try {
    if (z.toJSONSchema(input, { io: "input" }).type !== "object") return "must be an object schema";
    return undefined;
  } catch (error) {
    return `cannot be told to a model as JSON Schema: ${(error as Error).message}`;
  }
}
