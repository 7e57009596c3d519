/** `drover budget`, `drover retry` and `drover rollback`: what may be spent, taking a run up again, and undoing what it did. */
import type { AcceptedAnswer, BudgetAnswer } from "@drover/protocol";
import { CliError, exitCodes } from "../exit.ts";
import { money, table } from "../text.ts";
import type { DroverClient } from "./http.ts";
import { print, printJson, showOutcome, waitToEnd } from "./outcome.ts";
import { anyOf } from "./settings.ts";

export interface BudgetOptions {
  json?: boolean;
  run?: string;
  maxCost?: number;
  actions?: number;
  day?: number | "none";
  month?: number | "none";
}

/** Without options: how the tenant's budget stands. With `--run`: raises that run's; else sets the caps that are named. */
export async function budget(client: DroverClient, options: BudgetOptions): Promise<number> {
  const ofRun = anyOf({ max_cost_usd: options.maxCost, actions: options.actions });
  const ofTenant = anyOf({
    day_usd: capOf(options.day),
    month_usd: capOf(options.month),
  });
  if (options.run !== undefined) {
    if (ofTenant) throw new CliError(exitCodes.usage, "--day and --month are the tenant's: leave out --run");
    if (!ofRun) throw new CliError(exitCodes.usage, "say what to raise: --max-cost USD or --actions N");
    const raised = await client.raiseBudget(options.run, ofRun);
    if (options.json) printJson(raised);
    else print(`${raised.task_id}  ${raised.status}`);
    return exitCodes.done;
  }
  if (ofRun) throw new CliError(exitCodes.usage, "--max-cost and --actions are a run's: say which with --run run_…");
  const answer = ofTenant ? await client.setBudget(ofTenant) : await client.budget();
  if (options.json) printJson(answer);
  else print(...budgetLines(answer));
  return exitCodes.done;
}

function budgetLines(budget: BudgetAnswer): string[] {
  const shown = (usd: number | null) => (usd === null ? "none" : money(usd));
  return table([
    ["PER", "CAP", "USED"],
    ["day (UTC)", shown(budget.day_usd), money(budget.day_used_usd)],
    ["month (UTC)", shown(budget.month_usd), money(budget.month_used_usd)],
    ["session", shown(budget.session_usd), ""],
  ]);
}

const capOf = (given: number | "none" | undefined) => (given === "none" ? null : given);

export interface NewRunOptions {
  json?: boolean;
  wait?: boolean;
  /** Seconds to wait at most. */
  timeout?: number;
}

export interface RetryOptions extends NewRunOptions {
  model?: string;
  maxIterations?: number;
  maxCost?: number;
  soft?: number;
  hard?: number;
  deadline?: string;
  idempotencyKey?: string;
}

export async function retry(client: DroverClient, id: string, options: RetryOptions): Promise<number> {
  const { model, maxIterations: max_iterations, maxCost: max_cost_usd, soft, hard, deadline } = options;
  const limits = anyOf({ soft_seconds: soft, hard_seconds: hard, deadline });
  const body = { model, max_iterations, max_cost_usd, limits };
  return await toEnd(client, await client.retry(id, body, options.idempotencyKey), options);
}

export async function rollback(client: DroverClient, id: string, options: NewRunOptions): Promise<number> {
  return await toEnd(client, await client.rollBack(id), options);
}

/** Says what was accepted, or with `--wait` how it ended. */
async function toEnd(client: DroverClient, accepted: AcceptedAnswer, options: NewRunOptions): Promise<number> {
  if (!options.wait) {
    if (options.json) printJson(accepted);
    else print(`${accepted.task_id}  ${accepted.status}`, "", `  drover events ${accepted.task_id} --follow`);
    return exitCodes.done;
  }
  // An end that has not come yet is said by `showOutcome`.
  await waitToEnd(client, accepted.task_id, options.timeout);
  return await showOutcome(client, accepted.task_id, options);
}
