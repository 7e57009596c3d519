/** How the built-in policies read their options: the fields that all have, and one error that names every wrong one. */
import { z } from "zod";
import { ConfigError } from "../library/agent.ts";
import { policyStages } from "./policy.ts";

export const policyName = z
  .string()
  .regex(/^[a-z][a-z0-9_-]{0,63}$/, "must be lower-case letters, digits, - or _, and start with a letter");

export const stages = z.array(z.enum(policyStages)).min(1, "must name at least one stage");

/** Throws `ConfigError`, a line for each wrong option. `call` is what is said to be wrong: `pii(options)`. */
export function readOptions<T>(schema: z.ZodType<T>, options: unknown, call: string): T {
  const read = schema.safeParse(options);
  if (read.success) return read.data;
  throw new ConfigError(
    call,
    read.error.issues.map(({ path, message }) => (path.length === 0 ? message : `${path.join(".")}: ${message}`)),
  );
}
