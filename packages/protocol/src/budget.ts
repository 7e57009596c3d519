/** What runs and tenants may spend. Money is USD. */
import { z } from "zod";
import { wireId } from "./fields.ts";
import { runStatuses } from "./statuses.ts";

const mostUsd = 1_000_000;

export const raiseBudgetBody = z
  .strictObject({
    max_cost_usd: z
      .number()
      .positive()
      .max(mostUsd)
      .optional()
      .describe("the run's new cap, more than the one there is"),
    actions: z
      .number()
      .positive()
      .max(1_000_000_000)
      .optional()
      .describe("points its tool calls may take together, more than before"),
  })
  .refine((raise) => Object.keys(raise).length > 0, {
    error: "must raise something: max_cost_usd or actions",
    when: ({ issues }) => issues.length === 0,
  })
  .meta({ id: "RaiseBudget", examples: [{ max_cost_usd: 2.5 }] });

export const raisedBudget = z
  .object({
    task_id: wireId("run"),
    status: z.enum(runStatuses).describe("a run that waited for its budget goes on"),
    max_cost_usd: z.number().optional(),
    actions: z.number().optional(),
  })
  .meta({
    id: "RaisedBudget",
    examples: [{ task_id: "run_01936f3e7c5a7d418a3e5b0f9c2d1e4a", status: "queued", max_cost_usd: 2.5 }],
  });
export type RaisedAnswer = z.infer<typeof raisedBudget>;

const cap = z.number().min(0).max(mostUsd).nullable();
const caps = {
  day_usd: cap.describe("of all runs of the tenant in a UTC day; null: no cap"),
  month_usd: cap.describe("of all runs of the tenant in a UTC month; null: no cap"),
  session_usd: cap.describe("of all runs of one session; null: no cap"),
};

export const setBudgetBody = z
  .strictObject({
    day_usd: caps.day_usd.optional(),
    month_usd: caps.month_usd.optional(),
  })
  .refine((change) => Object.keys(change).length > 0, {
    error: "must change something: day_usd or month_usd",
    when: ({ issues }) => issues.length === 0,
  })
  .describe("What is left out stays as it is.")
  .meta({ id: "SetBudget", examples: [{ day_usd: 50, month_usd: null }] });

export const budget = z
  .object({
    ...caps,
    day_used_usd: z.number().describe("charged in this UTC day"),
    month_used_usd: z.number().describe("charged in this UTC month"),
  })
  .meta({
    id: "Budget",
    examples: [{ day_usd: 50, month_usd: null, session_usd: null, day_used_usd: 3.207, month_used_usd: 41.66 }],
  });
export type BudgetAnswer = z.infer<typeof budget>;
