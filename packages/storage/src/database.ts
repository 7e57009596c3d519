/**
 * The one way to Postgres: a pool, transactions, and what its errors mean. Parsers are set here and nowhere else: `bigint`
 * and `numeric` become numbers (money is integer nano-USD, exact up to nine million dollars), times become `Date`.
 */
import type { Logger } from "@drover/telemetry";
import pg from "pg";

const types: pg.CustomTypesConfig = {
  getTypeParser(oid, format) {
    if (oid === pg.types.builtins.INT8 || oid === pg.types.builtins.NUMERIC) return Number;
    return pg.types.getTypeParser(oid, format);
  },
};

/** Anything a statement can be sent to: the pool (a statement of its own) or a client inside a transaction. */
export type Queryable = Pick<pg.Pool, "query">;
export type Transaction = pg.PoolClient;
export type Pool = pg.Pool;

export interface DatabaseOptions {
  url: string;
  logger: Logger;
  /** Connections at most (default 10). */
  max?: number;
  /** How long a request waits for a connection, ms (default 5,000). */
  connectTimeoutMs?: number;
  /** How long a statement's answer is waited for, ms (default 60,000): a connection that fell silent says nothing by itself. */
  answerTimeoutMs?: number;
  applicationName?: string;
}

/** Opens a pool; no connection is made before the first statement. End it with `pool.end()`. */
export function openPool(options: DatabaseOptions): Pool {
  const pool = new pg.Pool({
    connectionString: options.url,
    max: options.max ?? 10,
    connectionTimeoutMillis: options.connectTimeoutMs ?? 5000,
    query_timeout: options.answerTimeoutMs ?? 60_000,
    idleTimeoutMillis: 30_000,
    keepAlive: true,
    application_name: options.applicationName ?? "drover",
    types,
  });
  pool.on("error", (error) => options.logger.warn({ err: error }, "idle Postgres connection lost"));
  return pool;
}

/**
 * Runs `body` in one transaction: commits when it resolves, rolls back when it throws. Rejects also when `body` swallowed the
 * failure of a statement, because nothing of it is committed then.
 */
export async function transaction<T>(pool: Pool, body: (tx: Transaction) => Promise<T>): Promise<T> {
  const client = await pool.connect();
  let broken: Error | undefined;
  // Without a listener a connection that is lost between two statements would end the process.
  const onLost = (error: Error) => {
    broken = error;
  };
  client.on("error", onLost);
  try {
    await client.query("BEGIN");
    const result = await body(client);
    const { command } = await client.query("COMMIT");
    if (command !== "COMMIT") throw new Error("nothing was committed: a statement of the transaction had failed");
    return result;
  } catch (error) {
    if (faultOf(error) === "unavailable") broken = error as Error;
    if (!broken) await client.query("ROLLBACK").catch(onLost);
    throw error;
  } finally {
    client.off("error", onLost);
    client.release(broken);
  }
}

/** `conflict`: repeat as it is. `unavailable`: the server or the way to it is gone; whether a commit took place is unknown. `data`: the statement's own values. */
export type Fault = "conflict" | "unavailable" | "data" | "other";

const unavailableCodes = new Set([
  "57P01",
  "57P02",
  "57P03",
  "25006",
  "ECONNREFUSED",
  "ECONNRESET",
  "EPIPE",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ETIMEDOUT",
  "ENOTFOUND",
  "EAI_AGAIN",
  "ENOENT",
]);

/** What an error of pg means for the one who sent the statement. Source: PostgreSQL's appendix A, error codes. */
export function faultOf(error: unknown): Fault {
  const code = (error as { code?: unknown } | undefined | null)?.code;
  if (typeof code === "string") {
    if (code === "40P01" || code === "40001" || code === "55P03") return "conflict";
    // Class 53: out of connections, memory or disk. Class 54: the value is too large or too deep.
    if (unavailableCodes.has(code) || /^(08|53)/.test(code)) return "unavailable";
    if (/^(22|23|54)/.test(code)) return "data";
  }
  const message = error instanceof Error ? error.message : "";
  if (
    /Connection terminated|connection timeout|timeout exceeded when trying to connect|Client has encountered a connection error|Client was closed|Query read timeout/i.test(
      message,
    )
  )
    return "unavailable";
  if (error instanceof AggregateError)
    return error.errors.some((inner) => faultOf(inner) === "unavailable") ? "unavailable" : "other";
  return "other";
}
