/**
 * Configuration from the environment: every module owns a zod schema of its variables, an app composes them (`a.and(b)`) and
 * validates all at start. What is wrong is named at once, with what each variable means.
 */
import { z } from "zod";

/** Thrown by `loadConfig`; `message` has one line for each wrong variable and never a value, which may be a secret. */
export class ConfigurationError extends Error {
  readonly problems: readonly { variable: string; message: string; hint: string }[];
  constructor(problems: readonly { variable: string; message: string; hint: string }[]) {
    const lines = problems.map(({ variable, message, hint }) => `  ${variable} ${message}${hint && ` (${hint})`}`);
    super(`The configuration is not valid:\n${lines.join("\n")}`);
    this.name = "ConfigurationError";
    this.problems = problems;
  }
}

/**
 * Validates the environment. An empty variable counts as not set, as `${NAME:-}` of a compose file leaves it.
 * @throws ConfigurationError naming every wrong variable.
 */
export function loadConfig<T>(schema: z.ZodType<T>, env: Record<string, string | undefined> = process.env): T {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ""));
  const parsed = schema.safeParse(given);
  if (parsed.success) return parsed.data;
  const hints = new Map(describeConfig(schema).map((variable) => [variable.name, variable.meaning]));
  throw new ConfigurationError(
    parsed.error.issues.map((issue) => {
      const variable = String(issue.path[0] ?? "");
      return { variable, message: messageOf(issue, given[variable]), hint: hints.get(variable) ?? "" };
    }),
  );
}

function messageOf(issue: z.core.$ZodIssue, given: unknown): string {
  if (issue.code !== "invalid_type") return issue.message;
  return given === undefined ? "must be set" : `must be a ${issue.expected}`;
}

export interface ConfigVariable {
  name: string;
  meaning: string;
  /** As one would write it in the environment; null: none. */
  default: string | null;
}

/** The variables of a schema (an object, or objects joined by `and`), in the order of their declaration. */
export function describeConfig(schema: z.ZodType): ConfigVariable[] {
  if (schema instanceof z.ZodIntersection)
    return [schema.def.left, schema.def.right].flatMap((side) => describeConfig(side as z.ZodType));
  if (!(schema instanceof z.ZodObject))
    throw new TypeError("a configuration schema is an object, or objects joined by `and`");
  return Object.entries(schema.shape as Record<string, z.ZodType>).map(([name, field]) => {
    const { default: value } = z.toJSONSchema(field, { io: "input", unrepresentable: "any" });
    return {
      name,
      meaning: meaningOf(field),
      default: value === undefined || value === "" ? null : String(value),
    };
  });
}

/** The description, also of a variable that an app requires although its module does not. */
function meaningOf(field: z.ZodType): string {
  if (field.description !== undefined) return field.description;
  return field instanceof z.ZodNonOptional ? meaningOf(field.unwrap() as z.ZodType) : "";
}
