/**
 * The first schema. CHECK constraints repeat the state table of `runs/state.ts`, so that the database refuses nonsense.
 * Partial indexes name only what is moving: a finished run costs nothing but its row.
 */
import { inOrder } from "../in-order.ts";

export const initial = inOrder(
  `CREATE TABLE tenants (
    id text PRIMARY KEY CHECK (id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    webhook_secret text NOT NULL,
    old_webhook_secret text,
    old_webhook_secret_until timestamptz,
    created_at timestamptz(3) NOT NULL DEFAULT now()
  )`,
  `CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenants,
    hash bytea NOT NULL UNIQUE,
    role text NOT NULL CHECK (role IN ('submitter', 'approver', 'operator', 'admin')),
    name text NOT NULL DEFAULT '',
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    revoked_at timestamptz(3)
  )`,
  // Narrow and updated every second: kept on its page by fillfactor.
  `CREATE TABLE workers (
    id uuid PRIMARY KEY,
    host text NOT NULL,
    pid int NOT NULL,
    slots int NOT NULL,
    lease_ms int NOT NULL,
    started_at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz(3) NOT NULL DEFAULT clock_timestamp()
  ) WITH (fillfactor = 50)`,
  // Start-tag fair queueing: see runs/fair.ts.
  `CREATE TABLE fair_classes (
    priority smallint PRIMARY KEY CHECK (priority BETWEEN 0 AND 9),
    started_tag bigint NOT NULL DEFAULT 0,
    base bigint NOT NULL DEFAULT 0
  ) WITH (fillfactor = 50)`,
  `INSERT INTO fair_classes (priority) SELECT generate_series(0, 9)`,
  `CREATE TABLE fair_tenants (
    tenant text NOT NULL,
    priority smallint NOT NULL,
    last_tag bigint NOT NULL,
    PRIMARY KEY (tenant, priority)
  ) WITH (fillfactor = 50)`,
  `CREATE TABLE batches (
    id uuid PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenants,
    status text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'completed', 'cancelled')),
    total int NOT NULL CHECK (total > 0),
    callback_url text,
    callback_events text[],
    metadata jsonb NOT NULL DEFAULT '{}',
    cancel_requested_at timestamptz(3),
    created_at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz(3)
  )`,
  `CREATE INDEX batches_open ON batches (id) WHERE status = 'running'`,
  `CREATE TABLE runs (
    id uuid PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenants,
    agent text NOT NULL,
    user_id text,
    batch_id uuid REFERENCES batches,
    batch_index int,
    status text NOT NULL DEFAULT 'queued',
    waiting_for text,
    stop_reason text,
    priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 9),
    tag bigint NOT NULL DEFAULT 0,
    wake int NOT NULL DEFAULT 1,
    woken boolean NOT NULL,
    available_at timestamptz(3) NOT NULL,
    epoch int NOT NULL DEFAULT 0,
    attempt int NOT NULL DEFAULT 1,
    crashes int NOT NULL DEFAULT 0,
    worker uuid,
    claimed_at timestamptz(3),
    soft_at timestamptz(3),
    hard_at timestamptz(3),
    soft_ms int NOT NULL,
    hard_ms int NOT NULL,
    deadline timestamptz(3),
    active_ms bigint NOT NULL DEFAULT 0,
    last_seq int NOT NULL DEFAULT 1,
    steps int NOT NULL DEFAULT 0,
    iterations int NOT NULL DEFAULT 0,
    cost_nanos bigint NOT NULL DEFAULT 0,
    cost_unknown boolean NOT NULL DEFAULT false,
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    cached_tokens bigint NOT NULL DEFAULT 0,
    cancel_requested_at timestamptz(3),
    log_version smallint NOT NULL DEFAULT 1,
    callback_url text,
    callback_events text[],
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz(3),
    finished_at timestamptz(3),
    CONSTRAINT runs_status CHECK (status IN ('queued', 'running', 'waiting', 'completed', 'partial', 'failed', 'cancelled')),
    CONSTRAINT runs_waiting CHECK ((status = 'waiting') = (waiting_for IS NOT NULL)),
    CONSTRAINT runs_waiting_for CHECK (waiting_for IN ('approval', 'children', 'budget')),
    CONSTRAINT runs_owned CHECK ((status = 'running') = (worker IS NOT NULL)),
    CONSTRAINT runs_limits CHECK (status <> 'running' OR (claimed_at IS NOT NULL AND soft_at IS NOT NULL AND hard_at IS NOT NULL)),
    CONSTRAINT runs_final CHECK ((status IN ('completed', 'partial', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT runs_stop_reason CHECK (status NOT IN ('partial', 'failed') OR stop_reason IS NOT NULL),
    CONSTRAINT runs_soft_below_hard CHECK (soft_ms > 0 AND soft_ms < hard_ms)
  ) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05)`,
  `CREATE INDEX runs_claimable ON runs (priority DESC, tag, id) WHERE status = 'queued' AND woken`,
  `CREATE INDEX runs_due ON runs (available_at) WHERE status = 'queued' AND NOT woken`,
  `CREATE INDEX runs_owned ON runs (worker) WHERE status = 'running'`,
  `CREATE INDEX runs_deadline ON runs (deadline) WHERE deadline IS NOT NULL AND status IN ('queued', 'waiting')`,
  `CREATE INDEX runs_by_tenant ON runs (tenant, id)`,
  `CREATE INDEX runs_by_outcome ON runs (tenant, status, id) WHERE status IN ('partial', 'failed', 'cancelled', 'waiting')`,
  `CREATE INDEX runs_by_user ON runs (tenant, user_id, id) WHERE user_id IS NOT NULL`,
  `CREATE INDEX runs_by_metadata ON runs USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}'`,
  `CREATE UNIQUE INDEX runs_by_batch ON runs (batch_id, batch_index) WHERE batch_id IS NOT NULL`,
  `CREATE INDEX runs_open_in_batch ON runs (batch_id) WHERE batch_id IS NOT NULL AND status IN ('queued', 'running', 'waiting')`,
  // The only history. UUIDv7 ids are time, so a range of ids is a month: retention drops partitions.
  `CREATE TABLE run_events (
    run_id uuid NOT NULL,
    seq int NOT NULL,
    type text NOT NULL,
    data json NOT NULL,
    event_id uuid NOT NULL,
    at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (run_id, seq)
  ) PARTITION BY RANGE (run_id)`,
  `CREATE TABLE run_events_default PARTITION OF run_events DEFAULT`,
  `CREATE FUNCTION uuidv7_floor(moment timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
  $$`,
  // A random UUID of version 4 with the time in its first 48 bits and its version bits set to 7 (RFC 9562 section 5.7).
  `CREATE FUNCTION uuidv7_now() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
      PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
  $$`,
  `CREATE TABLE blobs (
    tenant text NOT NULL,
    hash text NOT NULL,
    content text NOT NULL,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, hash)
  )`,
  `CREATE TABLE idempotency_keys (
    tenant text NOT NULL,
    key text NOT NULL,
    body_hash bytea NOT NULL,
    run_id uuid,
    batch_id uuid,
    created_at timestamptz(3) NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, key),
    CHECK (num_nonnulls(run_id, batch_id) = 1)
  )`,
  `CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at)`,
  // The outbox: one row for every final run and closed batch, written in the transaction that ended it.
  `CREATE TABLE messages (
    id uuid PRIMARY KEY,
    tenant text NOT NULL,
    type text NOT NULL,
    run_id uuid,
    batch_id uuid,
    endpoint_id uuid,
    fanned_out boolean NOT NULL DEFAULT false,
    created_at timestamptz(3) NOT NULL DEFAULT clock_timestamp()
  ) WITH (fillfactor = 80)`,
  `CREATE INDEX messages_owed ON messages (id) WHERE NOT fanned_out`,
  `CREATE UNIQUE INDEX messages_once ON messages (run_id) WHERE run_id IS NOT NULL AND type <> 'query.waiting'`,
  `CREATE UNIQUE INDEX messages_once_per_batch ON messages (batch_id) WHERE batch_id IS NOT NULL`,
  `CREATE TABLE endpoints (
    id uuid PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenants,
    url text NOT NULL,
    events text[],
    description text NOT NULL DEFAULT '',
    enabled boolean NOT NULL DEFAULT true,
    disabled_reason text,
    secret text NOT NULL,
    old_secret text,
    old_secret_until timestamptz(3),
    created_at timestamptz(3) NOT NULL DEFAULT now()
  )`,
  `CREATE INDEX endpoints_by_tenant ON endpoints (tenant, id)`,
  `CREATE TABLE deliveries (
    id uuid PRIMARY KEY,
    tenant text NOT NULL,
    message_id uuid NOT NULL REFERENCES messages ON DELETE CASCADE,
    endpoint_id uuid REFERENCES endpoints ON DELETE CASCADE,
    run_id uuid,
    type text NOT NULL,
    url text NOT NULL,
    destination text NOT NULL,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'failed', 'disabled')),
    attempt int NOT NULL DEFAULT 0,
    failures int NOT NULL DEFAULT 0,
    give_up_at timestamptz(3) NOT NULL,
    next_at timestamptz(3),
    created_at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    UNIQUE NULLS NOT DISTINCT (message_id, endpoint_id),
    CHECK ((status = 'pending') = (next_at IS NOT NULL))
  ) WITH (fillfactor = 70)`,
  `CREATE INDEX deliveries_due ON deliveries (next_at) WHERE status = 'pending'`,
  // Claims visit every destination that has something pending and take a few of each: see delivery/claim.ts.
  `CREATE INDEX deliveries_by_destination ON deliveries (destination, next_at) WHERE status = 'pending'`,
  `CREATE INDEX deliveries_by_run ON deliveries (run_id, id) WHERE run_id IS NOT NULL`,
  `CREATE INDEX deliveries_by_endpoint ON deliveries (endpoint_id) WHERE endpoint_id IS NOT NULL`,
  `CREATE TABLE delivery_attempts (
    delivery_id uuid NOT NULL REFERENCES deliveries ON DELETE CASCADE,
    attempt int NOT NULL,
    at timestamptz(3) NOT NULL DEFAULT clock_timestamp(),
    status_code int,
    error text,
    duration_ms int NOT NULL,
    PRIMARY KEY (delivery_id, attempt)
  )`,
);
