/** Undoing what a run did, by a run of its own. */
import { accepted } from "@drover/protocol";
import { readRun, rollBack } from "@drover/runs";
import { z } from "zod";
import { acceptedAnswer } from "../answers.ts";
import type { App, Context } from "../context.ts";
import { wake } from "../deciding.ts";
import { missing, runId } from "../resources.ts";

const retryAfterSeconds = 1;
const json = (description: string) => ({ description, content: { "application/json": { schema: accepted } } });

export function rollbackRoutes(app: App, context: Context): void {
  app.route({
    method: "POST",
    url: "/query/:id/rollback",
    config: {
      scope: "intervene",
      problems: ["not_found", "conflict", "contents_expired"],
      answerHeaders: {
        200: { location: "where its status is" },
        202: { location: "where its status is", "retry-after": "seconds until asking makes sense" },
      },
    },
    schema: {
      tags: ["act"],
      summary: "Undo what a query did",
      description:
        "A run of its own (`kind: rollback`, `of_run`) undoes the effects in reverse order, as far as their tools can; its output says what was undone and " +
        "what was not. Once: asking again gives the same run, unless that one failed or was cancelled. `conflict` while the query is not final.",
      params: z.object({ id: z.string().describe("`run_…`") }),
      querystring: z.strictObject({}),
      response: {
        200: json("There is a rollback already: this one"),
        202: json("Accepted: it is stored and will run"),
      },
    },
    handler: async (request, reply) => {
      const { tenant, keyId } = request.caller;
      const { pool } = context;
      const { id, made } = (await rollBack(pool, tenant, runId(request.params.id), keyId)) ?? missing("run");
      if (made) {
        wake(context, [made]);
        const answer = acceptedAnswer(id);
        return reply.code(202).headers({ location: answer.check_url, "retry-after": retryAfterSeconds }).send(answer);
      }
      const { status } = (await readRun(pool, tenant, id)) ?? missing("run");
      const answer = acceptedAnswer(id, status);
      return reply.code(200).header("location", answer.check_url).send(answer);
    },
  });
}
