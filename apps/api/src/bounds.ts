/** What a submission may ask for, by its key's role and its agent: the configuration's bounds, each refused by its field's name. */
import type { SubmitBounds } from "@drover/harness";
import { isKnownModel } from "@drover/llm/known";
import type { SubmitBody } from "@drover/protocol";
import type { Role } from "./keys.ts";

/** Where the configuration says nothing of a role. */
export const defaultBounds: Partial<Record<Role, SubmitBounds>> = { submitter: { hardSeconds: 86_400 } };

/** `whose`: for the message, such as "role submitter". */
export function checkBounds(
  body: Omit<SubmitBody, "query">,
  bounds: SubmitBounds,
  whose: string,
  report: (path: string, message: string) => void,
): void {
  const atMost = (path: string, value: number | undefined, most: number | undefined) => {
    if (value !== undefined && most !== undefined && value > most)
      report(path, `must be at most ${most}: the bound of ${whose}`);
  };
  atMost("limits.hard_seconds", body.limits?.hard_seconds, bounds.hardSeconds);
  atMost("limits.soft_seconds", body.limits?.soft_seconds, bounds.hardSeconds);
  atMost("max_iterations", body.max_iterations, bounds.maxIterations);
  atMost("retry.max_attempts", body.retry?.max_attempts, bounds.maxAttempts);
  atMost("priority", body.priority, bounds.priority);
  atMost("max_tokens", body.max_tokens, bounds.maxTokens);
  atMost("max_cost_usd", body.max_cost_usd, bounds.maxCostUsd);
  if (body.model !== undefined && bounds.models && !isKnownModel(bounds.models, body.model))
    report("model", `must be one of ${bounds.models.join(", ")}: the bound of ${whose}`);
  if (body.system_prompt !== undefined && bounds.systemPrompt === false)
    report("system_prompt", `may not be replaced: the bound of ${whose}`);
  const host = body.callback_url === undefined ? undefined : URL.parse(body.callback_url)?.hostname;
  if (host !== undefined && bounds.callbackHosts && !bounds.callbackHosts.some((allowed) => covers(allowed, host)))
    report("callback_url", `must be at ${bounds.callbackHosts.join(", ")}: the bound of ${whose}`);
}

const covers = (allowed: string, host: string): boolean =>
  allowed.startsWith("*.") ? host.endsWith(allowed.slice(1)) : host === allowed;
