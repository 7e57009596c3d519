/** From the outbox to deliveries: every message becomes one delivery per target, in the statement that marks it as fanned out. */
import { defaultMessageTypes } from "@drover/protocol";
import type { Queryable } from "@drover/storage";
import { giveUpAfterMs } from "./schedule.ts";

/** Sent to one endpoint on demand; nobody subscribes to it. */
export const testType = "endpoint.test";

/** Callbacks share a destination with those of the same tenant and origin: a tenant's backlog never delays another tenant. */
const callbackDestination = `m.tenant || ' ' || lower(coalesce(substring(t.callback_url FROM '^[^/]+//[^/?#\\\\]+'), t.callback_url))`;

/** A callback that did not say what it wants hears of every end. */
const wanted = `m.endpoint_id IS NULL AND t.callback_url IS NOT NULL
  AND m.type = ANY(coalesce(t.callback_events, $3::text[]))`;

/**
 * Turns up to `most` of the oldest messages into deliveries, due at once: to the callback of the run or batch, if it wants
 * the type, and to every enabled endpoint of the tenant that is subscribed to it; a message for one endpoint goes there
 * only. One statement: a crash leaves all of it or nothing, and other workers skip what this one holds. Returns the number
 * of messages; fewer than `most` means that none is left.
 */
export async function fanOut(db: Queryable, most: number): Promise<number> {
  const { rows } = await db.query<{ messages: number }>(
    `WITH owed AS MATERIALIZED (
       SELECT id, tenant, type, run_id, batch_id, endpoint_id, created_at FROM messages
       WHERE NOT fanned_out ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED),
     targets AS (
       SELECT m.*, NULL::uuid AS target, t.callback_url AS url, ${callbackDestination} AS destination
       FROM owed m JOIN runs t ON t.id = m.run_id AND t.tenant = m.tenant WHERE ${wanted}
       UNION ALL
       SELECT m.*, NULL, t.callback_url, ${callbackDestination}
       FROM owed m JOIN batches t ON t.id = m.batch_id AND t.tenant = m.tenant WHERE ${wanted}
       UNION ALL
       SELECT m.*, e.id, e.url, e.id::text
       FROM owed m JOIN endpoints e ON e.tenant = m.tenant AND e.enabled
         AND CASE WHEN m.endpoint_id IS NULL THEN e.events IS NULL OR m.type = ANY(e.events) ELSE e.id = m.endpoint_id END),
     made AS (
       INSERT INTO deliveries (id, tenant, message_id, endpoint_id, run_id, type, url, destination, give_up_at, next_at)
       SELECT uuidv7_now(), tenant, id, target, run_id, type, url, destination, now() + $2 * interval '1 ms',
              -- The oldest message first, also when a backlog is fanned out at once.
              least(created_at, now())
       FROM targets ON CONFLICT DO NOTHING),
     done AS (UPDATE messages m SET fanned_out = true FROM owed WHERE m.id = owed.id)
     SELECT count(*) AS messages FROM owed`,
    [most, giveUpAfterMs, defaultMessageTypes],
  );
  return rows[0]!.messages;
}
