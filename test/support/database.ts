/**
 * A fresh database per test file, cloned from a template that was migrated once: some ten milliseconds, so nobody shares.
 */
import { randomBytes } from "node:crypto";
import pg from "pg";
import { inject } from "vitest";

/** Name of the migrated database that all others are cloned from. */
export const template = "drover_template";

export interface TestDatabase {
  url: string;
  name: string;
  /** Ends every connection to the database and removes it. */
  drop(): Promise<void>;
}

/** A database with Drover's schema and no rows, on the shared server. */
export function createDatabase(): Promise<TestDatabase> {
  return makeDatabase(inject("postgresUrl"), `t_${randomBytes(6).toString("hex")}`, `TEMPLATE ${template}`);
}

/** A database with nothing in it. `server` (any URL of it) defaults to the shared one. */
export function createEmptyDatabase(options: { server?: string; name?: string } = {}): Promise<TestDatabase> {
  const name = options.name ?? `t_${randomBytes(6).toString("hex")}`;
  return makeDatabase(options.server ?? inject("postgresUrl"), name, "TEMPLATE template0");
}

/** Run one statement on the server's `postgres` database. */
export async function adminQuery(server: string, sql: string): Promise<pg.QueryResult> {
  const url = new URL(server);
  url.pathname = "/postgres";
  const client = new pg.Client({ connectionString: url.href });
  await client.connect();
  try {
    return await client.query(sql);
  } finally {
    await client.end();
  }
}

async function makeDatabase(server: string, name: string, from: string): Promise<TestDatabase> {
  await adminQuery(server, `CREATE DATABASE ${name} ${from}`);
  const url = new URL(server);
  url.pathname = `/${name}`;
  return {
    url: url.href,
    name,
    drop: async () => {
      await adminQuery(server, `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
    },
  };
}
