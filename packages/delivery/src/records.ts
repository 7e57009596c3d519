/** The delivery log: what was owed, what was tried, and asking for it once more. Every statement carries the tenant. */
import { DroverError } from "@drover/protocol";
import type { Queryable } from "@drover/storage";
import type { DeliveryStatus } from "./outcome.ts";
import { giveUpAfterMs } from "./schedule.ts";

export interface DeliveryRecord {
  id: string;
  messageId: string;
  runId: string | null;
  /** null: a callback. */
  endpointId: string | null;
  type: string;
  /** Where the latest try went, or the first one will go. */
  url: string;
  status: DeliveryStatus;
  /** Finished tries, oldest first. */
  attempts: AttemptRecord[];
  /** null when it is not pending; while a request is under way, when it will be tried again should this worker die. */
  nextAttemptAt: Date | null;
  createdAt: Date;
}

export interface AttemptRecord {
  /** When the request began. */
  at: Date;
  statusCode: number | null;
  /** null when it was delivered. */
  error: string | null;
  /** Why, as a code (`cause.ts`); null also for tries of older versions. */
  cause: string | null;
  durationMs: number;
}

interface DeliveryRow {
  id: string;
  message_id: string;
  run_id: string | null;
  endpoint_id: string | null;
  type: string;
  url: string;
  status: DeliveryStatus;
  next_at: Date | null;
  created_at: Date;
}

const columns = "id, message_id, run_id, endpoint_id, type, url, status, next_at, created_at";

/** Deliveries of a run, newest first; `before` is the id (uuid) of the last one of the page before. Empty for another tenant's run. */
export async function listDeliveries(
  db: Queryable,
  tenant: string,
  runId: string,
  page: { limit: number; before?: string },
): Promise<DeliveryRecord[]> {
  const { rows } = await db.query<DeliveryRow>(
    `SELECT ${columns} FROM deliveries
     WHERE tenant = $1 AND run_id = $2 AND ($3::uuid IS NULL OR id < $3) ORDER BY id DESC LIMIT $4`,
    [tenant, runId, page.before ?? null, page.limit],
  );
  return await withAttempts(db, rows);
}

export async function readDelivery(db: Queryable, tenant: string, id: string): Promise<DeliveryRecord | null> {
  const { rows } = await db.query<DeliveryRow>(`SELECT ${columns} FROM deliveries WHERE tenant = $1 AND id = $2`, [
    tenant,
    id,
  ]);
  return (await withAttempts(db, rows))[0] ?? null;
}

/**
 * Makes a delivery pending again, due at once, for three fresh days: same ids, same body, its attempts kept. null when the
 * tenant has none of that id.
 * @throws DroverError `conflict` while it is pending, and when its endpoint is disabled
 */
export async function redeliver(db: Queryable, tenant: string, id: string): Promise<DeliveryRecord | null> {
  // The attempt is raised to fence off a request that was under way when its endpoint was disabled.
  const { rows } = await db.query<{ id: string }>(
    `UPDATE deliveries d SET status = 'pending', next_at = now(), ripe = true, give_up_at = now() + $3 * interval '1 ms', failures = 0,
       attempt = attempt + 1
     WHERE tenant = $1 AND id = $2 AND status <> 'pending'
       AND NOT EXISTS (SELECT FROM endpoints e WHERE e.id = d.endpoint_id AND NOT e.enabled)
     RETURNING id`,
    [tenant, id, giveUpAfterMs],
  );
  const record = await readDelivery(db, tenant, id);
  if (rows.length > 0 || !record) return record;
  throw new DroverError(
    "conflict",
    record.status === "pending"
      ? "The delivery is still pending: it will be tried without being asked for."
      : "The delivery's endpoint is disabled: enable it first.",
  );
}

async function withAttempts(db: Queryable, deliveries: DeliveryRow[]): Promise<DeliveryRecord[]> {
  if (deliveries.length === 0) return [];
  const { rows } = await db.query<{
    delivery_id: string;
    at: Date;
    status_code: number | null;
    error: string | null;
    cause: string | null;
    duration_ms: number;
  }>(
    `SELECT delivery_id, at, status_code, error, cause, duration_ms FROM delivery_attempts
     WHERE delivery_id = ANY($1::uuid[]) ORDER BY delivery_id, attempt`,
    [deliveries.map((row) => row.id)],
  );
  const attempts = Map.groupBy(rows, (row) => row.delivery_id);
  return deliveries.map((row) => ({
    id: row.id,
    messageId: row.message_id,
    runId: row.run_id,
    endpointId: row.endpoint_id,
    type: row.type,
    url: row.url,
    status: row.status,
    attempts: (attempts.get(row.id) ?? []).map((tried) => ({
      at: tried.at,
      statusCode: tried.status_code,
      error: tried.error,
      cause: tried.cause,
      durationMs: tried.duration_ms,
    })),
    nextAttemptAt: row.next_at,
    createdAt: row.created_at,
  }));
}
