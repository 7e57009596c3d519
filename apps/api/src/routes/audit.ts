/** The audit trail of the caller's tenant, to look into. Whole trails are exported and verified by `drover audit`. */
import { auditPage, fromWireId, pageQuery } from "@drover/protocol";
import { type AuditFilter, readAudit } from "@drover/runs";
import { z } from "zod";
import type { App, Context } from "../context.ts";
import { fromCursor, readPage, toCursor } from "../cursors.ts";
import { invalid } from "../problems.ts";

export function auditRoutes(app: App, context: Context): void {
  app.route({
    method: "GET",
    url: "/audit",
    config: { scope: "audit" },
    schema: {
      tags: ["operate"],
      summary: "The audit trail, oldest first",
      description:
        "Append-only and hash-chained: each entry has its place and the hash of all before it, about 100 ms after it was written. " +
        "Never behind a place that was given: go on with `after` the last `seq`, or with the cursor.",
      querystring: z.strictObject({
        ...pageQuery,
        after: z.coerce.number().int().min(0).max(999_999_999).optional().describe("entries after this seq"),
        run: z.string().max(200).optional().describe("about this query (`run_…`)"),
        action: z.string().max(200).optional().describe("such as `tool.called`"),
        actor: z.string().max(200).optional().describe("such as `worker`, or a key's id"),
      }),
      response: {
        200: { description: "One page", content: { "application/json": { schema: auditPage } } },
      },
    },
    handler: async (request, reply) => {
      const { limit, cursor, after, run, action, actor } = request.query;
      if (cursor !== undefined && after !== undefined)
        throw invalid([{ path: "after", message: "cannot be combined with cursor" }]);
      const runId = run === undefined ? undefined : fromWireId("run", run);
      // What is no id has no entries, like an unknown one.
      if (runId === null) return reply.send({ data: [], next_cursor: null });
      const filter: Omit<AuditFilter, "limit"> = {
        after: fromCursor("audit", cursor) ?? after ?? 0,
        ...(runId !== undefined && { runId }),
        ...(action !== undefined && { action }),
        ...(actor !== undefined && { actor }),
      };
      const { entries, nextCursor } = await readPage(
        limit,
        (most) => readAudit(context.pool, request.caller.tenant, { ...filter, limit: most }),
        (last) => toCursor("audit", last.seq),
      );
      return reply.send({ data: entries, next_cursor: nextCursor });
    },
  });
}
