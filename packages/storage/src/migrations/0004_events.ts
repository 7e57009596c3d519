/**
 * The feed: every message for the whole tenant gets a number once its transaction has committed. What an endpoint that fails is remembered by.
 * And claims of deliveries that read no backlog.
 */
import { inOrder } from "../in-order.ts";

export const events = inOrder(
  // The same rows, said so that a statement which asks for `status = 'pending'` cannot use it: see delivery/claim.ts.
  `DROP INDEX deliveries_due`,
  `CREATE INDEX deliveries_due ON deliveries (next_at) WHERE next_at IS NOT NULL`,
  // Of messages that tell about neither a run nor a batch: what they say.
  `ALTER TABLE messages ADD COLUMN data json`,
  // The sequencer's inbox. Numbering changes no row of `messages`: it would wait for the fan-out, or make it skip what it locks.
  `CREATE TABLE messages_unnumbered (message_id uuid PRIMARY KEY, tenant text NOT NULL)`,
  // Dense from 1 for each tenant. No foreign key: its check would lock the message.
  `CREATE TABLE message_feed (
    tenant text NOT NULL,
    seq bigint NOT NULL CHECK (seq > 0),
    message_id uuid NOT NULL,
    PRIMARY KEY (tenant, seq)
  )`,
  `CREATE FUNCTION messages_inbox() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      INSERT INTO messages_unnumbered (message_id, tenant) SELECT id, tenant FROM made WHERE endpoint_id IS NULL;
      RETURN NULL;
    END $$`,
  `CREATE TRIGGER messages_made AFTER INSERT ON messages REFERENCING NEW TABLE AS made
    FOR EACH STATEMENT EXECUTE FUNCTION messages_inbox()`,
  // The trigger's lock keeps writers out until the commit, so none is missed in between.
  `INSERT INTO messages_unnumbered (message_id, tenant) SELECT id, tenant FROM messages WHERE endpoint_id IS NULL`,
  // Since when no try was answered with a 2xx, and which messages failed since: the first three.
  `ALTER TABLE endpoints
    ADD COLUMN failing_since timestamptz(3),
    ADD COLUMN failed_messages uuid[] NOT NULL DEFAULT '{}',
    ADD CONSTRAINT endpoints_failing CHECK ((failing_since IS NULL) = (failed_messages = '{}'))`,
);
