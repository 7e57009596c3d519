/**
 * API keys and the tenants they belong to. A key is shown once, at its making; the database keeps its SHA-256. Every process
 * remembers what it looked up for a few seconds, so that a revoked key stops working within five.
 */
import { hash, randomBytes } from "node:crypto";
import { newWebhookSecret } from "@drover/delivery";
import { DroverError, fromWireId, toWireId, uuidv7 } from "@drover/protocol";
import { recordAudit } from "@drover/runs";
import type { Pool, Queryable, Transaction } from "@drover/storage";
import { transaction } from "@drover/storage";
import { addSecret } from "@drover/telemetry";

export const roles = ["submitter", "approver", "operator", "admin"] as const;
export type Role = (typeof roles)[number];

/** What a route asks for. */
export type Scope =
  | "submit"
  /** Its runs may call admin tools. */
  | "admin_tools"
  | "read"
  | "cancel"
  | "approve"
  /** Raising a run's caps, and undoing what a run did. */
  | "intervene"
  /** What a tenant may spend. */
  | "budget"
  | "redeliver"
  | "webhooks"
  | "board"
  | "audit"
  | "secret";

const granted: Record<Role, ReadonlySet<Scope>> = {
  submitter: new Set(["submit", "read", "cancel", "redeliver"]),
  approver: new Set(["read", "approve"]),
  operator: new Set(["read", "cancel", "intervene", "redeliver", "webhooks", "board", "audit"]),
  admin: new Set([
    "submit",
    "admin_tools",
    "read",
    "cancel",
    "approve",
    "intervene",
    "budget",
    "redeliver",
    "webhooks",
    "board",
    "audit",
    "secret",
  ]),
};

export const may = (role: Role, scope: Scope): boolean => granted[role].has(scope);

/** Who is asking. */
export interface Caller {
  tenant: string;
  role: Role;
  keyId: string;
}

export interface NewKey {
  id: string;
  /** In full, this once. */
  key: string;
  tenant: string;
  role: Role;
}

export interface KeyRecord {
  id: string;
  tenant: string;
  role: Role;
  name: string;
  createdAt: Date;
  revokedAt: Date | null;
}

const tenantName = /^[a-z0-9][a-z0-9_-]{0,62}$/;
const defaultTenant = "default";
/** Marks the key that configuration sets. */
const bootstrapName = "DROVER_BOOTSTRAP_KEY";

const hashOf = (key: string): Buffer => hash("sha256", key, "buffer");

/**
 * Makes a key, and its tenant when there is none of that name (with a webhook secret of its own). `actor` is who the audit trail
 * names (default: `cli`).
 * @throws DroverError `invalid_input` for a tenant or role that cannot be
 */
export async function createKey(
  pool: Pool,
  wanted: { tenant: string; role: Role; name?: string; actor?: string },
): Promise<NewKey> {
  const { tenant, role, name = "", actor = "cli" } = wanted;
  if (!tenantName.test(tenant))
    throw new DroverError("invalid_input", "A tenant's name is up to 63 lower-case letters, digits, - or _.");
  if (!roles.includes(role)) throw new DroverError("invalid_input", `A key's role is one of ${roles.join(", ")}.`);
  const id = uuidv7();
  const key = `drv_${randomBytes(32).toString("base64url")}`;
  await transaction(pool, async (tx) => {
    await createTenant(tx, tenant, newWebhookSecret());
    await tx.query("INSERT INTO api_keys (id, tenant, hash, role, name) VALUES ($1, $2, $3, $4, $5)", [
      id,
      tenant,
      hashOf(key),
      role,
      name,
    ]);
    await auditKey(tx, tenant, actor, "key.created", { key: toWireId("key", id), role, name });
  });
  return { id: toWireId("key", id), key, tenant, role };
}

/** All keys, of one tenant or of all, oldest first. */
export async function listKeys(db: Queryable, tenant?: string): Promise<KeyRecord[]> {
  const { rows } = await db.query<{
    id: string;
    tenant: string;
    role: Role;
    name: string;
    created_at: Date;
    revoked_at: Date | null;
  }>(
    `SELECT id, tenant, role, name, created_at, revoked_at FROM api_keys
     WHERE $1::text IS NULL OR tenant = $1 ORDER BY tenant, id`,
    [tenant ?? null],
  );
  return rows.map(({ id, created_at, revoked_at, ...same }) => ({
    ...same,
    id: toWireId("key", id),
    createdAt: created_at,
    revokedAt: revoked_at,
  }));
}

/** Revokes a key for good. False when there is none of that id; harmless when repeated. `actor`: see `createKey`. */
export async function revokeKey(pool: Pool, id: string, actor = "cli"): Promise<boolean> {
  const uuid = fromWireId("key", id);
  if (!uuid) return false;
  return await transaction(pool, async (tx) => {
    const { rows } = await tx.query<{ tenant: string }>(
      "UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING tenant",
      [uuid],
    );
    if (rows[0]) await auditKey(tx, rows[0].tenant, actor, "key.revoked", { key: id });
    return rows.length === 1 || (await tx.query("SELECT FROM api_keys WHERE id = $1", [uuid])).rowCount === 1;
  });
}

function auditKey(
  tx: Transaction,
  tenant: string,
  actor: string,
  action: "key.created" | "key.revoked" | "key.configured",
  data: { key: string; role?: Role; name?: string },
): Promise<void> {
  return recordAudit(tx, [{ tenant, actor, action, data, runId: null }]);
}

/**
 * Makes the tenant `default` and lets the configured key in as its admin. Idempotent; safe when many processes start at once.
 * The configuration is the truth about its key: it works even if it was revoked before, and a key configured earlier no longer does.
 * `keys` counts the keys of `default` that work: none, and nobody can come in.
 */
export async function bootstrap(
  pool: Pool,
  config: { DROVER_BOOTSTRAP_KEY?: string | undefined; DROVER_WEBHOOK_SECRET?: string | undefined },
): Promise<{ keys: number }> {
  addSecret(config.DROVER_BOOTSTRAP_KEY);
  addSecret(config.DROVER_WEBHOOK_SECRET);
  return await transaction(pool, async (tx) => {
    await createTenant(tx, defaultTenant, config.DROVER_WEBHOOK_SECRET ?? newWebhookSecret());
    if (config.DROVER_BOOTSTRAP_KEY) {
      const keyHash = hashOf(config.DROVER_BOOTSTRAP_KEY);
      // The tenant's row is the lock that puts concurrent starters in line.
      await tx.query("SELECT FROM tenants WHERE id = $1 FOR UPDATE", [defaultTenant]);
      const { rows: configured } = await tx.query<{ id: string }>(
        `INSERT INTO api_keys AS k (id, tenant, hash, role, name) VALUES ($1, $2, $3, 'admin', $4)
         ON CONFLICT (hash) DO UPDATE SET tenant = excluded.tenant, role = 'admin', name = excluded.name, revoked_at = NULL
           WHERE (k.tenant, k.role, k.name) <> (excluded.tenant, 'admin', excluded.name) OR k.revoked_at IS NOT NULL
         RETURNING id`,
        [uuidv7(), defaultTenant, keyHash, bootstrapName],
      );
      const { rows: replaced } = await tx.query<{ id: string }>(
        "UPDATE api_keys SET revoked_at = now() WHERE tenant = $1 AND name = $2 AND hash <> $3 AND revoked_at IS NULL RETURNING id",
        [defaultTenant, bootstrapName, keyHash],
      );
      for (const { id } of configured) {
        const data = { key: toWireId("key", id), role: "admin" as const, name: bootstrapName };
        await auditKey(tx, defaultTenant, "system", "key.configured", data);
      }
      for (const { id } of replaced)
        await auditKey(tx, defaultTenant, "system", "key.revoked", { key: toWireId("key", id) });
    }
    const { rows } = await tx.query<{ keys: number }>(
      "SELECT count(*) AS keys FROM api_keys WHERE tenant = $1 AND revoked_at IS NULL",
      [defaultTenant],
    );
    return { keys: rows[0]!.keys };
  });
}

async function createTenant(db: Queryable, tenant: string, webhookSecret: string): Promise<void> {
  await db.query("INSERT INTO tenants (id, webhook_secret) VALUES ($1, $2) ON CONFLICT DO NOTHING", [
    tenant,
    webhookSecret,
  ]);
}

/** A known key is looked up again after a minute, as long as revocations are seen; else after two seconds. */
const rememberMs = { watched: 60_000, unseen: 2000, unknown: 1000 };
/** Between two looks for keys that were revoked. */
const watchMs = 500;
/** Without a request or a stream for so long nobody looks, ms. */
const idleMs = 5000;
const mostRemembered = { known: 10_000, unknown: 1000 };
const longestKey = 512;

/**
 * Looks up keys, at most one statement per key at a time. Comparison is of hashes, by the database's index: timing tells nothing of a key. While it is in use it
 * looks twice a second whose keys were revoked: those are forgotten, and what is open for them ends.
 */
export class KeyRing {
  readonly #db: Queryable;
  readonly #known = new Map<string, { caller: Caller; at: number }>();
  /** What is open, by the key's id. */
  readonly #open = new Map<string, Set<() => void>>();
  #usedAt = Number.NEGATIVE_INFINITY;
  /** The begin of the last look for revocations that was answered. */
  #watchedAt = Number.NEGATIVE_INFINITY;
  #watching = false;
  readonly #unknown = new Map<string, number>();
  readonly #underWay = new Map<string, Promise<Caller | null>>();

  constructor(db: Queryable) {
    this.#db = db;
  }

  /** Who this key belongs to; null: nobody. A value where it is remembered, else a promise, which rejects when Postgres is away. */
  authenticate(key: string): Caller | null | Promise<Caller | null> {
    if (key === "" || key.length > longestKey) return null;
    const digest = hash("sha256", key, "base64");
    const now = performance.now();
    this.#usedAt = now;
    if (!this.#watching) void this.#watch();
    const known = this.#known.get(digest);
    const isFresh = known && now - Math.max(known.at, this.#watchedAt) < rememberMs.unseen;
    if (isFresh && now - known.at < rememberMs.watched) return known.caller;
    if ((this.#unknown.get(digest) ?? 0) > now) return null;
    let lookup = this.#underWay.get(digest);
    if (!lookup) {
      lookup = this.#lookUp(digest).finally(() => this.#underWay.delete(digest));
      this.#underWay.set(digest, lookup);
    }
    return lookup;
  }

  async #lookUp(digest: string): Promise<Caller | null> {
    const askedAt = performance.now();
    const { rows } = await this.#db.query<{ id: string; tenant: string; role: Role }>(
      "SELECT id, tenant, role FROM api_keys WHERE hash = $1 AND revoked_at IS NULL",
      [Buffer.from(digest, "base64")],
    );
    const row = rows[0];
    this.#known.delete(digest);
    this.#unknown.delete(digest);
    if (!row) {
      makeRoom(this.#unknown, mostRemembered.unknown);
      this.#unknown.set(digest, askedAt + rememberMs.unknown);
      return null;
    }
    const caller: Caller = { tenant: row.tenant, role: row.role, keyId: toWireId("key", row.id) };
    makeRoom(this.#known, mostRemembered.known);
    this.#known.set(digest, { caller, at: askedAt });
    return caller;
  }

  /** `end` is called when this key is revoked, within about a second. Returns what to call once it is over. */
  hold(keyId: string, end: () => void): () => void {
    const held = this.#open.get(keyId) ?? new Set();
    held.add(end);
    this.#open.set(keyId, held);
    if (!this.#watching) void this.#watch();
    return () => {
      held.delete(end);
      if (held.size === 0 && this.#open.get(keyId) === held) this.#open.delete(keyId);
    };
  }

  async #watch(): Promise<void> {
    this.#watching = true;
    while (this.#open.size > 0 || performance.now() - this.#usedAt < idleMs) {
      const askedAt = performance.now();
      try {
        const { rows } = await this.#db.query<{ id: string }>(
          "SELECT id FROM api_keys WHERE revoked_at > now() - interval '1 minute'",
        );
        for (const { id } of rows) this.#forget(toWireId("key", id));
        this.#watchedAt = askedAt;
      } catch {
        // Postgres is away: what is remembered grows old, and is asked for.
      }
      await new Promise((resolve) => setTimeout(resolve, watchMs).unref());
    }
    this.#watching = false;
  }

  #forget(keyId: string): void {
    for (const [digest, { caller }] of this.#known) if (caller.keyId === keyId) this.#known.delete(digest);
    for (const end of this.#open.get(keyId) ?? []) end();
  }
}

/** Forgets the oldest entry of a full map. */
function makeRoom(map: Map<string, unknown>, most: number): void {
  if (map.size < most) return;
  const oldest = map.keys().next();
  if (!oldest.done) map.delete(oldest.value);
}
