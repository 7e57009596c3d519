/** What came of a try, written down once and only by the worker whose try is still the latest. */
import { createBatcher, type Pool } from "@drover/storage";
import type { Cause } from "./cause.ts";
import { noteSuccess } from "./disabling.ts";

/** `retry` becomes `failed` when the three days are over; `gone` (410) ends the delivery, `failed` does so without more tries. */
type AttemptResult = "delivered" | "retry" | "gone" | "failed";

export interface Attempt {
  deliveryId: string;
  /** The number this try was claimed with. */
  attempt: number;
  result: AttemptResult;
  /** Before the next try, ms; used by `retry` only. */
  pauseMs: number;
  statusCode: number | null;
  /** null when it was delivered. Never holds a secret, a path or what the receiver wrote. */
  error: string | null;
  /** null when it was delivered. */
  cause: Cause | null;
  durationMs: number;
  /** An endpoint that was failing and has answered with a 2xx. */
  recovered: string | null;
}

export type DeliveryStatus = "pending" | "delivered" | "failed" | "disabled";

/**
 * Returns the function that writes an outcome and resolves with the delivery's status from then on, or with null when the
 * try was no longer the latest: nothing was written. Outcomes that come together share a commit; through an outage they
 * wait until `signal` aborts.
 */
export function createOutcomeWriter(
  pool: Pool,
  signal: AbortSignal,
): (attempt: Attempt) => Promise<DeliveryStatus | null> {
  return createBatcher<Attempt, DeliveryStatus | null>({
    key: (attempt) => attempt.deliveryId,
    execute: (attempts) => writeAll(pool, attempts),
    recover: (attempts) => readBack(pool, attempts),
    signal,
  });
}

async function writeAll(pool: Pool, attempts: Attempt[]): Promise<(DeliveryStatus | null)[]> {
  await noteSuccess(
    pool,
    attempts.flatMap((a) => a.recovered ?? []),
  );
  const { rows } = await pool.query<{ id: string; status: DeliveryStatus }>(
    `WITH input AS (
       SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::bigint[], $5::int[], $6::text[], $7::int[], $8::text[])
       AS i(id, attempt, result, pause_ms, status_code, error, duration_ms, cause)),
     moved AS (
       UPDATE deliveries d SET
         status = CASE
           WHEN i.result = 'delivered' THEN 'delivered'
           WHEN i.result = 'gone' OR d.status = 'disabled' THEN 'disabled'
           WHEN i.result = 'failed' OR d.give_up_at <= now() THEN 'failed'
           ELSE 'pending' END,
         next_at = CASE WHEN i.result = 'retry' AND d.status = 'pending' AND d.give_up_at > now()
                        THEN least(now() + i.pause_ms * interval '1 ms', d.give_up_at) END,
         ripe = false,
         claimed_by = NULL,
         failures = d.failures + CASE WHEN i.result = 'delivered' THEN 0 ELSE 1 END
       FROM input i
       -- A delivery disabled while its request was under way may still have arrived.
       WHERE d.id = i.id AND d.attempt = i.attempt AND d.status IN ('pending', 'disabled')
       RETURNING d.id, d.attempt, d.status),
     logged AS (
       INSERT INTO delivery_attempts (delivery_id, attempt, at, status_code, error, duration_ms, cause)
       SELECT id, attempt, clock_timestamp() - i.duration_ms * interval '1 ms', i.status_code, i.error, i.duration_ms, i.cause
       FROM moved JOIN input i USING (id, attempt))
     SELECT id, status FROM moved`,
    [
      attempts.map((a) => a.deliveryId),
      attempts.map((a) => a.attempt),
      attempts.map((a) => a.result),
      attempts.map((a) => a.pauseMs),
      attempts.map((a) => a.statusCode),
      attempts.map((a) => a.error),
      attempts.map((a) => a.durationMs),
      attempts.map((a) => a.cause),
    ],
  );
  const statuses = new Map(rows.map((row) => [row.id, row.status]));
  return attempts.map((a) => statuses.get(a.deliveryId) ?? null);
}

/**
 * What of a batch whose answer was lost is committed all the same. A statement that is still at work is waited for; one that comes through
 * later finds its attempts written, and their key refuses it.
 */
async function readBack(pool: Pool, attempts: Attempt[]): Promise<(DeliveryStatus | undefined)[]> {
  await pool.query("SELECT FROM deliveries WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE", [
    attempts.map((a) => a.deliveryId),
  ]);
  const { rows } = await pool.query<{ id: string; status: DeliveryStatus }>(
    `SELECT d.id, d.status FROM unnest($1::uuid[], $2::int[]) AS i(id, attempt)
     JOIN delivery_attempts a ON a.delivery_id = i.id AND a.attempt = i.attempt JOIN deliveries d ON d.id = i.id`,
    [attempts.map((a) => a.deliveryId), attempts.map((a) => a.attempt)],
  );
  const statuses = new Map(rows.map((row) => [row.id, row.status]));
  return attempts.map((a) => statuses.get(a.deliveryId));
}
