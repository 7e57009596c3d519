/** Looking at a batch, page by page, and cancelling what is left of it. */
import { batch as batchSchema, defaultPageSize, pageQuery } from "@drover/protocol";
import { cancelBatch, readBatch, readBatchItems } from "@drover/runs";
import { z } from "zod";
import { batchAnswer } from "../answers.ts";
import type { App, Context } from "../context.ts";
import { fromCursor, readPage, toCursor } from "../cursors.ts";
import { missing, requireId } from "../resources.ts";

const params = z.object({ id: z.string().describe("`bat_…`") });

export function batchRoutes(app: App, context: Context): void {
  const { pool, blobs, signals } = context;

  async function answer(tenant: string, batchId: string, limit: number | undefined, cursor?: string) {
    const batch = (await readBatch(pool, tenant, batchId)) ?? missing("batch");
    const afterIndex = fromCursor("items", cursor) ?? -1;
    const { entries, nextCursor } = await readPage(
      limit,
      (most) => readBatchItems(pool, blobs, tenant, { batchId, afterIndex, limit: most }),
      (last) => toCursor("items", last.index),
    );
    return batchAnswer(batch, entries, nextCursor);
  }

  app.route({
    method: "GET",
    url: "/query/batch/:id",
    config: { scope: "read", problems: ["not_found"] },
    schema: {
      tags: ["follow"],
      summary: "A batch: progress, cost, and its items page by page",
      params,
      querystring: z.strictObject(pageQuery),
      response: {
        200: {
          description: "The batch and one page of its items",
          content: { "application/json": { schema: batchSchema } },
        },
      },
    },
    handler: async (request, reply) => {
      const { limit, cursor } = request.query;
      return reply.send(await answer(request.caller.tenant, requireId("batch", request.params.id), limit, cursor));
    },
  });

  app.route({
    method: "POST",
    url: "/query/batch/:id/cancel",
    config: { scope: "cancel", problems: ["not_found"] },
    schema: {
      tags: ["act"],
      summary: "Cancel every item of a batch that is not final",
      description: "Harmless when repeated. Items that are running are cancelled by their workers.",
      params,
      querystring: z.strictObject({}),
      response: {
        200: { description: "Every item is final", content: { "application/json": { schema: batchSchema } } },
        202: {
          description: "Some items are still running; their workers have been told",
          content: { "application/json": { schema: batchSchema } },
        },
      },
    },
    handler: async (request, reply) => {
      const { tenant, keyId } = request.caller;
      const id = requireId("batch", request.params.id);
      if (!(await cancelBatch(pool, tenant, id, keyId))) missing("batch");
      const batch = await answer(tenant, id, defaultPageSize);
      signals.ring("delivery");
      return reply.code(batch.completed_count === batch.total ? 200 : 202).send(batch);
    },
  });
}
