/** What a tenant may spend, and raising the caps of a run. */
import { toNanos, toUsd } from "@drover/harness/worker";
import { type BudgetAnswer, budget, raiseBudgetBody, raisedBudget, setBudgetBody, toWireId } from "@drover/protocol";
import { raiseRunBudget, readBudget, readRun, setBudget, type TenantBudget } from "@drover/runs";
import { z } from "zod";
import type { App, Context } from "../context.ts";
import { wake } from "../deciding.ts";
import { missing, runId } from "../resources.ts";

const noQuery = z.strictObject({});
const json = <T extends z.ZodType>(description: string, schema: T) => ({
  description,
  content: { "application/json": { schema } },
});

export function budgetRoutes(app: App, context: Context): void {
  const { pool, blobs, signals } = context;

  app.route({
    method: "POST",
    url: "/query/:id/budget",
    config: { scope: "intervene", problems: ["not_found", "conflict"] },
    schema: {
      tags: ["act"],
      summary: "Raise the budget of a query",
      description: "A run that waits for it goes on. `conflict` when the run is final.",
      params: z.object({ id: z.string().describe("`run_…`") }),
      querystring: noQuery,
      body: raiseBudgetBody,
      response: { 200: json("Raised", raisedBudget) },
    },
    handler: async (request, reply) => {
      const { tenant, keyId } = request.caller;
      const { max_cost_usd, actions } = request.body;
      const id = runId(request.params.id);
      const raise = { maxCostUsd: max_cost_usd, actionBudget: actions };
      const raised = (await raiseRunBudget(pool, blobs, { tenant, id }, raise, keyId)) ?? missing("run");
      signals.news(id);
      wake(context, raised.resumed ? [raised.resumed] : []);
      const { status } = (await readRun(pool, tenant, id)) ?? missing("run");
      return reply.send({ task_id: toWireId("run", id), status, ...request.body });
    },
  });

  app.route({
    method: "GET",
    url: "/budget",
    config: { scope: "read" },
    schema: {
      tags: ["operate"],
      summary: "What the tenant may spend, and has spent",
      querystring: noQuery,
      response: { 200: json("Caps and usage", budget) },
    },
    handler: async (request, reply) => reply.send(budgetAnswer(await readBudget(pool, request.caller.tenant))),
  });

  app.route({
    method: "PUT",
    url: "/budget",
    config: { scope: "budget" },
    schema: {
      tags: ["operate"],
      summary: "Set what the tenant may spend",
      description: "Runs that wait for one of these caps look again.",
      querystring: noQuery,
      body: setBudgetBody,
      response: { 200: json("As it is now", budget) },
    },
    handler: async (request, reply) => {
      const { tenant, keyId } = request.caller;
      const { day_usd, month_usd } = request.body;
      const change = { day: nanosOf(day_usd), month: nanosOf(month_usd) };
      const resumed = await setBudget(pool, tenant, change, keyId);
      for (const run of resumed) signals.news(run.runId);
      wake(context, resumed);
      return reply.send(budgetAnswer(await readBudget(pool, tenant)));
    },
  });
}

/** null stays: no cap; undefined too: not to be changed. */
const nanosOf = (usd: number | null | undefined) => (typeof usd === "number" ? toNanos(usd) : usd);
const usdOf = (nanos: number | null) => (nanos === null ? null : toUsd(nanos));

function budgetAnswer({ day, month, session }: TenantBudget): BudgetAnswer {
  return {
    day_usd: usdOf(day.cap),
    month_usd: usdOf(month.cap),
    session_usd: usdOf(session.cap),
    day_used_usd: toUsd(day.used),
    month_used_usd: toUsd(month.used),
  };
}
