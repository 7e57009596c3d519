/** `docs/schema.sql`: what a freshly migrated database holds, from the server's own catalogue. Partitions are left out, which come with the months. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { migrate, startEmbeddedPostgres } from "@drover/storage";
import pg from "pg";

export const schemaPath = new URL("../docs/schema.sql", import.meta.url);

const ours = `n.nspname = current_schema() AND NOT c.relispartition AND c.relname NOT LIKE 'kysely%'`;

/** Of tables with their constraints, then indexes, functions and triggers, each kind by name: `name` and the statement without its semicolon. */
const queries = [
  `SELECT c.relname AS name, 'CREATE TABLE ' || c.relname || E' (\\n  ' || concat_ws(E',\\n  ',
     (SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
        || CASE WHEN a.attidentity <> '' THEN ' GENERATED ' || CASE a.attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END || ' AS IDENTITY' ELSE '' END
        || CASE WHEN d.oid IS NULL THEN '' WHEN a.attgenerated <> '' THEN ' GENERATED ALWAYS AS (' || pg_get_expr(d.adbin, d.adrelid) || ')'
                ELSE ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid) END
        || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END, E',\\n  ' ORDER BY a.attnum)
      FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
     (SELECT string_agg('CONSTRAINT ' || k.conname || ' ' || pg_get_constraintdef(k.oid), E',\\n  ' ORDER BY k.contype DESC, k.conname)
      FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype <> 'n'))
     || E'\\n)' || coalesce(' PARTITION BY ' || pg_get_partkeydef(c.oid), '') || coalesce(' WITH (' || array_to_string(c.reloptions, ', ') || ')', '') AS sql
   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND ${ours} ORDER BY 1`,
  `SELECT i.relname AS name, replace(pg_get_indexdef(i.oid), current_schema() || '.', '') AS sql
   FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE ${ours} AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.oid) ORDER BY 1`,
  `SELECT p.proname AS name, rtrim(replace(pg_get_functiondef(p.oid), current_schema() || '.', ''), E'\\n') AS sql
   FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = current_schema() ORDER BY 1, p.oid`,
  `SELECT c.relname || ' ' || t.tgname AS name, replace(pg_get_triggerdef(t.oid), current_schema() || '.', '') AS sql
   FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE NOT t.tgisinternal AND ${ours} ORDER BY 1`,
];

/** The page of the migrated database at `url`. */
export async function schemaPage(url: string): Promise<string> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    const statements: string[] = [];
    for (const query of queries) {
      const { rows } = await client.query<{ sql: string }>(query);
      statements.push(...rows.map(({ sql }) => `${sql};`));
    }
    const head =
      "-- Written by `npm run docs` from packages/storage/src/migrations; do not edit. Partitions of run_events are left out.";
    return `${[head, ...statements].join("\n\n")}\n`;
  } finally {
    await client.end();
  }
}

/** The page of a new database, on a server that is started for it. */
export async function newSchemaPage(): Promise<string> {
  const dataDir = await mkdtemp(join(tmpdir(), "drover-schema-"));
  const server = await startEmbeddedPostgres({ dataDir, settings: { fsync: "off" } });
  try {
    await migrate(server.url);
    return await schemaPage(server.url);
  } finally {
    await server.stop();
    await rm(dataDir, { recursive: true, force: true });
  }
}
