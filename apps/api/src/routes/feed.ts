/** The feed of the caller's tenant: what an endpoint subscribed to everything gets, in order and for good. */
import { type MessageBody, messageBody } from "@drover/delivery";
import { DroverError, defaultPageSize, type FeedItem, feedPage, feedQuery, toWireId } from "@drover/protocol";
import { type FeedMessage, lastFeedSeq, readFeed, waitForFeed } from "@drover/runs";
import type { App, Context } from "../context.ts";
import { fromCursor, toCursor } from "../cursors.ts";
import { invalid } from "../problems.ts";
import { untilClosed } from "../waiting.ts";

/** A page ends early when it has got so large, bytes of JSON. */
const largePage = 8 * 1024 * 1024;
/** Messages built at once: each reads a run's log. */
const together = 4;

export function feedRoutes(app: App, context: Context): void {
  const { pool, blobs, signals } = context;

  app.route({
    method: "GET",
    url: "/events",
    config: { scope: "read", problems: ["contents_expired"] },
    schema: {
      tags: ["webhooks"],
      summary: "The feed of webhook messages, oldest first",
      description:
        "Exactly what an endpoint subscribed to everything gets, in an order that never changes: nothing appears behind a cursor. " +
        "Keep the last `cursor` you have dealt with, or `next_cursor`, and go on with `after`; every page has a `next_cursor`, so the end " +
        "of the feed is where `data` is empty. With `?wait=N` (long polling) an empty page is held back for up to N seconds.",
      querystring: feedQuery,
      response: { 200: { description: "One page", content: { "application/json": { schema: feedPage } } } },
    },
    handler: async (request, reply) => {
      const { tenant } = request.caller;
      const { wait, limit = defaultPageSize } = request.query;
      const after = fromCursor("feed", request.query.after, "after") ?? 0;
      let page = await readPage(tenant, after, limit);
      if (page.lastSeq === after) {
        if ((await lastFeedSeq(pool, tenant)) < after) throw invalid([{ path: "after", message: beyondTheEnd }]);
        if (wait) {
          const signal = untilClosed(reply, context);
          await waitForFeed({ db: pool, signals, tenant, after, waitMs: wait * 1000, signal });
          page = await readPage(tenant, after, limit);
        }
      }
      return reply.send({ data: page.items, next_cursor: toCursor("feed", page.lastSeq) });
    },
  });

  /** Up to `limit` items, and the number up to which the feed was read. No items: there is nothing more. */
  async function readPage(
    tenant: string,
    after: number,
    limit: number,
  ): Promise<{ items: FeedItem[]; lastSeq: number }> {
    for (let from = after; ; ) {
      const { messages, lastSeq, end, isCut } = await readFeed(pool, tenant, { after: from, limit });
      if (isCut) throw new DroverError("contents_expired", noLongerKept);
      const items: FeedItem[] = [];
      let bytes = 0;
      for (let at = 0; at < messages.length; at += together) {
        const some = messages.slice(at, at + together);
        const bodies = await Promise.all(some.map((message) => bodyOf(tenant, message)));
        for (const [index, body] of bodies.entries()) {
          if (body === null) continue;
          const item = toItem(some[index]!, body);
          bytes += Buffer.byteLength(JSON.stringify(item));
          items.push(item);
        }
        if (bytes >= largePage) return { items, lastSeq: some.at(-1)!.seq };
      }
      // What all of a page told about may have been deleted.
      if (items.length > 0 || end) return { items, lastSeq };
      from = lastSeq;
    }
  }

  /** Without links to decide: whoever may read need not be one who may approve. */
  function bodyOf(tenant: string, message: FeedMessage): Promise<MessageBody | null> {
    const { type, at, runId, batchId, eventSeq, data } = message;
    return messageBody(
      { db: pool, blobs, publicUrl: undefined },
      { tenant, type, messageAt: at, runId, batchId, endpointId: null, seq: eventSeq, data },
    );
  }
}

const noLongerKept =
  "Messages right after this cursor are no longer kept: they are older than RETENTION_CONTENTS_DAYS. Begin without `after`, and ask for what was missed with `GET /query`.";
const beyondTheEnd =
  "lies beyond the end of this feed: it is another installation's, or the database was restored; begin without it";

const toItem = ({ id, seq }: FeedMessage, body: MessageBody): FeedItem => ({
  cursor: toCursor("feed", seq),
  id: toWireId("event", id),
  type: body.type as FeedItem["type"],
  timestamp: body.timestamp,
  data: body.data as FeedItem["data"],
});
