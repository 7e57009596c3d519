/** `drover keys`: makes, lists and revokes API keys in whichever database is meant. */
import { createKey, listKeys, revokeKey } from "@drover/api";
import { DroverError } from "@drover/protocol";
import { isMigrated, migrate, openPool, type Pool } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { DataDir } from "../data-dir.ts";
import { CliError, exitCodes } from "../exit.ts";
import { oneLine, paint, table } from "../text.ts";
import { databaseTrouble, keepDatabase } from "./database.ts";

interface KeyOptions {
  dataDir?: string;
  json?: boolean;
}

export async function create(
  options: KeyOptions & { tenant: string; role: Parameters<typeof createKey>[1]["role"]; name?: string },
): Promise<number> {
  const { tenant, role, name } = options;
  const made = await withDatabase(options, (pool) =>
    createKey(pool, { tenant, role, ...(name !== undefined && { name }) }).catch((error) => {
      throw error instanceof DroverError ? new CliError(exitCodes.usage, `${error.code}: ${error.message}`) : error;
    }),
  );
  if (options.json) printJson(made);
  else {
    print(paint("yellow", made.key));
    process.stderr.write(`${made.id}, ${role} of tenant ${tenant}; the key is shown this once\n`);
  }
  return exitCodes.done;
}

export async function list(options: KeyOptions & { tenant?: string }): Promise<number> {
  const keys = await withDatabase(options, (pool) => listKeys(pool, options.tenant));
  const rows = keys.map(({ id, tenant, role, name, createdAt, revokedAt }) => ({
    id,
    tenant,
    role,
    name,
    created_at: createdAt.toISOString(),
    revoked_at: revokedAt?.toISOString() ?? null,
  }));
  if (options.json) printJson({ data: rows });
  else if (rows.length === 0) print("no keys");
  else
    print(
      ...table([
        ["ID", "TENANT", "ROLE", "CREATED", "REVOKED", "NAME"],
        ...rows.map((row) => [row.id, row.tenant, row.role, row.created_at, row.revoked_at ?? "-", oneLine(row.name)]),
      ]),
    );
  return exitCodes.done;
}

export async function revoke(id: string, options: KeyOptions): Promise<number> {
  const done = await withDatabase(options, (pool) => revokeKey(pool, id));
  if (!done) throw new CliError(exitCodes.notFound, `there is no key ${id}; \`drover keys list\` shows them`);
  if (options.json) printJson({ id, revoked: true });
  else print(`${id} is revoked`);
  return exitCodes.done;
}

/** Runs `body` over the database that is meant: see `drover keys --help`. */
export async function withDatabase<T>(options: { dataDir?: string }, body: (pool: Pool) => Promise<T>): Promise<T> {
  const dataDir = new DataDir(options.dataDir);
  const url = process.env.DATABASE_URL || (await dataDir.recorded())?.database_url;
  const database = await keepDatabase({ url, dataDir });
  const logger = createLogger({ name: "drover", level: "silent" });
  const pool = openPool({ url: database.url, logger, max: 1 });
  try {
    if (database.embedded) await migrate(database.url);
    else if (!(await isMigrated(pool)))
      throw new CliError(exitCodes.failed, "the database is not at this version's schema; run `drover migrate` first");
    return await body(pool);
  } catch (error) {
    throw isDatabaseError(error) ? databaseTrouble(database.url, error) : error;
  } finally {
    await pool.end();
    await database.stop();
  }
}

/** Of Postgres (five characters) or of the way to it. */
function isDatabaseError(error: unknown): boolean {
  const { code } = error as { code?: unknown };
  return error instanceof AggregateError || (typeof code === "string" && /^([0-9A-Z]{5}|E[A-Z]+)$/.test(code));
}

const print = (...lines: string[]): void => void process.stdout.write(`${lines.join("\n")}\n`);
const printJson = (value: unknown): void => print(JSON.stringify(value, null, 2));
