/** The feed: the tenant's messages in order, for those who would rather ask than be called, or were away when they were. */
import { z } from "zod";
import { pageQuery, timestamp, wireId } from "./fields.ts";
import { messageTypes } from "./submit.ts";

const mostWaitSeconds = 300;

const cursor = z.string().describe("go on after this with `after`");

export const feedQuery = z.strictObject({
  after: z
    .string()
    .max(200)
    .optional()
    .describe("a `cursor` or `next_cursor` of this feed; without it: from its beginning"),
  limit: pageQuery.limit,
  wait: z.coerce
    .number()
    .min(0)
    .max(mostWaitSeconds)
    .optional()
    .describe(`seconds, 0 to ${mostWaitSeconds}: when nothing is there yet, how long to wait for it`),
});

const feedItem = z.object({
  cursor,
  id: wireId("event").describe("the `webhook-id`: the same wherever this message goes"),
  type: z.enum(messageTypes),
  timestamp,
  data: z.record(z.string(), z.unknown()).describe("as in a webhook's body"),
});
export type FeedItem = z.infer<typeof feedItem>;

export const feedPage = z
  .object({
    data: z.array(feedItem).describe("oldest first; empty: there is nothing after `after` yet"),
    next_cursor: cursor.describe("always there: go on with it, also when `data` is empty"),
  })
  .meta({
    id: "FeedPage",
    examples: [
      {
        data: [
          {
            cursor: "ZmVlZCA0MQ",
            id: "evt_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
            type: "query.completed",
            timestamp: "2026-11-21T09:30:00.000Z",
            data: {
              task_id: "run_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
              status: "completed",
              result: { status: "success", output: "391" },
              cost_usd: 0.0021,
            },
          },
          {
            cursor: "ZmVlZCA0Mg",
            id: "evt_01936f3e7c5b7d418a3e5b0f9c2d1e4b",
            type: "endpoint.disabled",
            timestamp: "2026-11-21T09:30:01.000Z",
            data: {
              endpoint_id: "whk_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
              description: "",
              reason: "answered 410: gone for good",
              failing_since: null,
            },
          },
        ],
        next_cursor: "ZmVlZCA0Mg",
      },
      { data: [], next_cursor: "ZmVlZCA0Mg" },
    ],
  });
