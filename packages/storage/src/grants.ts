/** What the application's database role may do when it is not the one that owns the tables: everything it needs, and to the audit trail only inserts and cuts of what is old. */
import pg from "pg";

/** On the audit tables, by table; on every other one: SELECT, INSERT, UPDATE, DELETE. */
const audit = {
  audit_entries: "SELECT, INSERT",
  audit_chain: "SELECT, INSERT",
  audit_checkpoints: "SELECT, INSERT",
  audit_unchained: "SELECT, INSERT, DELETE",
};
/** Of the migrations, which only their owner runs. */
const readOnly = ["kysely_migration", "kysely_migration_lock"];

/**
 * Lets `role` do what the processes need, in Drover's schema and in `schemas` besides (BullMQ's). Idempotent, one transaction; run it
 * after each migration, as the owner of the tables.
 * @throws Error when the role does not exist, or when grants cannot bind it: a superuser, or one that has the owner's rights
 */
export async function grantAppRole(url: string, role: string, schemas: readonly string[] = []): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    const { rows } = await client.query<{ unbound: boolean; own: string }>(
      `SELECT r.rolsuper OR pg_has_role(r.oid, c.relowner, 'MEMBER') AS unbound, current_schema() AS own
       FROM pg_roles r, pg_class c WHERE r.rolname = $1 AND c.oid = 'audit_entries'::regclass`,
      [role],
    );
    if (!rows[0]) throw new Error(`there is no role "${role}"; make it first: CREATE ROLE … LOGIN PASSWORD '…'`);
    if (rows[0].unbound)
      throw new Error(`role "${role}" is a superuser or owns the tables, so grants cannot bind it; use another one`);
    const to = client.escapeIdentifier(role);
    const statements = [rows[0].own, ...schemas].flatMap((name) => {
      const schema = client.escapeIdentifier(name);
      return [
        `GRANT USAGE ON SCHEMA ${schema} TO ${to}`,
        `GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA ${schema} TO ${to}`,
        `GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA ${schema} TO ${to}`,
      ];
    });
    for (const [table, rights] of [...Object.entries(audit), ...readOnly.map((table) => [table, "SELECT"])])
      statements.push(`REVOKE ALL ON ${table} FROM ${to}`, `GRANT ${rights} ON ${table} TO ${to}`);
    statements.push(`GRANT EXECUTE ON FUNCTION audit_cut(text, bigint) TO ${to}`);
    await client.query(["BEGIN", ...statements, "COMMIT"].join(";\n"));
  } finally {
    await client.end();
  }
}
