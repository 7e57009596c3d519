/**
 * The rule of two: one run may have two of untrusted input, private data and an effect outside, not all three without a person
 * ("Agents Rule of Two", Meta AI, 2025): whoever wrote the untrusted input could have the private data sent to them.
 */
import { z } from "zod";
import { policyName, readOptions } from "./options.ts";
import { definePolicy, type Policy } from "./policy.ts";

const schema = z.strictObject({
  name: policyName.default("rule-of-two"),
  action: z.enum(["ask", "block"]).default("ask"),
});

export type RuleOfTwoOptions = z.input<typeof schema>;

/**
 * Stops an external call (`ask` by default, or `block`) of a run that has seen untrusted content and private data. Throws
 * `ConfigError`.
 *
 * What counts is what the run has seen before the call: the model wrote the arguments from that alone. That the tool itself
 * returns untrusted or private data counts from the next call on. It trusts the marks of the tools, and it knows nothing of what
 * the model learned elsewhere.
 */
export function ruleOfTwo(options: RuleOfTwoOptions = {}): Policy {
  const { name, action } = readOptions(schema, options, "ruleOfTwo(options)");
  return definePolicy({
    name,
    stages: ["arguments"],
    check: (_value, { tool, seen }) =>
      tool?.external && seen.untrusted && seen.private
        ? { action, reason: "the run has seen untrusted content and private data, and this call has an effect outside" }
        : { action: "allow" },
  });
}
