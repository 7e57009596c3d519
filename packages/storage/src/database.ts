/**
 * The one way to Postgres: a pool, transactions, and what its errors mean. Parsers are set here and nowhere else: `bigint`
 * and `numeric` become numbers (money is integer nano-USD, exact up to nine million dollars), times become `Date`.
 */
import type { Logger } from "@drover/telemetry";
import pg from "pg";
import { isStale } from "./prepared.ts";
import { SilencePool } from "./silence.ts";

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
  /** May be a transaction pooler. */
  url: string;
  /** The server itself, where `url` is a pooler: asked whether it answers (default `url`). */
  directUrl?: string;
  logger: Logger;
  /** Connections at most (default 10). */
  max?: number;
  /** How long a request waits for a connection at most, ms (default 5,000). */
  connectTimeoutMs?: number;
  /** How long it waits while all connections are taken and none of them gets an answer, ms (default: no shorter). */
  stuckAfterMs?: number;
  /** How long a statement's answer is waited for while the server answers others, ms (default 60,000). */
  answerTimeoutMs?: number;
  applicationName?: string;
  /** Statements that come again and again are kept by the server, parsed and planned (default true). Not all poolers allow it. */
  prepared?: boolean;
}

/** Kept open when idle: others that take the server's last connections do not lock this process out. */
const keptOpen = 2;

/**
 * Opens a pool; no connection is made before the first statement. While Postgres does not answer at all, statements fail within a second, and
 * new ones at once (`silence.ts`). End it with `pool.end()`.
 */
export function openPool(options: DatabaseOptions): Pool {
  const max = options.max ?? 10;
  const pool = new SilencePool({
    logger: options.logger,
    stuckAfterMs: options.stuckAfterMs,
    prepared: options.prepared ?? true,
    directUrl: options.directUrl ?? options.url,
    connectionString: options.url,
    max,
    min: Math.min(keptOpen, max),
    connectionTimeoutMillis: options.connectTimeoutMs ?? 5000,
    query_timeout: options.answerTimeoutMs ?? 60_000,
    idleTimeoutMillis: 30_000,
    keepAlive: true,
    // Without it, the system's two hours.
    keepAliveInitialDelayMillis: 10_000,
    application_name: options.applicationName ?? "drover",
    types,
  });
  pool.on("error", (error) => options.logger.warn({ err: error }, "idle Postgres connection lost"));
  return pool;
}

/**
 * A transaction whose client is cut off keeps its locks until the server hears of it, which takes hours. Set in each transaction, because a
 * transaction pooler takes no settings with the connection.
 */
const begin = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '15s'";

/**
 * Runs `body` in one transaction: commits when it resolves, rolls back when it throws. Rejects also when `body` swallowed the
 * failure of a statement, because nothing of it is committed then. The server ends it when nothing is sent for 15 s.
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
    await client.query(begin);
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

/** Thrown by `bounded`: the statements took longer than they may. */
export class TooLongError extends Error {
  override readonly name = "TooLongError";
}

/** Reads in one transaction whose statements are ended by the server after `ms`. @throws TooLongError then */
export async function bounded<T>(pool: Pool, ms: number, read: (tx: Transaction) => Promise<T>): Promise<T> {
  return await transaction(pool, async (tx) => {
    await tx.query(`SET LOCAL statement_timeout = ${ms}`);
    try {
      return await read(tx);
    } catch (error) {
      const { code, message } = error as { code?: string; message?: string };
      // Cancelled by whom, only the text says.
      if (code === "57014" && message?.includes("statement timeout"))
        throw new TooLongError(`it took longer than ${ms} ms`, { cause: error });
      throw error;
    }
  });
}

/** `conflict`: repeat as it is. `unavailable`: the server or the way to it is gone; whether a commit took place is unknown. `data`: the statement's own values. */
export type Fault = "conflict" | "unavailable" | "data" | "other";

const unavailableCodes = new Set([
  // Cancelled, by an administrator or a time limit of the server.
  "57014",
  // Read-only, after a fail-over.
  "25006",
  // Ended for being idle in a transaction, or for its length.
  "25P03",
  "25P04",
  "ECONNREFUSED",
  "ECONNRESET",
  "ECONNABORTED",
  "EPIPE",
  "EHOSTUNREACH",
  "EHOSTDOWN",
  "ENETUNREACH",
  "ENETDOWN",
  "ETIMEDOUT",
  "ENOTFOUND",
  "EAI_AGAIN",
  "ENOENT",
]);

/** What an error of pg means for the one who sent the statement. Source: PostgreSQL's appendix A, error codes. */
export function faultOf(error: unknown): Fault {
  if (isStale(error)) return "conflict";
  const code = (error as { code?: unknown } | undefined | null)?.code;
  if (typeof code === "string") {
    if (code === "40P01" || code === "40001" || code === "55P03") return "conflict";
    // Class 53: out of connections, memory or disk. 57P: shutting down, crashed, starting. 58: the server's own input and output.
    if (unavailableCodes.has(code) || /^(08|53|57P|58)/.test(code)) return "unavailable";
    // Class 54: the value is too large or too deep.
    if (/^(22|23|54)/.test(code)) return "data";
  }
  const message = error instanceof Error ? error.message : "";
  if (
    /Connection terminated|connection timeout|timeout expired|timeout exceeded when trying to connect|Client has encountered a connection error|Client was closed|Query read timeout|error establishing an SSL connection/i.test(
      message,
    )
  )
    return "unavailable";
  if (error instanceof AggregateError)
    return error.errors.some((inner) => faultOf(inner) === "unavailable") ? "unavailable" : "other";
  return "other";
}
