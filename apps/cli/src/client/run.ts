/** `drover run`: submit a query, and wait for or follow its end. */
import { text as readAll } from "node:stream/consumers";
import type { AcceptedAnswer } from "@drover/protocol";
import { exitCodes } from "../exit.ts";
import type { DroverClient } from "./http.ts";
import { readJson } from "./json-argument.ts";
import { type FollowOptions, followToEnd, print, printJson, showOutcome, waitToEnd } from "./outcome.ts";

export interface RunOptions extends FollowOptions {
  agent?: string;
  model?: string;
  context?: string;
  system?: string;
  user?: string;
  temperature?: number;
  maxIterations?: number;
  maxCost?: number;
  actionBudget?: number;
  atCap?: "stop" | "pause";
  soft?: number;
  hard?: number;
  deadline?: string;
  priority?: number;
  delay?: number;
  callbackUrl?: string;
  metadata?: Record<string, string>;
  idempotencyKey?: string;
  follow?: boolean;
  wait?: boolean;
  /** Seconds to wait at most. */
  timeout?: number;
}

export async function run(client: DroverClient, words: string[], options: RunOptions): Promise<number> {
  const query = words.length === 1 && words[0] === "-" ? await readAll(process.stdin) : words.join(" ");
  const accepted = await client.submit(await bodyOf(query, options), options.idempotencyKey);
  if (options.follow) {
    if (options.json) printJson(accepted, { line: true });
    else process.stderr.write(`${accepted.task_id}\n`);
    return await followToEnd(client, accepted.task_id, { ...options, after: 0 });
  }
  if (options.wait) {
    const ended = await waitToEnd(client, accepted.task_id, options.timeout);
    return ended ? await showOutcome(client, accepted.task_id, options) : notYet(accepted, options);
  }
  if (options.json) printJson(accepted);
  else print(...whatNext(accepted));
  return exitCodes.done;
}

function whatNext({ task_id, status }: AcceptedAnswer): string[] {
  return [`${task_id}  ${status}`, "", `  drover events ${task_id} --follow`, `  drover result ${task_id}`];
}

function notYet(accepted: AcceptedAnswer, options: RunOptions): number {
  if (options.json) printJson(accepted);
  else process.stderr.write(`${accepted.task_id} has not ended yet; it goes on\n`);
  return exitCodes.notFinal;
}

async function bodyOf(query: string, options: RunOptions): Promise<unknown> {
  const limits = {
    soft_seconds: options.soft,
    hard_seconds: options.hard,
    deadline: options.deadline,
  };
  const budget = { actions: options.actionBudget, at_cap: options.atCap };
  // JSON leaves out what is undefined.
  return {
    query,
    agent: options.agent,
    model: options.model,
    context: options.context === undefined ? undefined : await readJson("--context", options.context),
    system_prompt: options.system,
    user_id: options.user,
    temperature: options.temperature,
    max_iterations: options.maxIterations,
    max_cost_usd: options.maxCost,
    budget: Object.values(budget).some((part) => part !== undefined) ? budget : undefined,
    limits: Object.values(limits).some((limit) => limit !== undefined) ? limits : undefined,
    priority: options.priority,
    delay_seconds: options.delay,
    callback_url: options.callbackUrl,
    metadata: options.metadata,
  };
}
