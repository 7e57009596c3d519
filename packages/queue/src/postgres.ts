/**
 * BullMQ on the same Postgres, in the schema `bullmq`: for installations without Redis. Connections are direct ones: BullMQ
 * sets `search_path` at connect and listens, which a transaction pooler does not carry.
 */
import { faultOf } from "@drover/storage";
import {
  PostgresConnection,
  type PostgresPoolConfig,
  PostgresQueueBackend,
  type QueueBaseOptions,
  runMigrations,
} from "bullmq";
import pg from "pg";
import type { Backend, Connected } from "./backend.ts";

const schema = "bullmq";
/** BullMQ's own text for a lost connection: the one it waits and tries again for. */
const connectionClosed = "Connection is closed.";

/**
 * Make or update BullMQ's tables (schema `bullmq`). Safe when many start at once; each migration commits whole or not at all.
 * `postgresUrl` must not be a transaction pooler.
 */
export async function migrateQueue(postgresUrl: string): Promise<void> {
  const client = new pg.Client({ connectionString: postgresUrl });
  await client.connect();
  try {
    await runMigrations(client, schema);
  } finally {
    await client.end();
  }
}

/**
 * BullMQ's connection with two repairs. It remembers a first connect that failed, for good: here the next statement tries
 * again. And it takes a server that restarts for a fault of the statement, and asks again without a pause: here it is told
 * that the connection is closed, which it knows to wait for.
 */
class SteadyConnection extends PostgresConnection {
  #ready: Promise<void> | undefined;

  constructor(options: PostgresPoolConfig) {
    super(options);
    const query = this.pool.query.bind(this.pool);
    this.pool.query = (async (text: string, values?: unknown[]) => {
      try {
        return await query(text, values);
      } catch (error) {
        throw this.#translate(error);
      }
    }) as typeof this.pool.query;
  }

  override waitUntilReady(): Promise<void> {
    this.#ready ??= super.waitUntilReady().catch((error) => {
      this.#ready = undefined;
      (this as unknown as { readyPromise: undefined }).readyPromise = undefined;
      throw this.#translate(error);
    });
    return this.#ready;
  }

  #translate(error: unknown): unknown {
    if (faultOf(error) !== "unavailable" && (error as Error).message !== "Query read timeout") return error;
    if (this.listenerCount("error") > 0) this.emit("error", error);
    return new Error(connectionClosed, { cause: error });
  }
}

/** A worker's wait ends after 5 s at the latest, should a NOTIFY get lost. BullMQ would wait for an hour. */
class SteadyBackend extends PostgresQueueBackend {
  override get maximumBlockTimeout(): number {
    return 5;
  }
}

export function postgresBackend(postgresUrl: string): Backend {
  let producerConnection: PostgresConnection | undefined;
  const connected = (pool: pg.PoolConfig): Connected => ({
    connection: {
      connectionString: postgresUrl,
      schema,
      keepAlive: true,
      keepAliveInitialDelayMillis: 10_000,
      application_name: "drover queue",
      // Longer than an idle worker's wait, so that one stays; short, because idle ones may be dead without a word.
      idleTimeoutMillis: 10_000,
      ...pool,
    } as Connected["connection"],
    factory: (name, options, kind) => {
      const postgresOptions = options as unknown as QueueBaseOptions<PostgresPoolConfig>;
      const connection = new SteadyConnection(postgresOptions.connection);
      const { name: workerName } = options as { name?: string };
      const listener = kind?.withBlockingConnection ? `${name}${workerName ? `:w:${workerName}` : ""}` : undefined;
      const backend = new SteadyBackend(connection, name, postgresOptions, true, listener);
      if (kind?.withBlockingConnection !== true) producerConnection = connection;
      return backend;
    },
    // BullMQ ends the pool and the LISTEN connection, which stands beside the pool.
    release: async () => {},
  });
  return {
    name: "postgres",
    producer: connected({ max: 3, connectionTimeoutMillis: 1000, query_timeout: 2000 }),
    worker: () => connected({ max: 8, connectionTimeoutMillis: 5000, query_timeout: 5000 }),
    assertConnected: () => {},
    async assertWritable() {
      const { rows } = await producerConnection!.pool.query(
        "SELECT current_setting('transaction_read_only') AS read_only",
      );
      if ((rows as { read_only: string }[])[0]?.read_only === "on") throw new Error("Postgres is read-only");
    },
  };
}
