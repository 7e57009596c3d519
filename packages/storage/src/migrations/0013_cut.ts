/** The one way to shorten an audit trail: from its front, up to a checkpoint, and not what is younger than a month. */
import { inOrder } from "../in-order.ts";

export const cut = inOrder(
  `CREATE OR REPLACE FUNCTION audit_insert_only() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF TG_OP = 'DELETE' AND current_setting('drover.audit_cut', true) = 'on' THEN RETURN NULL; END IF;
      RAISE EXCEPTION 'the audit trail takes inserts only (% on %)', TG_OP, TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
    END $$`,
  // By the rights of the tables' owner: the application's role may not delete.
  `CREATE FUNCTION audit_cut(whose text, up_to bigint) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
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
    END $$`,
  "REVOKE ALL ON FUNCTION audit_cut(text, bigint) FROM PUBLIC",
);
