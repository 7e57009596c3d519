/**
 * When an endpoint is given up: at once after a 410, or when no try was answered with a 2xx for five days and at least three different messages
 * failed meanwhile. Its tenant is told by `disabled_reason`, an entry of the audit trail and a message to everybody else. An endpoint's
 * row is written when it begins to fail, at its second and third failed message, and when it is well again; not by every try.
 */
import type { Queryable } from "@drover/storage";

/** An endpoint as a try saw it. What was changed since (the URL, its being enabled) is not touched. */
interface Tried {
  tenant: string;
  /** null: the try was of a callback, which is never disabled. */
  endpointId: string | null;
  url: string;
}

const failingDays = 5;
const failedMessages = 3;
const goneReason = "answered 410: gone for good";
const failingReason = `no 2xx answer for ${failingDays} days, over ${failedMessages} messages or more`;

/** Ends what an endpoint that was just disabled (CTE `off`) is still owed. Rows are locked in the order of their ids, as everywhere. */
export const stopDeliveries = `
  owed AS (
    SELECT d.id FROM deliveries d JOIN off ON d.destination = off.id::text AND d.endpoint_id = off.id
    WHERE d.status = 'pending' ORDER BY d.id FOR UPDATE OF d),
  stopped AS (UPDATE deliveries d SET status = 'disabled', next_at = NULL FROM owed WHERE d.id = owed.id)`;

/** After a 410. Returns the reason when it disabled the endpoint, null when it was disabled or changed already. */
export const disableGone = (db: Queryable, tried: Tried): Promise<string | null> =>
  disable(db, tried, "true", goneReason);

/** After a try that was not answered with a 2xx: remembers it, and returns the reason when it disabled the endpoint. Harmless when repeated. */
export async function noteFailure(db: Queryable, tried: Tried & { messageId: string }): Promise<string | null> {
  if (tried.endpointId === null) return null;
  await db.query(
    `UPDATE endpoints SET failing_since = coalesce(failing_since, now()), failed_messages = failed_messages || $4::uuid
     WHERE tenant = $1 AND id = $2 AND url = $3 AND cardinality(failed_messages) < ${failedMessages} AND $4 <> ALL(failed_messages)`,
    [tried.tenant, tried.endpointId, tried.url, tried.messageId],
  );
  const isOver = `failing_since <= now() - interval '${failingDays} days' AND cardinality(failed_messages) >= ${failedMessages}`;
  return await disable(db, tried, isOver, failingReason);
}

/**
 * After a 2xx from endpoints that were failing when the try was claimed; the 2xx of a try that was under way when they began to is overlooked:
 * some seconds in five days. Goes before the outcome: should the process die in between, the delivery comes again.
 */
export async function noteSuccess(db: Queryable, endpointIds: string[]): Promise<void> {
  if (endpointIds.length === 0) return;
  await db.query(
    `WITH well AS (SELECT id FROM endpoints WHERE id = ANY($1::uuid[]) AND failing_since IS NOT NULL ORDER BY id FOR NO KEY UPDATE)
     UPDATE endpoints e SET failing_since = NULL, failed_messages = '{}' FROM well WHERE e.id = well.id`,
    [endpointIds],
  );
}

/** One statement: the endpoint, what it is owed, the message and the audit entry, or nothing. The message leaves its URL out, which may hold a secret. */
async function disable(db: Queryable, tried: Tried, condition: string, reason: string): Promise<string | null> {
  if (tried.endpointId === null) return null;
  const wireId = "'whk_' || replace(id::text, '-', '')";
  const { rowCount } = await db.query(
    `WITH off AS (
       UPDATE endpoints SET enabled = false, disabled_reason = $4
       WHERE tenant = $1 AND id = $2 AND url = $3 AND enabled AND ${condition}
       RETURNING id, tenant, description, disabled_reason, failing_since),${stopDeliveries},
     told AS (
       INSERT INTO messages (id, tenant, type, data)
       SELECT uuidv7_now(), tenant, 'endpoint.disabled', json_build_object('endpoint_id', ${wireId}, 'description', description,
         'reason', disabled_reason, 'failing_since', to_char(failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))
       FROM off),
     audited AS (
       INSERT INTO audit_entries (tenant, actor, action, data)
       SELECT tenant, 'worker', 'endpoint.disabled', json_build_object('endpoint', ${wireId}, 'reason', disabled_reason) FROM off)
     SELECT FROM off`,
    [tried.tenant, tried.endpointId, tried.url, reason],
  );
  return rowCount === 1 ? reason : null;
}
