/**
 * Which deliveries are tried now. A claim is committed before its request: it raises `attempt`, which fences the outcome, and
 * moves `next_at` on, so that the delivery of a worker that dies comes again by itself.
 */
import type { Queryable } from "@drover/storage";
import type { Limits } from "./lanes.ts";

/** A delivery that this process may try now, until `next_at`. */
export interface ClaimedDelivery {
  id: string;
  tenant: string;
  messageId: string;
  endpointId: string | null;
  runId: string | null;
  batchId: string | null;
  type: string;
  /** The event it tells about, where that is not the run's last. */
  seq: number | null;
  /** What the message says, where it tells about neither a run nor a batch. */
  data: object | null;
  messageAt: Date;
  url: string;
  destination: string;
  /** No try to this endpoint was answered with a 2xx lately; see `disabling.ts`. */
  failing: boolean;
  /** The fence: the outcome is written only while this is still the delivery's latest attempt. */
  attempt: number;
  /** Failed tries since it was made or redelivered. */
  failures: number;
  /** Over so many bytes the message goes without its output; null: always whole. */
  thinOverBytes: number | null;
  /** One, or two while a secret is rotated out. */
  secrets: string[];
}

interface ClaimRow {
  id: string;
  tenant: string;
  message_id: string;
  endpoint_id: string | null;
  run_id: string | null;
  batch_id: string | null;
  type: string;
  seq: number | null;
  data: object | null;
  failing: boolean;
  message_at: Date;
  url: string;
  destination: string;
  attempt: number;
  failures: number;
  secret: string;
  old_secret: string | null;
  thin_over_bytes: number | null;
  status: string;
}

/**
 * Claims what is due, the longest due first, a few of each destination and of those that fail. It costs what destinations with due deliveries cost to
 * visit, however many one of them has: its backlog is never read, nor is what waits for its time. What has waited long enough becomes ripe
 * here, and is claimed by the next call. A delivery goes to where its endpoint is now; one whose endpoint was disabled becomes `disabled` here.
 * `contended`: another worker took some of these, or some have become ripe; there may be more.
 * @param leaseMs how long the claim holds
 * @param worker who claims (uuid): `releaseClaims` frees what a dead one held
 */
export async function claimDue(
  db: Queryable,
  limits: Limits,
  leaseMs: number,
  worker?: string,
): Promise<{ claimed: ClaimedDelivery[]; contended: boolean }> {
  // Each part is put so that one index alone serves it, whatever the statistics say: those of a queue are always wrong, and one wrong choice
  // reads all that is due, once for each destination: hence the pairs that are compared, and `coalesce`; the ids as arrays, and one row's
  // partners one by one, since a join may be put the wrong way round by a planner that believes the table is empty.
  const { rows } = await db.query<Partial<ClaimRow> & { found: number }>(
    `WITH RECURSIVE places AS (
       SELECT (SELECT min(destination) FROM deliveries WHERE status = 'pending' AND ripe) AS destination
       UNION ALL
       SELECT (SELECT min(d.destination) FROM deliveries d WHERE d.status = 'pending' AND d.ripe AND d.destination > p.destination)
       FROM places p WHERE p.destination IS NOT NULL),
     open AS (
       SELECT destination, coalesce(($3::jsonb ->> destination)::int, $2) AS room FROM places WHERE destination IS NOT NULL),
     due AS (
       SELECT h.id, h.next_at, $5::jsonb ? open.destination AS failing FROM open CROSS JOIN LATERAL (
         SELECT d.id, d.next_at FROM deliveries d
         WHERE d.status = 'pending' AND d.ripe AND d.destination >= open.destination
           AND (d.destination, d.next_at) <= (open.destination, now())
         ORDER BY d.destination, d.next_at LIMIT open.room) h),
     heads AS MATERIALIZED (
       SELECT id FROM (SELECT *, row_number() OVER (PARTITION BY failing ORDER BY next_at) AS place FROM due) d
       WHERE NOT failing OR place <= $6
       ORDER BY next_at LIMIT $1),
     ripened AS (
       UPDATE deliveries SET ripe = true WHERE id = ANY(ARRAY(
         SELECT id FROM deliveries WHERE status = 'pending' AND NOT ripe AND next_at <= now() ORDER BY next_at LIMIT 1000 FOR UPDATE SKIP LOCKED))
       RETURNING id),
     taken AS (
       SELECT d.id FROM deliveries d WHERE d.id = ANY(ARRAY(SELECT id FROM heads)) AND coalesce(d.next_at, 'infinity') <= now()
       ORDER BY d.id FOR UPDATE SKIP LOCKED),
     moved AS (
       UPDATE deliveries d SET
         (status, next_at, url) = (
           SELECT CASE WHEN e.enabled IS FALSE THEN 'disabled' ELSE 'pending' END,
             CASE WHEN e.enabled IS FALSE THEN NULL ELSE now() + $4 * interval '1 ms' END, coalesce(e.url, d.url)
           FROM (SELECT) one LEFT JOIN endpoints e ON e.id = d.endpoint_id),
         ripe = false,
         claimed_by = $7,
         attempt = d.attempt + 1
       WHERE d.id = ANY(ARRAY(SELECT id FROM taken))
       RETURNING d.id, d.tenant, d.message_id, d.endpoint_id, d.type, d.url, d.destination, d.attempt, d.failures, d.status)
     SELECT f.found, moved.*, m.*, e.failing_since IS NOT NULL AS failing, e.thin_over_bytes, coalesce(e.secret, t.webhook_secret) AS secret,
       CASE WHEN e.id IS NULL THEN CASE WHEN t.old_webhook_secret_until > now() THEN t.old_webhook_secret END
            ELSE CASE WHEN e.old_secret_until > now() THEN e.old_secret END END AS old_secret
     FROM (SELECT (SELECT count(*) FROM heads) + (SELECT count(*) FROM ripened) AS found) f
       LEFT JOIN moved ON true
       LEFT JOIN LATERAL (
         SELECT run_id, batch_id, seq, data, created_at AS message_at FROM messages WHERE id = moved.message_id LIMIT 1) m ON true
       LEFT JOIN LATERAL (SELECT * FROM tenants WHERE id = moved.tenant LIMIT 1) t ON true
       LEFT JOIN LATERAL (SELECT * FROM endpoints WHERE id = moved.endpoint_id LIMIT 1) e ON true`,
    [
      limits.most,
      limits.perDestination,
      JSON.stringify(Object.fromEntries(limits.rooms)),
      leaseMs,
      JSON.stringify(Object.fromEntries([...limits.failing].map((destination) => [destination, true]))),
      limits.mostFailing,
      worker ?? null,
    ],
  );
  const moved = rows.filter((row): row is ClaimRow & { found: number } => row.id !== null);
  return {
    claimed: moved.filter((row) => row.status === "pending").map(toClaimed),
    contended: moved.length < rows[0]!.found,
  };
}

function toClaimed(row: ClaimRow): ClaimedDelivery {
  return {
    id: row.id,
    tenant: row.tenant,
    messageId: row.message_id,
    endpointId: row.endpoint_id,
    runId: row.run_id,
    batchId: row.batch_id,
    type: row.type,
    seq: row.seq,
    data: row.data,
    failing: row.failing,
    messageAt: row.message_at,
    url: row.url,
    destination: row.destination,
    attempt: row.attempt,
    failures: row.failures,
    thinOverBytes: row.thin_over_bytes,
    secrets: row.old_secret === null ? [row.secret] : [row.secret, row.old_secret],
  };
}

/** Ms until the next delivery is due that waits for its time, at most 0 when it is; Infinity when there is none. */
export async function nextDueInMs(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ ms: number | null }>(
    `SELECT (extract(epoch FROM min(next_at) - now()) * 1000)::float8 AS ms FROM deliveries WHERE status = 'pending' AND NOT ripe`,
  );
  return rows[0]!.ms ?? Number.POSITIVE_INFINITY;
}

/** What these workers were trying is due now: they are dead. Whether it had arrived nobody knows; it comes again under the same id. */
export async function releaseClaims(db: Queryable, workers: string[]): Promise<number> {
  const { rowCount } = await db.query(
    `UPDATE deliveries SET next_at = now(), claimed_by = NULL
     WHERE status = 'pending' AND NOT ripe AND claimed_by = ANY($1::uuid[]) AND next_at > now()`,
    [workers],
  );
  return rowCount ?? 0;
}
