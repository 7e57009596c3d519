/**
 * What the one door needs to be durable: approvals, budgets, rollbacks, and the audit trail. Audit tables only take inserts, whoever
 * asks: a trigger refuses the rest.
 */
import { inOrder } from "../in-order.ts";

export const door = inOrder(
  `ALTER TABLE runs
    ADD COLUMN kind text NOT NULL DEFAULT 'query' CHECK (kind IN ('query', 'rollback')),
    ADD COLUMN of_run uuid REFERENCES runs,
    ADD COLUMN session_id uuid,
    ADD COLUMN submitted_by text,
    ADD COLUMN waiting_since timestamptz(3),
    ADD COLUMN waiting_level text CHECK (waiting_level IN ('actions', 'run', 'session', 'tenant_day', 'tenant_month')),
    ADD COLUMN budget_raises int NOT NULL DEFAULT 0,
    ADD COLUMN rollback text CHECK (rollback IN ('owed', 'made')),
    ADD CONSTRAINT runs_of_run CHECK ((kind = 'rollback') = (of_run IS NOT NULL)),
    ADD CONSTRAINT runs_waiting_since CHECK (status <> 'waiting' OR waiting_since IS NOT NULL)`,
  // One rollback of a run at a time, and no second one of what is undone.
  `CREATE UNIQUE INDEX runs_one_rollback ON runs (of_run) WHERE kind = 'rollback' AND status NOT IN ('failed', 'cancelled')`,
  `CREATE INDEX runs_rollback_owed ON runs (id) WHERE rollback = 'owed'`,
  `CREATE INDEX runs_waiting ON runs (waiting_for, id) WHERE status = 'waiting'`,
  // What people are asked. The arguments stand here as they were asked about, whatever becomes of the log's copy.
  `CREATE TABLE approvals (
    id uuid PRIMARY KEY,
    tenant text NOT NULL,
    run_id uuid NOT NULL REFERENCES runs ON DELETE CASCADE,
    subject text NOT NULL CHECK (subject IN ('call', 'uncertain', 'input', 'result', 'output')),
    tool_name text,
    input json,
    reason text NOT NULL,
    hash text NOT NULL,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'approved', 'rejected', 'expired')),
    on_expiry text NOT NULL CHECK (on_expiry IN ('reject', 'fail')),
    requested_at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz(3) NOT NULL,
    decided_at timestamptz(3),
    decided_by text,
    decision json,
    CONSTRAINT approvals_decided CHECK ((status = 'pending') = (decided_at IS NULL))
  )`,
  `CREATE INDEX approvals_open ON approvals (run_id) WHERE status = 'pending'`,
  `CREATE INDEX approvals_pending ON approvals (tenant, id) WHERE status = 'pending'`,
  `CREATE INDEX approvals_due ON approvals (expires_at) WHERE status = 'pending'`,
  `CREATE INDEX approvals_by_tenant ON approvals (tenant, id)`,
  `CREATE INDEX approvals_by_run ON approvals (run_id, id)`,
  // Caps of a tenant. A level without a cap has no account: its usage is summed when somebody asks.
  `CREATE TABLE budgets (
    tenant text PRIMARY KEY REFERENCES tenants,
    day_nanos bigint CHECK (day_nanos >= 0),
    month_nanos bigint CHECK (month_nanos >= 0),
    session_nanos bigint CHECK (session_nanos >= 0),
    changed_at timestamptz(3) NOT NULL DEFAULT clock_timestamp()
  )`,
  // `ref`: the UTC day (2026-11-21), the UTC month (2026-11), or the session's id.
  `CREATE TABLE budget_accounts (
    tenant text NOT NULL REFERENCES tenants,
    level text NOT NULL CHECK (level IN ('session', 'tenant_day', 'tenant_month')),
    ref text NOT NULL,
    used_nanos bigint NOT NULL DEFAULT 0 CHECK (used_nanos >= 0),
    reserved_nanos bigint NOT NULL DEFAULT 0 CHECK (reserved_nanos >= 0),
    PRIMARY KEY (tenant, level, ref)
  ) WITH (fillfactor = 50)`,
  // What a model call under way may cost at worst. A run has one call under way; its next owner's reservation replaces the last one's.
  `CREATE TABLE budget_reservations (
    run_id uuid PRIMARY KEY REFERENCES runs ON DELETE CASCADE,
    epoch int NOT NULL,
    tenant text NOT NULL,
    nanos bigint NOT NULL CHECK (nanos >= 0),
    session_ref text,
    day_ref text,
    month_ref text
  ) WITH (fillfactor = 50)`,
  // The event a message tells about, where it is not the last one.
  `ALTER TABLE messages ADD COLUMN seq int`,
  // Whether links to decide go there: only where somebody who may decide has named the address.
  `ALTER TABLE endpoints ADD COLUMN may_decide boolean NOT NULL DEFAULT false`,
  `ALTER TABLE tenants ADD COLUMN link_secret text NOT NULL
    DEFAULT replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '')`,

  // The audit trail. Entries are written with what they tell about; the sequencer gives them their place and chains them after commit.
  `CREATE TABLE audit_entries (
    id uuid PRIMARY KEY DEFAULT uuidv7_now(),
    tenant text NOT NULL,
    at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,
    action text NOT NULL,
    run_id uuid,
    data json NOT NULL DEFAULT '{}'
  )`,
  `CREATE INDEX audit_entries_by_run ON audit_entries (run_id) WHERE run_id IS NOT NULL`,
  // Entries that have no place yet: the sequencer's inbox, filled by a trigger.
  `CREATE TABLE audit_unchained (entry_id uuid PRIMARY KEY, tenant text NOT NULL)`,
  `CREATE TABLE audit_chain (
    tenant text NOT NULL,
    seq bigint NOT NULL CHECK (seq > 0),
    entry_id uuid NOT NULL UNIQUE REFERENCES audit_entries,
    hash bytea NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (tenant, seq)
  )`,
  `CREATE TABLE audit_checkpoints (
    tenant text NOT NULL,
    seq bigint NOT NULL,
    hash bytea NOT NULL CHECK (length(hash) = 32),
    at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    key_id text NOT NULL,
    signature bytea NOT NULL,
    PRIMARY KEY (tenant, seq)
  )`,
  `CREATE FUNCTION audit_inbox() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      INSERT INTO audit_unchained (entry_id, tenant) SELECT id, tenant FROM made;
      RETURN NULL;
    END $$`,
  `CREATE TRIGGER audit_entries_made AFTER INSERT ON audit_entries REFERENCING NEW TABLE AS made
    FOR EACH STATEMENT EXECUTE FUNCTION audit_inbox()`,
  `CREATE FUNCTION audit_insert_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      RAISE EXCEPTION 'the audit trail takes inserts only (% on %)', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
    END $$`,
  ...["audit_entries", "audit_chain", "audit_checkpoints"].map(
    (table) => `CREATE TRIGGER ${table}_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ${table}
    FOR EACH STATEMENT EXECUTE FUNCTION audit_insert_only()`,
  ),
);
