/** The places BullMQ may keep its jobs, each with a real server of its own that the suite may break. */
import { randomBytes } from "node:crypto";
import { migrateQueue, type QueueConfig, queueConfig } from "@drover/queue";
import pg from "pg";
import { adminQuery, createEmptyDatabase } from "../support/database.ts";
import { startPostgres } from "../support/postgres.ts";
import { redisCommand, redisListen, startRedis } from "../support/redis.ts";

/** A fresh and empty place for one queue. */
export interface Place {
  config: QueueConfig;
  postgresUrl: string;
  /** The same place, seen through another port. */
  through(port: number): { config: QueueConfig; postgresUrl: string };
  /** Deletes everything, of everybody. */
  flush(): Promise<void>;
  /** The jobs that are stored, finished ones too: their ids and what they carry. */
  jobs(): Promise<{ id: string; data: unknown }[]>;
  /** Hears all that signals send, raw. */
  tap(): Promise<Tap>;
  /** A URL for `DATABASE_URL`/`REDIS_URL` in a child process. */
  env: Record<string, string>;
}

interface Tap {
  readonly messages: { channel: string; text: string }[];
  close(): Promise<void>;
}

export interface Server {
  port: number;
  place(): Promise<Place>;
  halt(): Promise<void>;
  /** Kills the server as a power cut would, and starts it again. */
  crash(): Promise<void>;
  restart(): Promise<void>;
  /** While on, it answers questions and refuses every write. */
  refuseWrites(on: boolean): Promise<void>;
  stop(): Promise<void>;
}

/** Never reached: the Postgres of a queue on Redis. */
const noPostgres = "postgres://127.0.0.1:1/none";

export async function startRedisServer(cluster: boolean): Promise<Server> {
  const clusterOfOne = ["--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1"];
  const durable = ["--appendonly", "yes", "--appendfsync", "always"];
  const redis = await startRedis({ args: cluster ? [...durable, ...clusterOfOne] : durable });
  const command = (...args: (string | number)[]) => redisCommand(redis.url, ...args);
  const clusterReady = async () => {
    while (!String(await command("CLUSTER", "INFO")).includes("cluster_state:ok"));
  };
  if (cluster) {
    await command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383);
    await clusterReady();
  }
  const restart = async () => {
    await redis.restart();
    if (cluster) await clusterReady();
  };
  return {
    port: redis.port,
    async place() {
      const prefix = `{t${randomBytes(4).toString("hex")}}`;
      const config = (url: string) => queueConfig.parse({ REDIS_URL: url, DROVER_QUEUE_PREFIX: prefix });
      const url = cluster ? `${redis.url},` : redis.url;
      return {
        config: config(url),
        postgresUrl: noPostgres,
        through: (at) => ({ config: config(`redis://127.0.0.1:${at}`), postgresUrl: noPostgres }),
        async flush() {
          await command("FLUSHALL");
        },
        async jobs() {
          const found = (await command("KEYS", `${prefix}:doorbell:bell-*`)) as string[];
          const keys = found.filter((key) => !key.endsWith(":lock")).sort();
          const data = await Promise.all(keys.map((key) => command("HGET", key, "data")));
          return keys.map((key, index) => ({ id: key.split(":").at(-1)!, data: JSON.parse(data[index] as string) }));
        },
        async tap() {
          const messages: Tap["messages"] = [];
          const listener = await redisListen(redis.url, `${prefix}:signals:*`, (channel, text) => {
            messages.push({ channel: channel.split(":").at(-1)!, text });
          });
          return { messages, close: async () => listener.close() };
        },
        env: { REDIS_URL: url, DROVER_QUEUE_PREFIX: prefix, DATABASE_URL: noPostgres },
      };
    },
    halt: () => redis.kill("SIGTERM"),
    async crash() {
      await redis.kill("SIGKILL");
      await restart();
    },
    restart,
    refuseWrites: async (on) => void (await command("CONFIG", "SET", "min-replicas-to-write", on ? 1 : 0)),
    stop: () => redis.stop(),
  };
}

/** The queue in a database that has its tables. */
export function postgresPlace(url: string): Place {
  const config = queueConfig.parse({});
  const query = async (text: string, values: unknown[] = []) => {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    try {
      return await client.query(text, values);
    } finally {
      await client.end();
    }
  };
  return {
    config,
    postgresUrl: url,
    through: (port) => {
      const other = new URL(url);
      other.port = String(port);
      return { config, postgresUrl: other.href };
    },
    flush: async () => {
      await query("TRUNCATE bullmq.job CASCADE");
    },
    jobs: async () => (await query("SELECT id, data FROM bullmq.job ORDER BY id")).rows,
    async tap() {
      const messages: Tap["messages"] = [];
      const client = new pg.Client({ connectionString: url });
      client.on("error", () => {});
      client.on("notification", ({ channel, payload = "" }) => {
        messages.push({ channel: channel.replace("drover_", ""), text: payload });
      });
      await client.connect();
      for (const channel of ["live", "interest", "bells"]) await client.query(`LISTEN drover_${channel}`);
      return { messages, close: () => client.end() };
    },
    env: { DATABASE_URL: url },
  };
}

async function startPostgresServer(): Promise<Server> {
  const postgres = await startPostgres();
  return {
    port: postgres.port,
    async place() {
      const { url } = await createEmptyDatabase({ server: postgres.url });
      await migrateQueue(url);
      return postgresPlace(url);
    },
    halt: () => postgres.kill("SIGINT"),
    async crash() {
      await postgres.kill("SIGKILL");
      await postgres.restart();
    },
    restart: () => postgres.restart(),
    async refuseWrites(on) {
      await adminQuery(postgres.url, `ALTER SYSTEM SET default_transaction_read_only = ${on ? "on" : "off"}`);
      await adminQuery(postgres.url, "SELECT pg_reload_conf()");
    },
    stop: () => postgres.stop(),
  };
}

export const backends: { name: string; start(): Promise<Server> }[] = [
  { name: "Redis", start: () => startRedisServer(false) },
  { name: "Redis Cluster", start: () => startRedisServer(true) },
  { name: "Postgres", start: startPostgresServer },
];

/** Those before which a proxy can stand: a Cluster tells its clients its own address. */
export const proxiedBackends = backends.filter(({ name }) => name !== "Redis Cluster");
