/** What a run's tools returned beyond what its model was shown. Only what the run's own log names is given out. */
import { DroverError } from "@drover/protocol";
import { readLog, readRun, requireContents } from "@drover/runs";
import { z } from "zod";
import type { App, Context } from "../context.ts";
import { missing, runId } from "../resources.ts";

export function artifactRoutes(app: App, { pool, blobs }: Context): void {
  app.route({
    method: "GET",
    url: "/query/:id/artifacts/:artifact",
    config: {
      scope: "read",
      problems: ["not_found", "contents_expired"],
      answerHeaders: { 200: { etag: "the artifact's id: its content never changes" } },
    },
    schema: {
      tags: ["follow"],
      summary: "An artifact of a query",
      description:
        "The whole output of a tool call that returned more than its model was shown, up to 16 MiB. The call's `tool.result` in the log names it " +
        "(`artifact`: `id`, `bytes`, `type`, and `cut` when there was more), and so does the note at the end of the output.",
      params: z.object({ id: z.string().describe("`run_…`"), artifact: z.string().describe("SHA-256, in hex") }),
      querystring: z.strictObject({}),
      response: {
        200: {
          description: "What the tool returned: JSON, or text (also JSON that was cut)",
          content: { "application/json": { schema: z.unknown() }, "text/plain": { schema: z.string() } },
        },
      },
    },
    handler: async (request, reply) => {
      const { tenant } = request.caller;
      const run = (await readRun(pool, tenant, runId(request.params.id))) ?? missing("run");
      await requireContents(pool, run);
      const log = await readLog(pool, blobs, { tenant, runId: run.id });
      const named = log.flatMap((event) => (event.type === "tool.result" ? (event.data.artifact ?? []) : []));
      const artifact = named.find(({ id }) => id === request.params.artifact);
      const content = artifact && (await blobs.get(tenant, [artifact.id])).get(artifact.id);
      if (content === undefined) throw new DroverError("not_found", "This query has no such artifact.");
      reply.header("content-type", `${artifact!.type}; charset=utf-8`).header("etag", `"${artifact!.id}"`);
      // A tool may return what somebody else wrote: no browser is to take it for a page.
      reply.header("x-content-type-options", "nosniff");
      return reply.serializer(String).send(content);
    },
  });
}
