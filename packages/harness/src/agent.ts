/** Agents and the configuration file: what `drover.config.ts` default-exports. */
import { type CustomProvider, type Model, type PriceTable, priceTable } from "@drover/llm";
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
const modelId = z.string().regex(/^[^/\s]+\/\S+$/, "must be provider/model");
const isFunction = z.custom<never>((value) => typeof value === "function", "must be a function");

const agentSchema = z.strictObject({
  description: z.string().optional(),
  model: modelId.optional(),
  systemPrompt: z.string().optional(),
  tools: z.array(z.string()).optional(),
  temperature: z.number().min(0).max(2).optional(),
  maxTokens: z.number().int().positive().optional(),
  maxIterations: z.number().int().min(1).max(50).optional(),
});

const toolSchema = z.strictObject({
  name: z.string().regex(/^[a-zA-Z][a-zA-Z0-9_-]{0,63}$/, "must be letters, digits, - or _, and start with a letter"),
  description: z.string().min(1, "tells the model what the tool does and must not be empty"),
  input: z.custom<z.ZodType>((value) => value instanceof z.ZodType, "must be a zod object schema (zod 4)"),
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
