/**
 * Endpoints and secrets: what a tenant's admin does. Every statement carries the tenant, and another tenant's id answers like
 * a missing one. Whoever calls has validated: URLs by `validateUrl` of egress, events against `messageTypes` of protocol.
 */
import { DroverError, uuidv7 } from "@drover/protocol";
import type { Queryable } from "@drover/storage";
import { stopDeliveries } from "./disabling.ts";
import { testType } from "./fan-out.ts";
import { giveUpAfterMs } from "./schedule.ts";
import { newWebhookSecret, privatePrefix, type SignatureKind, verifiedWith } from "./signature.ts";

export interface Endpoint {
  id: string;
  url: string;
  /** Message types it gets; null: all. */
  events: string[] | null;
  description: string;
  enabled: boolean;
  /** Why it is disabled: `disabled by request`, what the receiver answered, or that it answered no 2xx for days. */
  disabledReason: string | null;
  signature: SignatureKind;
  /** Over so many bytes a message goes without its output; null: always whole. */
  thinOverBytes: number | null;
  createdAt: Date;
}

interface EndpointRow {
  id: string;
  url: string;
  events: string[] | null;
  description: string;
  enabled: boolean;
  disabled_reason: string | null;
  thin_over_bytes: number | null;
  is_asymmetric: boolean;
  created_at: Date;
}

const columns = `id, url, events, description, enabled, disabled_reason, thin_over_bytes, secret LIKE '${privatePrefix}%' AS is_asymmetric, created_at`;
/** Of an endpoint that does not say, bytes: what receivers commonly take. */
const defaultThinOverBytes = 20_000;
/** How long an old secret signs beside the new one, seconds. */
const defaultOverlapSeconds = 86_400;
const disabledByRequest = "disabled by request";

function toEndpoint(row: EndpointRow): Endpoint {
  const { disabled_reason, thin_over_bytes, is_asymmetric, created_at, ...same } = row;
  return {
    ...same,
    disabledReason: disabled_reason,
    signature: is_asymmetric ? "ed25519" : "hmac",
    thinOverBytes: thin_over_bytes,
    createdAt: created_at,
  };
}

/** Makes an endpoint, enabled. `mayDecide`: whoever makes it may decide what runs ask, so links to do so go there (default no). What its receiver verifies with is in this answer and in that of a rotation. */
export async function createEndpoint(
  db: Queryable,
  tenant: string,
  endpoint: {
    url: string;
    events?: readonly string[] | null;
    description?: string;
    mayDecide?: boolean;
    /** Default `hmac`. */
    signature?: SignatureKind;
    /** Default 20,000; null: never. */
    thinOverBytes?: number | null;
    /** The key that names its address. */
    namedBy?: string;
  },
): Promise<Endpoint & { secret: string }> {
  const secret = newWebhookSecret(endpoint.signature);
  const { rows } = await db.query<EndpointRow>(
    `INSERT INTO endpoints (id, tenant, url, events, description, secret, may_decide, named_by, thin_over_bytes)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
     RETURNING ${columns}`,
    [
      uuidv7(),
      tenant,
      endpoint.url,
      endpoint.events ?? null,
      endpoint.description ?? "",
      secret,
      endpoint.mayDecide ?? false,
      endpoint.namedBy ?? null,
      endpoint.thinOverBytes === undefined ? defaultThinOverBytes : endpoint.thinOverBytes,
    ],
  );
  return { ...toEndpoint(rows[0]!), secret: verifiedWith(secret) };
}

/** A tenant's endpoints, newest first; `before` is the id (uuid) of the last one of the page before. */
export async function listEndpoints(
  db: Queryable,
  tenant: string,
  page: { limit: number; before?: string },
): Promise<Endpoint[]> {
  const { rows } = await db.query<EndpointRow>(
    `SELECT ${columns} FROM endpoints WHERE tenant = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3`,
    [tenant, page.before ?? null, page.limit],
  );
  return rows.map(toEndpoint);
}

export async function readEndpoint(db: Queryable, tenant: string, id: string): Promise<Endpoint | null> {
  const { rows } = await db.query<EndpointRow>(`SELECT ${columns} FROM endpoints WHERE tenant = $1 AND id = $2`, [
    tenant,
    id,
  ]);
  return rows[0] ? toEndpoint(rows[0]) : null;
}

/** What is missing stays as it is. */
export interface EndpointPatch {
  /** Also where pending deliveries go from their next try on. */
  url?: string;
  /** Whoever changes it may decide what runs ask; if not, no links go to a new URL. */
  mayDecide?: boolean;
  /** null: all. */
  events?: readonly string[] | null;
  description?: string;
  /**
   * false: its pending deliveries become `disabled`, and stay so when it is enabled again (redeliver them). true, as a new URL, also forgets
   * that it failed.
   */
  enabled?: boolean;
  /** The key that names a new URL. */
  namedBy?: string;
  /** null: messages always go whole. */
  thinOverBytes?: number | null;
}

/** Changes an endpoint; null when the tenant has none of that id. */
export async function updateEndpoint(
  db: Queryable,
  tenant: string,
  id: string,
  patch: EndpointPatch,
): Promise<Endpoint | null> {
  const { rows } = await db.query<EndpointRow>(
    `WITH changed AS (
       UPDATE endpoints SET
         url = coalesce($3, url),
         may_decide = may_decide AND ($3::text IS NULL OR $3 = url OR $8),
         named_by = CASE WHEN $3 <> url THEN $9 ELSE named_by END,
         events = CASE WHEN $4 THEN $5::text[] ELSE events END,
         description = coalesce($6, description),
         thin_over_bytes = CASE WHEN $10 THEN $11::int ELSE thin_over_bytes END,
         enabled = coalesce($7, enabled),
         failing_since = CASE WHEN $7 OR $3 <> url THEN NULL ELSE failing_since END,
         failed_messages = CASE WHEN $7 OR $3 <> url THEN '{}' ELSE failed_messages END,
         disabled_reason = CASE coalesce($7, enabled) WHEN false THEN coalesce(disabled_reason, '${disabledByRequest}') END
       WHERE tenant = $1 AND id = $2 RETURNING ${columns}),
     off AS (SELECT id FROM changed WHERE NOT enabled),${stopDeliveries}
     SELECT * FROM changed`,
    [
      tenant,
      id,
      patch.url ?? null,
      patch.events !== undefined,
      patch.events ?? null,
      patch.description ?? null,
      patch.enabled ?? null,
      patch.mayDecide ?? false,
      patch.namedBy ?? null,
      patch.thinOverBytes !== undefined,
      patch.thinOverBytes ?? null,
    ],
  );
  return rows[0] ? toEndpoint(rows[0]) : null;
}

/** Removes an endpoint with all its deliveries and their log. False when the tenant has none of that id. */
export async function deleteEndpoint(db: Queryable, tenant: string, id: string): Promise<boolean> {
  const { rowCount } = await db.query("DELETE FROM endpoints WHERE tenant = $1 AND id = $2", [tenant, id]);
  return rowCount === 1;
}

/**
 * Gives an endpoint a new secret; requests carry a signature of the old one as well for `overlapSeconds` (0: not at all, for
 * a secret that leaked). Only the latest old one: a second rotation within the time ends the first. null when there is no such endpoint.
 */
export async function rotateEndpointSecret(
  db: Queryable,
  tenant: string,
  id: string,
  overlapSeconds: number = defaultOverlapSeconds,
): Promise<{ secret: string } | null> {
  const endpoint = await readEndpoint(db, tenant, id);
  if (!endpoint) return null;
  const secret = newWebhookSecret(endpoint.signature);
  const { rowCount } = await db.query(
    `UPDATE endpoints SET old_secret = secret, old_secret_until = now() + $4 * interval '1 second', secret = $3
     WHERE tenant = $1 AND id = $2`,
    [tenant, id, secret, overlapSeconds],
  );
  return rowCount === 1 ? { secret: verifiedWith(secret) } : null;
}

/** The public keys that an endpoint's signatures verify with now: one, or two while a key is rotated out; none where it signs with a shared secret. null: no such endpoint. */
export async function readPublicKeys(db: Queryable, tenant: string, id: string): Promise<string[] | null> {
  const { rows } = await db.query<{ secret: string; old: string | null }>(
    `SELECT secret, CASE WHEN old_secret_until > now() THEN old_secret END AS old FROM endpoints WHERE tenant = $1 AND id = $2`,
    [tenant, id],
  );
  const found = rows[0];
  if (!found) return null;
  return [found.secret, found.old].flatMap((secret) =>
    secret?.startsWith(privatePrefix) ? [verifiedWith(secret)] : [],
  );
}

/** The secret that the tenant's callbacks are signed with; null when there is no such tenant. */
export async function readDefaultSecret(db: Queryable, tenant: string): Promise<{ secret: string } | null> {
  const { rows } = await db.query<{ secret: string }>("SELECT webhook_secret AS secret FROM tenants WHERE id = $1", [
    tenant,
  ]);
  return rows[0] ?? null;
}

/** Gives the tenant's callbacks a new secret; otherwise as `rotateEndpointSecret`. */
export async function rotateDefaultSecret(
  db: Queryable,
  tenant: string,
  overlapSeconds: number = defaultOverlapSeconds,
): Promise<{ secret: string } | null> {
  const secret = newWebhookSecret();
  const { rowCount } = await db.query(
    `UPDATE tenants SET old_webhook_secret = webhook_secret, old_webhook_secret_until = now() + $3 * interval '1 second',
       webhook_secret = $2
     WHERE id = $1`,
    [tenant, secret, overlapSeconds],
  );
  return rowCount === 1 ? { secret } : null;
}

/**
 * Owes an endpoint one `endpoint.test` message, due at once, and returns its delivery; null when there is no such endpoint.
 * @throws DroverError `conflict` when the endpoint is disabled
 */
export async function sendTest(db: Queryable, tenant: string, id: string): Promise<{ deliveryId: string } | null> {
  const deliveryId = uuidv7();
  const { rows } = await db.query<{ enabled: boolean }>(
    `WITH target AS (SELECT id, tenant, url, enabled FROM endpoints WHERE tenant = $1 AND id = $2 FOR KEY SHARE),
     message AS (
       INSERT INTO messages (id, tenant, type, endpoint_id, fanned_out)
       SELECT $3, tenant, $4, id, true FROM target WHERE enabled RETURNING id),
     made AS (
       INSERT INTO deliveries (id, tenant, message_id, endpoint_id, type, url, destination, give_up_at, next_at)
       SELECT $5, t.tenant, m.id, t.id, $4, t.url, t.id::text, now() + $6 * interval '1 ms', now() FROM target t, message m)
     SELECT enabled FROM target`,
    [tenant, id, uuidv7(), testType, deliveryId, giveUpAfterMs],
  );
  const target = rows[0];
  if (!target) return null;
  if (!target.enabled) throw new DroverError("conflict", "The endpoint is disabled: enable it first.");
  return { deliveryId };
}
