/** Rules of an installation's own, as regular expressions that run in linear time (re2js), so that no text can hang the run. */
import { RE2JS } from "re2js";
import { z } from "zod";
import { ConfigError } from "../library/agent.ts";
import { policyName, readOptions, stages } from "./options.ts";
import { definePolicy, type Policy, type PolicyStage, policyStages } from "./policy.ts";
import { type Span, screen } from "./screen.ts";

/** Linear is not free: the time is text times pattern. 250 steps stay below a second for 100 kB at their worst. */
const maxSteps = 250;

const source = "contentRules(rules)";

const schema = z.array(
  z.strictObject({
    name: policyName,
    pattern: z.string().min(1, "must not be empty"),
    flags: z
      .string()
      .regex(/^[ims]*$/, "must be of i (any case), m (^ and $ at each line), s (. takes newlines)")
      .default(""),
    action: z.enum(["redact", "flag", "ask", "block"]),
    stages: stages.optional(),
    tools: z.array(z.string().min(1)).min(1, "must name at least one tool").optional(),
    replacement: z.string().optional(),
  }),
);

export type ContentRule = z.input<typeof schema>[number];

/**
 * One policy for each rule, named after it, so that a redaction of one stands when another asks. `pattern` is RE2 syntax (no
 * look-around, no back references) and is tried on every text of the value: strings, keys, numbers as written. `redact` leaves
 * `replacement` (default `[name]`) in its place. Default stages: all; with `tools`, which only calls have, arguments and result.
 * Throws `ConfigError` naming every wrong rule.
 */
export function contentRules(rules: readonly ContentRule[]): Policy[] {
  const problems: string[] = [];
  const read = readOptions(schema, rules, source);
  const policies = read.map((rule, index) => {
    const mark = rule.replacement ?? `[${rule.name}]`;
    const problem = (text: string) => problems.push(`rule "${rule.name}": ${text}`);
    if (read.findIndex(({ name }) => name === rule.name) !== index) problem("another rule has that name");
    const pattern = compile(rule.pattern, rule.flags, problem);
    if (pattern?.test(""))
      problem("pattern matches the empty text, which is everywhere; make it need at least a character");
    else if (rule.action === "redact" && pattern?.test(mark))
      problem("pattern matches what replaces it; give another replacement");
    const atStages: readonly PolicyStage[] = rule.stages ?? (rule.tools ? ["arguments", "result"] : policyStages);
    return definePolicy({
      name: rule.name,
      stages: atStages,
      check(value, { tool }) {
        if (pattern === null || (rule.tools && !(tool && rule.tools.includes(tool.name)))) return { action: "allow" };
        const finder =
          rule.action === "redact"
            ? { one: "match", many: "matches", mark, find: (text: string) => findAll(pattern, text) }
            : {
                one: "text that matches",
                many: "texts that match",
                mark,
                find: (text: string) => findAny(pattern, text),
              };
        return screen(value, [finder], rule.action);
      },
    });
  });
  if (problems.length > 0) throw new ConfigError(source, problems);
  return policies;
}

function compile(pattern: string, flags: string, problem: (text: string) => void): RE2JS | null {
  const bits = { i: RE2JS.CASE_INSENSITIVE, m: RE2JS.MULTILINE, s: RE2JS.DOTALL };
  try {
    const compiled = RE2JS.compile(
      RE2JS.translateRegExp(pattern),
      [...new Set(flags)].reduce((sum, flag) => sum | bits[flag as keyof typeof bits], 0),
    );
    if (compiled.programSize() > maxSteps)
      problem(`pattern takes ${compiled.programSize()} steps, at most ${maxSteps}; make its repetitions shorter`);
    return compiled;
  } catch (error) {
    const reason = error instanceof Error ? error.message.replace("error parsing regexp: ", "") : String(error);
    problem(`pattern does not compile: ${reason} (RE2 syntax has no look-around and no back references)`);
    return null;
  }
}

/** Whether there is a match costs a tenth of finding all. */
function findAny(pattern: RE2JS, text: string): Span[] {
  return pattern.test(text) ? [[0, text.length]] : [];
}

function findAll(pattern: RE2JS, text: string): Span[] {
  const spans: Span[] = [];
  if (!pattern.test(text)) return spans;
  const matcher = pattern.matcher(text);
  while (matcher.find()) if (matcher.end() > matcher.start()) spans.push([matcher.start(), matcher.end()]);
  return spans;
}
