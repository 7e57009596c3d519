/** The settings of a submission, as flags of `drover run` and `drover batch submit`. */
import { readJson } from "./json-argument.ts";

export interface SettingOptions {
  agent?: string;
  model?: string;
  context?: string;
  system?: string;
  user?: string;
  temperature?: number;
  maxTokens?: number;
  maxIterations?: number;
  maxCost?: number;
  actionBudget?: number;
  atCap?: "stop" | "pause";
  soft?: number;
  hard?: number;
  deadline?: string;
  priority?: number;
  delay?: number;
  maxAttempts?: number;
  backoff?: number;
  maxBackoff?: number;
  callbackUrl?: string;
  event?: string[];
  metadata?: Record<string, string>;
  idempotencyKey?: string;
}

/** The fields of a submission's body; what is not given is undefined, which JSON leaves out. */
export async function settingsOf(options: SettingOptions) {
  return {
    agent: options.agent,
    model: options.model,
    context: options.context === undefined ? undefined : await readJson("--context", options.context),
    system_prompt: options.system,
    user_id: options.user,
    temperature: options.temperature,
    max_tokens: options.maxTokens,
    max_iterations: options.maxIterations,
    max_cost_usd: options.maxCost,
    budget: anyOf({ actions: options.actionBudget, at_cap: options.atCap }),
    limits: anyOf({ soft_seconds: options.soft, hard_seconds: options.hard, deadline: options.deadline }),
    priority: options.priority,
    delay_seconds: options.delay,
    retry: anyOf({
      max_attempts: options.maxAttempts,
      backoff_ms: options.backoff,
      max_backoff_ms: options.maxBackoff,
    }),
    callback_url: options.callbackUrl,
    events: options.event,
    metadata: options.metadata,
  };
}

/** undefined when nothing of it is given. */
export function anyOf<T extends object>(fields: T): T | undefined {
  return Object.values(fields).some((value) => value !== undefined) ? fields : undefined;
}
