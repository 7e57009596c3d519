/** Agents and the configuration file: what `drover.config.ts` default-exports. */
import type { CustomProvider, Model, PriceTable } from "@drover/llm";
import { z } from "zod";
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
  maxIterations?: number;
}

export interface DroverConfig {
  agents?: Record<string, AgentDefinition>;
  // biome-ignore lint/suspicious/noExplicitAny: tools of any input live side by side.
  tools?: ToolDefinition<any>[];
  models?: { providers?: Record<string, CustomProvider>; custom?: Record<string, Model>; prices?: PriceTable };
}

/** Declares a configuration; only fixes the types. */
export function defineConfig(config: DroverConfig): DroverConfig {
  return config;
}

const name = z
  .string()
  .regex(/^[a-z][a-z0-9_-]{0,63}$/, "must be lower-case letters, digits, - or _, and start with a letter");
const isFunction = z.custom<never>((value) => typeof value === "function", "must be a function");

const agentSchema = z.strictObject({
  description: z.string().optional(),
  model: z
    .string()
    .regex(/^[^/\s]+\/\S+$/, "must be provider/model")
    .optional(),
  systemPrompt: z.string().optional(),
  tools: z.array(z.string()).optional(),
  temperature: z.number().min(0).max(2).optional(),
  maxTokens: z.number().int().positive().optional(),
  maxIterations: z.number().int().min(1).max(50).optional(),
});

const toolSchema = z.looseObject({
  name: z.string().regex(/^[a-zA-Z][a-zA-Z0-9_-]{0,63}$/, "must be letters, digits, - or _, and start with a letter"),
  description: z.string().min(1, "tells the model what the tool does and must not be empty"),
  input: z.custom<never>((value) => value instanceof z.ZodType, "must be a zod object schema (zod 4)"),
  permission: z.enum(permissions),
  effect: z.enum(effects),
  timeoutMs: z.number().int().positive().optional(),
  maxOutputBytes: z.number().int().positive().optional(),
  execute: isFunction,
});

const configSchema = z.strictObject({
  agents: z.record(name, agentSchema).optional(),
  tools: z.array(toolSchema).optional(),
  models: z
    .strictObject({
      providers: z.record(name, z.looseObject({})).optional(),
      custom: z
        .record(z.string().regex(/^[^/\s]+\/\S+$/, "must be provider/model"), z.looseObject({ call: isFunction }))
        .optional(),
      prices: z.record(z.string(), z.looseObject({})).optional(),
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
  const parsed = configSchema.safeParse(value);
  if (!parsed.success)
    throw new ConfigError(
      source,
      parsed.error.issues.map((issue) => `${issue.path.join(".") || "(default export)"}: ${issue.message}`),
    );
  const config = value as DroverConfig;
  const problems: string[] = [];
  const names = new Set(builtinTools.map((tool) => tool.name));
  config.tools?.forEach((tool, index) => {
    if (names.has(tool.name)) problems.push(`tools.${index}.name: "${tool.name}" is taken by another tool`);
    names.add(tool.name);
    try {
      z.toJSONSchema(tool.input, { io: "input" });
    } catch (error) {
      problems.push(`tools.${index}.input: cannot be told to a model as JSON Schema: ${(error as Error).message}`);
    }
  });
  for (const [agent, definition] of Object.entries(config.agents ?? {}))
    for (const tool of definition.tools ?? [])
      if (!names.has(tool)) problems.push(`agents.${agent}.tools: there is no tool "${tool}"`);
  if (problems.length > 0) throw new ConfigError(source, problems);
  return config;
}
