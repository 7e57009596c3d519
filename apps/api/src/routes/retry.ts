/** Taking up a run that did not complete, from its last good step. */
import { accepted, DroverError, type RetryBody, retryBody } from "@drover/protocol";
import { type Retry, type Run, readRun, retryRun } from "@drover/runs";
import { z } from "zod";
import { acceptedAnswer } from "../answers.ts";
import type { App, Context } from "../context.ts";
import { wake } from "../deciding.ts";
import { type Caller, may } from "../keys.ts";
import { countSubmissions } from "../observe.ts";
import { missing, runId } from "../resources.ts";
import { toSubmission } from "../submission.ts";
import { acceptedHeaders, acceptedHeadersOf, idempotencyKey, idempotencyOf, judged } from "./submit.ts";

export function retryRoutes(app: App, context: Context): void {
  app.route({
    method: "POST",
    url: "/query/:id/retry",
    config: {
      scope: "submit",
      problems: ["not_found", "conflict", "contents_expired", "idempotency_mismatch"],
      reads: z.object({ "Idempotency-Key": idempotencyKey }),
      answerHeaders: { 202: acceptedHeaders },
    },
    schema: {
      tags: ["act"],
      summary: "Retry a query that did not complete",
      description:
        "A new run (`retry_of`) goes on from the last good step of one that is `failed`, `partial` or `cancelled`: what that one finished is in its log " +
        "and conversation, and is neither done nor charged again. Time limits, attempts, iterations and caps count anew; a deadline that has passed is dropped. " +
        "A call that may have taken effect is verified or asked about, and an idempotent one is made again under the same key. Approvals that were not " +
        "made use of are asked for anew. A batch's item is retried as a query of its own. Asking twice makes two runs, unless with one `Idempotency-Key`. " +
        "`conflict`: it completed, is not final, is a rollback, or was rolled back.",
      params: z.object({ id: z.string().describe("`run_…`") }),
      querystring: z.strictObject({}),
      body: retryBody,
      response: {
        202: {
          description: "Accepted: it is stored and will run",
          content: { "application/json": { schema: accepted } },
        },
      },
    },
    handler: async (request, reply) => {
      const { caller, params } = request;
      const { pool, blobs, config } = context;
      const id = runId(params.id);
      const old = (await readRun(pool, caller.tenant, id)) ?? missing("run");
      const idempotency = idempotencyOf(request, `/query/${id}/retry`);
      const accepted = await judged(
        context,
        request,
        idempotency,
        () => checked(request.body ?? {}, old, caller),
        async (wanted) => {
          const retried = await retryRun(pool, blobs, {
            tenant: caller.tenant,
            id,
            ...wanted,
            callbackDecides: may(caller.role, "approve") && config.DROVER_APPROVE_OWN,
            actor: caller.keyId,
            leaseMs: config.LEASE_SECONDS * 1000,
            observe: countSubmissions,
            idempotency,
          });
          const { id: newId, made } = retried ?? missing("run");
          if (made) wake(context, [made]);
          return { id: newId, replayed: made === null };
        },
      );
      return reply.code(202).headers(acceptedHeadersOf(accepted)).send(acceptedAnswer(accepted.id));
    },
  });

  /** What a query with these settings would get. @throws DroverError `invalid_input` naming every wrong field, `conflict` when its agent is gone */
  function checked(body: RetryBody & object, { agent }: Run, caller: Caller): Pick<Retry, "changes" | "permissions"> {
    if (!Object.hasOwn(context.agents, agent))
      throw new DroverError("conflict", `There is no agent "${agent}" any more.`);
    const { input } = toSubmission({ ...body, query: "-", agent }, caller, context);
    const { limits, max_iterations, max_cost_usd, model } = input;
    return {
      permissions: input.permissions,
      changes: {
        ...(body.limits && { limits }),
        ...(body.max_iterations !== undefined && { max_iterations }),
        ...(max_cost_usd !== undefined && { max_cost_usd }),
        ...(model !== undefined && { model }),
      },
    };
  }
}
