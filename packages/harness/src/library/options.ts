/** What a run in the library may be asked for: the bounds of the HTTP contract, in the names of the library's options. */
import { submitBody } from "@drover/protocol";
import type { RunInput } from "../loop/events.ts";
import { ConfigError } from "./agent.ts";

/** An option as the library calls it; what stands below `context` and `metadata` are names of the caller's own. */
function nameOf([first, ...more]: PropertyKey[]): string {
  if (first === "budget") return "actionBudget";
  const own = first === "context" || first === "metadata";
  const camel = (part: PropertyKey) => String(part).replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
  return [camel(first ?? "options"), ...more.map(own ? String : camel)].join(".");
}

/**
 * Throws `ConfigError` that names every option out of bounds.
 * @param source whose options they are, as the error says it
 */
export function checkInput(source: string, input: RunInput, metadata?: Record<string, string>): void {
  const { action_budget, limits, system_prompt, ...same } = input;
  // In a process of the caller's own a run may be endless, and have no system prompt at all.
  const finite = (seconds: number) => (seconds === Number.POSITIVE_INFINITY ? 604_800 : seconds);
  const body = {
    ...same,
    limits: { ...limits, soft_seconds: finite(limits.soft_seconds), hard_seconds: finite(limits.hard_seconds) },
    ...(system_prompt && { system_prompt }),
    ...(action_budget !== undefined && { budget: { actions: action_budget } }),
    ...(metadata !== undefined && { metadata }),
  };
  const problems = (submitBody.safeParse(body).error?.issues ?? []).map(
    ({ path, message }) => `${nameOf(path)}: ${message}`,
  );
  if (problems.length === 0 && limits.soft_seconds >= limits.hard_seconds && Number.isFinite(limits.soft_seconds))
    problems.push("limits.softSeconds: must be less than limits.hardSeconds");
  if (problems.length > 0) throw new ConfigError(source, problems);
}
