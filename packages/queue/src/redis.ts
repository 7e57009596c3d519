/** BullMQ on Redis or Valkey, single node or Cluster. */
import { addSecret } from "@drover/telemetry";
import { Cluster, type ClusterOptions, Redis, type RedisOptions } from "ioredis";
import type { Backend, Connected } from "./backend.ts";
import { type QueueConfig, redisNodes } from "./config.ts";

export type RedisClient = Redis | Cluster;

/**
 * `fast`: a command fails within a second when the server is away, and nothing waits in memory.
 * `patient`: commands wait until the server is back; a connection that dropped without a word is noticed after 15 s.
 */
type Temper = "fast" | "patient";

const tempers: Record<Temper, RedisOptions> = {
  fast: {
    commandTimeout: 1000,
    maxRetriesPerRequest: 0,
    autoResendUnfulfilledCommands: false,
    enableOfflineQueue: false,
    socketTimeout: 5000,
  },
  patient: { maxRetriesPerRequest: null, socketTimeout: 15_000 },
};

/** A client for `REDIS_URL` that reconnects by itself, without end. `onError` hears every failed attempt. */
export function connectRedis(config: QueueConfig, temper: Temper, onError: (error: Error) => void): RedisClient {
  const { nodes, cluster } = redisNodes(config.REDIS_URL!);
  for (const node of nodes) addSecret(node.password);
  const retry = (times: number) => Math.min(50 * 2 ** Math.min(times, 10), 1000);
  const options: RedisOptions = { ...tempers[temper], connectTimeout: 5000, keepAlive: 10_000 };
  const [{ username, password, tls }] = nodes;
  const client = cluster
    ? new Cluster(
        nodes.map(({ host, port }) => ({ host, port })),
        {
          clusterRetryStrategy: retry,
          enableOfflineQueue: options.enableOfflineQueue ?? true,
          redisOptions: { ...options, username, password, tls: tls ? {} : undefined },
          // Managed Clusters announce addresses, their certificates hold names.
          ...(tls && { dnsLookup: (address, callback) => callback(null, address) }),
        } satisfies ClusterOptions,
      )
    : // The whole URL, because ioredis knows more parts of it: the database number, `?family=6`.
      new Redis(config.REDIS_URL!, { ...options, retryStrategy: retry, reconnectOnError: isDemoted });
  client.on("error", onError);
  return client;
}

/** After a fail-over behind one name, old connections stay with the server that is a replica now: a new one finds the master. */
function isDemoted(error: Error): boolean {
  return error.message.startsWith("READONLY");
}

export function redisBackend(config: QueueConfig, onError: (error: Error) => void): Backend {
  const prefix = config.DROVER_QUEUE_PREFIX;
  const connected = (client: RedisClient): Connected => ({
    connection: client,
    prefix,
    factory: undefined,
    release: async () => client.disconnect(),
  });
  const client = connectRedis(config, "fast", onError);
  return {
    name: "redis",
    producer: connected(client),
    worker: () => connected(connectRedis(config, "patient", onError)),
    assertConnected: () => {
      if (client.status !== "ready") throw new Error(`Redis is away (${client.status})`);
    },
    async assertWritable() {
      await client.set(`${prefix}:probe`, "", "PX", 1000);
    },
  };
}
