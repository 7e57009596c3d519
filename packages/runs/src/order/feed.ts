/**
 * A tenant's feed: its messages in the order of their numbers, which the sequencer gives after the commit. Whatever is seen behind a
 * number stays as it is, so a reader who goes on from the last number it saw misses nothing, however long a transaction took.
 */
import type { Signals } from "@drover/queue";
import type { Queryable, Transaction } from "@drover/storage";
import { Bell } from "../log/bell.ts";
import { batchSize, recentSeconds } from "./inbox.ts";

/** A message of the feed, as far as the database has it. */
export interface FeedMessage {
  /** From 1 without a gap. */
  seq: number;
  id: string;
  type: string;
  at: Date;
  runId: string | null;
  batchId: string | null;
  /** The event of the run it tells about, where that is not the last. */
  eventSeq: number | null;
  /** What it says, where it tells about neither a run nor a batch. */
  data: object | null;
}

/**
 * Up to `limit` messages after a number, oldest first, and the last number that was looked at: those of messages that were deleted are
 * passed over. `end`: there is no more. `isCut`: places right after `after` are no longer kept. `lastSeq` is `after` when there is nothing behind it.
 */
export async function readFeed(
  db: Queryable,
  tenant: string,
  page: { after: number; limit: number },
): Promise<{ messages: FeedMessage[]; lastSeq: number; end: boolean; isCut: boolean }> {
  const { rows } = await db.query<FeedMessage | (Omit<FeedMessage, "id"> & { id: null })>(
    `SELECT f.seq, m.id, m.type, m.created_at AS at, m.run_id AS "runId", m.batch_id AS "batchId", m.seq AS "eventSeq", m.data
     FROM message_feed f LEFT JOIN messages m ON m.id = f.message_id AND m.tenant = f.tenant
     WHERE f.tenant = $1 AND f.seq > $2 ORDER BY f.seq LIMIT $3`,
    [tenant, page.after, page.limit],
  );
  return {
    messages: rows.filter((row) => row.id !== null),
    lastSeq: rows.at(-1)?.seq ?? page.after,
    end: rows.length < page.limit,
    isCut: page.after > 0 && rows.length > 0 && rows[0]!.seq > page.after + 1,
  };
}

/** The tenant's highest number; 0 when it has none. */
export async function lastFeedSeq(db: Queryable, tenant: string): Promise<number> {
  const { rows } = await db.query<{ seq: number }>(
    "SELECT seq FROM message_feed WHERE tenant = $1 ORDER BY seq DESC LIMIT 1",
    [tenant],
  );
  return rows[0]?.seq ?? 0;
}

/** What the sequencer's news about a tenant's feed go by. */
export const feedTopic = (tenant: string): string => `feed ${tenant}`;

const pollMs = 2000;

/** Resolves when the feed has something after this number, at the latest after `waitMs` or when the signal aborts. */
export async function waitForFeed(options: {
  db: Queryable;
  signals: Signals;
  tenant: string;
  after: number;
  waitMs: number;
  signal: AbortSignal;
}): Promise<void> {
  const { db, tenant, after } = options;
  const over = AbortSignal.any([options.signal, AbortSignal.timeout(Math.ceil(options.waitMs))]);
  const bell = new Bell(over);
  const unfollow = options.signals.follow(feedTopic(tenant), { news: () => bell.ring() });
  try {
    while (!over.aborted && (await lastFeedSeq(db, tenant)) <= after) await bell.heard(pollMs);
  } finally {
    unfollow();
  }
}

/**
 * Numbers the inbox's next messages after this id (null: those of the last seconds), and says whose they are. `next` is the last one's id,
 * or null when there are no more. Only the sequencer's leader may call it: numbers follow the highest that is committed.
 */
export async function numberBatch(
  client: Transaction,
  after: string | null,
): Promise<{ tenants: string[]; next: string | null }> {
  const { rows } = await client.query<{ message_id: string; tenant: string }>(
    `WITH batch AS MATERIALIZED (
         SELECT message_id, tenant FROM messages_unnumbered
         WHERE message_id > coalesce($1::uuid, uuidv7_floor(now() - $2 * interval '1 second'))
         ORDER BY message_id LIMIT $3),
       numbered AS (
         INSERT INTO message_feed (tenant, seq, message_id)
         SELECT b.tenant,
           coalesce((SELECT f.seq FROM message_feed f WHERE f.tenant = b.tenant ORDER BY f.seq DESC LIMIT 1), 0)
             + row_number() OVER (PARTITION BY b.tenant ORDER BY b.message_id),
           b.message_id
         FROM batch b),
       taken AS (DELETE FROM messages_unnumbered u USING batch b WHERE u.message_id = b.message_id)
       SELECT message_id, tenant FROM batch ORDER BY message_id`,
    [after, recentSeconds, batchSize],
  );
  return {
    tenants: [...new Set(rows.map((row) => row.tenant))],
    next: rows.length < batchSize ? null : rows.at(-1)!.message_id,
  };
}
