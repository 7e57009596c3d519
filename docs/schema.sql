-- Written by `npm run docs` from packages/storage/src/migrations; do not edit. Partitions of run_events are left out.

CREATE TABLE api_keys (
  id uuid NOT NULL,
  tenant text NOT NULL,
  hash bytea NOT NULL,
  role text NOT NULL,
  name text DEFAULT ''::text NOT NULL,
  created_at timestamp(3) with time zone DEFAULT now() NOT NULL,
  revoked_at timestamp(3) with time zone,
  CONSTRAINT api_keys_hash_key UNIQUE (hash),
  CONSTRAINT api_keys_pkey PRIMARY KEY (id),
  CONSTRAINT api_keys_tenant_fkey FOREIGN KEY (tenant) REFERENCES tenants(id),
  CONSTRAINT api_keys_role_check CHECK ((role = ANY (ARRAY['submitter'::text, 'approver'::text, 'operator'::text, 'admin'::text])))
);

CREATE TABLE approvals (
  id uuid NOT NULL,
  tenant text NOT NULL,
  run_id uuid NOT NULL,
  subject text NOT NULL,
  tool_name text,
  input json,
  reason text NOT NULL,
  hash text NOT NULL,
  status text DEFAULT 'pending'::text NOT NULL,
  on_expiry text NOT NULL,
  requested_at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  expires_at timestamp(3) with time zone NOT NULL,
  decided_at timestamp(3) with time zone,
  decided_by text,
  decision json,
  CONSTRAINT approvals_pkey PRIMARY KEY (id),
  CONSTRAINT approvals_run_id_fkey FOREIGN KEY (run_id) REFERENCES runs(id) ON DELETE CASCADE,
  CONSTRAINT approvals_decided CHECK (((status = 'pending'::text) = (decided_at IS NULL))),
  CONSTRAINT approvals_on_expiry_check CHECK ((on_expiry = ANY (ARRAY['reject'::text, 'fail'::text]))),
  CONSTRAINT approvals_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'approved'::text, 'rejected'::text, 'expired'::text]))),
  CONSTRAINT approvals_subject_check CHECK ((subject = ANY (ARRAY['call'::text, 'uncertain'::text, 'input'::text, 'result'::text, 'output'::text])))
);

CREATE TABLE audit_chain (
  tenant text NOT NULL,
  seq bigint NOT NULL,
  entry_id uuid NOT NULL,
  hash bytea NOT NULL,
  CONSTRAINT audit_chain_entry_id_key UNIQUE (entry_id),
  CONSTRAINT audit_chain_pkey PRIMARY KEY (tenant, seq),
  CONSTRAINT audit_chain_entry_id_fkey FOREIGN KEY (entry_id) REFERENCES audit_entries(id),
  CONSTRAINT audit_chain_hash_check CHECK ((length(hash) = 32)),
  CONSTRAINT audit_chain_seq_check CHECK ((seq > 0))
);

CREATE TABLE audit_checkpoints (
  tenant text NOT NULL,
  seq bigint NOT NULL,
  hash bytea NOT NULL,
  at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  key_id text NOT NULL,
  signature bytea NOT NULL,
  CONSTRAINT audit_checkpoints_pkey PRIMARY KEY (tenant, seq),
  CONSTRAINT audit_checkpoints_hash_check CHECK ((length(hash) = 32))
);

CREATE TABLE audit_entries (
  id uuid DEFAULT uuidv7_now() NOT NULL,
  tenant text NOT NULL,
  at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  actor text NOT NULL,
  action text NOT NULL,
  run_id uuid,
  data json DEFAULT '{}'::json NOT NULL,
  CONSTRAINT audit_entries_pkey PRIMARY KEY (id)
);

CREATE TABLE audit_unchained (
  entry_id uuid NOT NULL,
  tenant text NOT NULL,
  CONSTRAINT audit_unchained_pkey PRIMARY KEY (entry_id)
);

CREATE TABLE batches (
  id uuid NOT NULL,
  tenant text NOT NULL,
  status text DEFAULT 'running'::text NOT NULL,
  total integer NOT NULL,
  callback_url text,
  callback_events text[],
  metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
  cancel_requested_at timestamp(3) with time zone,
  created_at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  finished_at timestamp(3) with time zone,
  CONSTRAINT batches_pkey PRIMARY KEY (id),
  CONSTRAINT batches_tenant_fkey FOREIGN KEY (tenant) REFERENCES tenants(id),
  CONSTRAINT batches_status_check CHECK ((status = ANY (ARRAY['running'::text, 'completed'::text, 'cancelled'::text]))),
  CONSTRAINT batches_total_check CHECK ((total > 0))
);

CREATE TABLE blobs (
  tenant text NOT NULL,
  hash text NOT NULL,
  content text NOT NULL,
  created_at timestamp(3) with time zone DEFAULT now() NOT NULL,
  CONSTRAINT blobs_pkey PRIMARY KEY (tenant, hash)
);

CREATE TABLE budget_accounts (
  tenant text NOT NULL,
  level text NOT NULL,
  ref text NOT NULL,
  used_nanos bigint DEFAULT 0 NOT NULL,
  reserved_nanos bigint DEFAULT 0 NOT NULL,
  CONSTRAINT budget_accounts_pkey PRIMARY KEY (tenant, level, ref),
  CONSTRAINT budget_accounts_tenant_fkey FOREIGN KEY (tenant) REFERENCES tenants(id),
  CONSTRAINT budget_accounts_level_check CHECK ((level = ANY (ARRAY['session'::text, 'tenant_day'::text, 'tenant_month'::text]))),
  CONSTRAINT budget_accounts_reserved_nanos_check CHECK ((reserved_nanos >= 0)),
  CONSTRAINT budget_accounts_used_nanos_check CHECK ((used_nanos >= 0))
) WITH (fillfactor=50);

CREATE TABLE budget_reservations (
  run_id uuid NOT NULL,
  epoch integer NOT NULL,
  tenant text NOT NULL,
  nanos bigint NOT NULL,
  session_ref text,
  day_ref text,
  month_ref text,
  CONSTRAINT budget_reservations_pkey PRIMARY KEY (run_id),
  CONSTRAINT budget_reservations_run_id_fkey FOREIGN KEY (run_id) REFERENCES runs(id) ON DELETE CASCADE,
  CONSTRAINT budget_reservations_nanos_check CHECK ((nanos >= 0))
) WITH (fillfactor=50);

CREATE TABLE budgets (
  tenant text NOT NULL,
  day_nanos bigint,
  month_nanos bigint,
  session_nanos bigint,
  changed_at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT budgets_pkey PRIMARY KEY (tenant),
  CONSTRAINT budgets_tenant_fkey FOREIGN KEY (tenant) REFERENCES tenants(id),
  CONSTRAINT budgets_day_nanos_check CHECK ((day_nanos >= 0)),
  CONSTRAINT budgets_month_nanos_check CHECK ((month_nanos >= 0)),
  CONSTRAINT budgets_session_nanos_check CHECK ((session_nanos >= 0))
);

CREATE TABLE deliveries (
  id uuid NOT NULL,
  tenant text NOT NULL,
  message_id uuid NOT NULL,
  endpoint_id uuid,
  run_id uuid,
  type text NOT NULL,
  url text NOT NULL,
  destination text NOT NULL,
  status text DEFAULT 'pending'::text NOT NULL,
  attempt integer DEFAULT 0 NOT NULL,
  failures integer DEFAULT 0 NOT NULL,
  give_up_at timestamp(3) with time zone NOT NULL,
  next_at timestamp(3) with time zone,
  created_at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  ripe boolean DEFAULT true NOT NULL,
  claimed_by uuid,
  CONSTRAINT deliveries_message_id_endpoint_id_key UNIQUE NULLS NOT DISTINCT (message_id, endpoint_id),
  CONSTRAINT deliveries_pkey PRIMARY KEY (id),
  CONSTRAINT deliveries_endpoint_id_fkey FOREIGN KEY (endpoint_id) REFERENCES endpoints(id) ON DELETE CASCADE,
  CONSTRAINT deliveries_message_id_fkey FOREIGN KEY (message_id) REFERENCES messages(id) ON DELETE CASCADE,
  CONSTRAINT deliveries_check CHECK (((status = 'pending'::text) = (next_at IS NOT NULL))),
  CONSTRAINT deliveries_status_check CHECK ((status = ANY (ARRAY['pending'::text, 'delivered'::text, 'failed'::text, 'disabled'::text])))
) WITH (fillfactor=70);

CREATE TABLE delivery_attempts (
  delivery_id uuid NOT NULL,
  attempt integer NOT NULL,
  at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  status_code integer,
  error text,
  duration_ms integer NOT NULL,
  cause text,
  CONSTRAINT delivery_attempts_pkey PRIMARY KEY (delivery_id, attempt),
  CONSTRAINT delivery_attempts_delivery_id_fkey FOREIGN KEY (delivery_id) REFERENCES deliveries(id) ON DELETE CASCADE
);

CREATE TABLE endpoints (
  id uuid NOT NULL,
  tenant text NOT NULL,
  url text NOT NULL,
  events text[],
  description text DEFAULT ''::text NOT NULL,
  enabled boolean DEFAULT true NOT NULL,
  disabled_reason text,
  secret text NOT NULL,
  old_secret text,
  old_secret_until timestamp(3) with time zone,
  created_at timestamp(3) with time zone DEFAULT now() NOT NULL,
  may_decide boolean DEFAULT false NOT NULL,
  failing_since timestamp(3) with time zone,
  failed_messages uuid[] DEFAULT '{}'::uuid[] NOT NULL,
  named_by text,
  thin_over_bytes integer,
  CONSTRAINT endpoints_pkey PRIMARY KEY (id),
  CONSTRAINT endpoints_tenant_fkey FOREIGN KEY (tenant) REFERENCES tenants(id),
  CONSTRAINT endpoints_failing CHECK (((failing_since IS NULL) = (failed_messages = '{}'::uuid[])))
);

CREATE TABLE fair_classes (
  priority smallint NOT NULL,
  started_tag bigint DEFAULT 0 NOT NULL,
  base bigint DEFAULT 0 NOT NULL,
  floor_tag bigint DEFAULT 0 NOT NULL,
  CONSTRAINT fair_classes_pkey PRIMARY KEY (priority),
  CONSTRAINT fair_classes_priority_check CHECK (((priority >= 0) AND (priority <= 9)))
) WITH (fillfactor=50);

CREATE TABLE fair_tenants (
  tenant text NOT NULL,
  priority smallint NOT NULL,
  last_tag bigint NOT NULL,
  CONSTRAINT fair_tenants_pkey PRIMARY KEY (tenant, priority)
) WITH (fillfactor=50);

CREATE TABLE idempotency_keys (
  tenant text NOT NULL,
  key text NOT NULL,
  body_hash bytea NOT NULL,
  run_id uuid,
  batch_id uuid,
  created_at timestamp(3) with time zone DEFAULT now() NOT NULL,
  CONSTRAINT idempotency_keys_pkey PRIMARY KEY (tenant, key),
  CONSTRAINT idempotency_keys_check CHECK ((num_nonnulls(run_id, batch_id) = 1))
);

CREATE TABLE message_feed (
  tenant text NOT NULL,
  seq bigint NOT NULL,
  message_id uuid NOT NULL,
  CONSTRAINT message_feed_pkey PRIMARY KEY (tenant, seq),
  CONSTRAINT message_feed_seq_check CHECK ((seq > 0))
);

CREATE TABLE messages (
  id uuid NOT NULL,
  tenant text NOT NULL,
  type text NOT NULL,
  run_id uuid,
  batch_id uuid,
  endpoint_id uuid,
  fanned_out boolean DEFAULT false NOT NULL,
  created_at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  seq integer,
  data json,
  CONSTRAINT messages_pkey PRIMARY KEY (id)
) WITH (fillfactor=80);

CREATE TABLE messages_unnumbered (
  message_id uuid NOT NULL,
  tenant text NOT NULL,
  CONSTRAINT messages_unnumbered_pkey PRIMARY KEY (message_id)
);

CREATE TABLE run_events (
  run_id uuid NOT NULL,
  seq integer NOT NULL,
  type text NOT NULL,
  data json NOT NULL,
  event_id uuid NOT NULL,
  at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  CONSTRAINT run_events_pkey PRIMARY KEY (run_id, seq)
) PARTITION BY RANGE (run_id);

CREATE TABLE runs (
  id uuid NOT NULL,
  tenant text NOT NULL,
  agent text NOT NULL,
  user_id text,
  batch_id uuid,
  batch_index integer,
  status text DEFAULT 'queued'::text NOT NULL,
  waiting_for text,
  stop_reason text,
  priority smallint DEFAULT 0 NOT NULL,
  tag bigint DEFAULT 0 NOT NULL,
  wake integer DEFAULT 1 NOT NULL,
  woken boolean NOT NULL,
  available_at timestamp(3) with time zone NOT NULL,
  epoch integer DEFAULT 0 NOT NULL,
  attempt integer DEFAULT 1 NOT NULL,
  crashes integer DEFAULT 0 NOT NULL,
  worker uuid,
  claimed_at timestamp(3) with time zone,
  soft_at timestamp(3) with time zone,
  hard_at timestamp(3) with time zone,
  soft_ms integer NOT NULL,
  hard_ms integer NOT NULL,
  deadline timestamp(3) with time zone,
  active_ms bigint DEFAULT 0 NOT NULL,
  last_seq integer DEFAULT 1 NOT NULL,
  steps integer DEFAULT 0 NOT NULL,
  iterations integer DEFAULT 0 NOT NULL,
  cost_nanos bigint DEFAULT 0 NOT NULL,
  cost_unknown boolean DEFAULT false NOT NULL,
  input_tokens bigint DEFAULT 0 NOT NULL,
  output_tokens bigint DEFAULT 0 NOT NULL,
  cached_tokens bigint DEFAULT 0 NOT NULL,
  cancel_requested_at timestamp(3) with time zone,
  log_version smallint DEFAULT 1 NOT NULL,
  callback_url text,
  callback_events text[],
  metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
  created_at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  started_at timestamp(3) with time zone,
  finished_at timestamp(3) with time zone,
  kind text DEFAULT 'query'::text NOT NULL,
  of_run uuid,
  session_id uuid,
  submitted_by text,
  waiting_since timestamp(3) with time zone,
  waiting_level text,
  budget_raises integer DEFAULT 0 NOT NULL,
  rollback text,
  lost_worker uuid,
  retry_of uuid,
  last_append uuid,
  user_code boolean DEFAULT false NOT NULL,
  model text,
  set_aside_at timestamp(3) with time zone,
  CONSTRAINT runs_pkey PRIMARY KEY (id),
  CONSTRAINT runs_batch_id_fkey FOREIGN KEY (batch_id) REFERENCES batches(id),
  CONSTRAINT runs_of_run_fkey FOREIGN KEY (of_run) REFERENCES runs(id),
  CONSTRAINT runs_retry_of_fkey FOREIGN KEY (retry_of) REFERENCES runs(id) ON DELETE SET NULL,
  CONSTRAINT runs_tenant_fkey FOREIGN KEY (tenant) REFERENCES tenants(id),
  CONSTRAINT runs_final CHECK (((status = ANY (ARRAY['completed'::text, 'partial'::text, 'failed'::text, 'cancelled'::text])) = (finished_at IS NOT NULL))),
  CONSTRAINT runs_kind_check CHECK ((kind = ANY (ARRAY['query'::text, 'rollback'::text]))),
  CONSTRAINT runs_limits CHECK (((status <> 'running'::text) OR ((claimed_at IS NOT NULL) AND (soft_at IS NOT NULL) AND (hard_at IS NOT NULL)))),
  CONSTRAINT runs_of_run CHECK (((kind = 'rollback'::text) = (of_run IS NOT NULL))),
  CONSTRAINT runs_owned CHECK (((status = 'running'::text) = (worker IS NOT NULL))),
  CONSTRAINT runs_priority_check CHECK (((priority >= 0) AND (priority <= 9))),
  CONSTRAINT runs_retry_of CHECK (((retry_of IS NULL) OR (kind = 'query'::text))),
  CONSTRAINT runs_rollback_check CHECK ((rollback = ANY (ARRAY['owed'::text, 'made'::text]))),
  CONSTRAINT runs_soft_below_hard CHECK (((soft_ms > 0) AND (soft_ms < hard_ms))),
  CONSTRAINT runs_status CHECK ((status = ANY (ARRAY['queued'::text, 'running'::text, 'waiting'::text, 'completed'::text, 'partial'::text, 'failed'::text, 'cancelled'::text]))),
  CONSTRAINT runs_stop_reason CHECK (((status <> ALL (ARRAY['partial'::text, 'failed'::text])) OR (stop_reason IS NOT NULL))),
  CONSTRAINT runs_waiting CHECK (((status = 'waiting'::text) = (waiting_for IS NOT NULL))),
  CONSTRAINT runs_waiting_for CHECK ((waiting_for = ANY (ARRAY['approval'::text, 'children'::text, 'budget'::text]))),
  CONSTRAINT runs_waiting_level_check CHECK ((waiting_level = ANY (ARRAY['actions'::text, 'run'::text, 'session'::text, 'tenant_day'::text, 'tenant_month'::text]))),
  CONSTRAINT runs_waiting_since CHECK (((status <> 'waiting'::text) OR (waiting_since IS NOT NULL)))
) WITH (fillfactor=50, autovacuum_vacuum_scale_factor=0.05, autovacuum_analyze_scale_factor=0.05);

CREATE TABLE tenants (
  id text NOT NULL,
  webhook_secret text NOT NULL,
  old_webhook_secret text,
  old_webhook_secret_until timestamp with time zone,
  created_at timestamp(3) with time zone DEFAULT now() NOT NULL,
  link_secret text DEFAULT replace(((gen_random_uuid())::text || (gen_random_uuid())::text), '-'::text, ''::text) NOT NULL,
  CONSTRAINT tenants_pkey PRIMARY KEY (id),
  CONSTRAINT tenants_id_check CHECK ((id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'::text))
);

CREATE TABLE workers (
  id uuid NOT NULL,
  host text NOT NULL,
  pid integer NOT NULL,
  slots integer NOT NULL,
  lease_ms integer NOT NULL,
  started_at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  heartbeat_at timestamp(3) with time zone DEFAULT clock_timestamp() NOT NULL,
  lock_id integer,
  dead_at timestamp(3) with time zone,
  cause text,
  culprit uuid,
  culprit_tool text,
  process text,
  blames_all boolean,
  suspects integer,
  look_at timestamp(3) with time zone,
  overdue uuid[],
  agents text[],
  models text[],
  CONSTRAINT workers_pkey PRIMARY KEY (id),
  CONSTRAINT workers_cause_check CHECK ((cause = ANY (ARRAY['crashed'::text, 'silent'::text, 'blocked'::text, 'stopped'::text]))),
  CONSTRAINT workers_dead CHECK (((dead_at IS NULL) = (cause IS NULL)))
) WITH (fillfactor=50);

CREATE INDEX api_keys_revoked ON api_keys USING btree (revoked_at) WHERE (revoked_at IS NOT NULL);

CREATE INDEX approvals_by_run ON approvals USING btree (run_id, id);

CREATE INDEX approvals_by_tenant ON approvals USING btree (tenant, id);

CREATE INDEX approvals_due ON approvals USING btree (expires_at) WHERE (status = 'pending'::text);

CREATE INDEX approvals_open ON approvals USING btree (run_id) WHERE (status = 'pending'::text);

CREATE INDEX approvals_pending ON approvals USING btree (tenant, id) WHERE (status = 'pending'::text);

CREATE INDEX audit_entries_by_run ON audit_entries USING btree (run_id) WHERE (run_id IS NOT NULL);

CREATE INDEX batches_open ON batches USING btree (id) WHERE (status = 'running'::text);

CREATE INDEX blobs_age ON blobs USING btree (created_at);

CREATE INDEX deliveries_by_endpoint ON deliveries USING btree (endpoint_id) WHERE (endpoint_id IS NOT NULL);

CREATE INDEX deliveries_by_run ON deliveries USING btree (run_id, id) WHERE (run_id IS NOT NULL);

CREATE INDEX deliveries_ripe ON deliveries USING btree (destination, next_at) WHERE ((status = 'pending'::text) AND ripe);

CREATE INDEX deliveries_unripe ON deliveries USING btree (next_at) WHERE ((status = 'pending'::text) AND (NOT ripe));

CREATE INDEX endpoints_by_tenant ON endpoints USING btree (tenant, id);

CREATE INDEX idempotency_keys_age ON idempotency_keys USING btree (created_at);

CREATE UNIQUE INDEX messages_once ON messages USING btree (run_id) WHERE ((run_id IS NOT NULL) AND (type <> 'query.waiting'::text));

CREATE UNIQUE INDEX messages_once_per_batch ON messages USING btree (batch_id) WHERE (batch_id IS NOT NULL);

CREATE INDEX messages_owed ON messages USING btree (id) WHERE (NOT fanned_out);

CREATE UNIQUE INDEX runs_by_batch ON runs USING btree (batch_id, batch_index) WHERE (batch_id IS NOT NULL);

CREATE INDEX runs_by_metadata ON runs USING gin (metadata jsonb_path_ops) WHERE (metadata <> '{}'::jsonb);

CREATE INDEX runs_by_outcome ON runs USING btree (tenant, status, id) WHERE (status = ANY (ARRAY['partial'::text, 'failed'::text, 'cancelled'::text, 'waiting'::text]));

CREATE INDEX runs_by_session ON runs USING btree (session_id) WHERE (session_id IS NOT NULL);

CREATE INDEX runs_by_tenant ON runs USING btree (tenant, id);

CREATE INDEX runs_by_user ON runs USING btree (tenant, user_id, id) WHERE (user_id IS NOT NULL);

CREATE INDEX runs_claimable ON runs USING btree (priority DESC, tag, id) WHERE ((status = 'queued'::text) AND woken);

CREATE INDEX runs_deadline ON runs USING btree (deadline) WHERE ((deadline IS NOT NULL) AND (status = ANY (ARRAY['queued'::text, 'waiting'::text])));

CREATE INDEX runs_due ON runs USING btree (available_at) WHERE ((status = 'queued'::text) AND (NOT woken) AND (set_aside_at IS NULL));

CREATE INDEX runs_lost_worker ON runs USING btree (lost_worker) WHERE (lost_worker IS NOT NULL);

CREATE INDEX runs_of_run ON runs USING btree (of_run) WHERE (of_run IS NOT NULL);

CREATE UNIQUE INDEX runs_one_rollback ON runs USING btree (of_run) WHERE ((kind = 'rollback'::text) AND (status <> ALL (ARRAY['failed'::text, 'cancelled'::text])));

CREATE INDEX runs_open_in_batch ON runs USING btree (batch_id) WHERE ((batch_id IS NOT NULL) AND (status = ANY (ARRAY['queued'::text, 'running'::text, 'waiting'::text])));

CREATE INDEX runs_owned ON runs USING btree (worker) WHERE (status = 'running'::text);

CREATE INDEX runs_retries ON runs USING btree (retry_of) WHERE (retry_of IS NOT NULL);

CREATE INDEX runs_rollback_owed ON runs USING btree (id) WHERE (rollback = 'owed'::text);

CREATE INDEX runs_set_aside ON runs USING btree (agent, set_aside_at) WHERE (set_aside_at IS NOT NULL);

CREATE INDEX runs_suspects ON runs USING btree (priority DESC, tag, id) WHERE ((status = 'queued'::text) AND woken AND (crashes >= 2));

CREATE INDEX runs_waiting ON runs USING btree (waiting_for, id) WHERE (status = 'waiting'::text);

CREATE OR REPLACE FUNCTION audit_cut(whose text, up_to bigint)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO '$user', 'public'
AS $function$
    DECLARE gone bigint;
    BEGIN
      PERFORM FROM audit_checkpoints s JOIN audit_chain c USING (tenant, seq) JOIN audit_entries e ON e.id = c.entry_id
        WHERE s.tenant = whose AND s.seq = up_to AND s.hash = c.hash AND e.at < clock_timestamp() - interval '30 days';
      IF NOT FOUND THEN
        RAISE EXCEPTION 'the audit trail of % cannot be cut at entry %: it has no checkpoint, or is younger than 30 days', whose, up_to
          USING ERRCODE = 'insufficient_privilege';
      END IF;
      PERFORM set_config('drover.audit_cut', 'on', true);
      WITH cut AS (DELETE FROM audit_chain WHERE tenant = whose AND seq <= up_to RETURNING entry_id)
        DELETE FROM audit_entries WHERE id IN (SELECT entry_id FROM cut);
      GET DIAGNOSTICS gone = ROW_COUNT;
      DELETE FROM audit_checkpoints WHERE tenant = whose AND seq < up_to;
      PERFORM set_config('drover.audit_cut', '', true);
      RETURN gone;
    END $function$;

CREATE OR REPLACE FUNCTION audit_inbox()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
    BEGIN
      INSERT INTO audit_unchained (entry_id, tenant) SELECT id, tenant FROM made;
      RETURN NULL;
    END $function$;

CREATE OR REPLACE FUNCTION audit_insert_only()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
    BEGIN
      IF TG_OP = 'DELETE' AND current_setting('drover.audit_cut', true) = 'on' THEN RETURN NULL; END IF;
      RAISE EXCEPTION 'the audit trail takes inserts only (% on %)', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
    END $function$;

CREATE OR REPLACE FUNCTION messages_inbox()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
    BEGIN
      INSERT INTO messages_unnumbered (message_id, tenant) SELECT id, tenant FROM made WHERE endpoint_id IS NULL;
      RETURN NULL;
    END $function$;

CREATE OR REPLACE FUNCTION uuidv7_floor(moment timestamp with time zone)
 RETURNS uuid
 LANGUAGE sql
 IMMUTABLE STRICT
AS $function$
    SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
  $function$;

CREATE OR REPLACE FUNCTION uuidv7_now()
 RETURNS uuid
 LANGUAGE sql
AS $function$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
      PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
  $function$;

CREATE TRIGGER audit_chain_insert_only BEFORE DELETE OR UPDATE OR TRUNCATE ON audit_chain FOR EACH STATEMENT EXECUTE FUNCTION audit_insert_only();

CREATE TRIGGER audit_checkpoints_insert_only BEFORE DELETE OR UPDATE OR TRUNCATE ON audit_checkpoints FOR EACH STATEMENT EXECUTE FUNCTION audit_insert_only();

CREATE TRIGGER audit_entries_insert_only BEFORE DELETE OR UPDATE OR TRUNCATE ON audit_entries FOR EACH STATEMENT EXECUTE FUNCTION audit_insert_only();

CREATE TRIGGER audit_entries_made AFTER INSERT ON audit_entries REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION audit_inbox();

CREATE TRIGGER messages_made AFTER INSERT ON messages REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION messages_inbox();
