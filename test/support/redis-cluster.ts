/** A Redis Cluster of real servers for tests: three masters that share the slots, with or without a replica each. */
import { freePort } from "./ports.ts";
import { redisCommand, startRedis, type TestRedis } from "./redis.ts";

export interface TestCluster {
  /** Every node's URL with commas between, as `REDIS_URL` wants it. */
  url: string;
  masters: TestRedis[];
  /** The master of the slot that a key is in, or `undefined` while it has none. */
  masterOf(key: string): Promise<TestRedis | undefined>;
  /** Resolves when every node says that the Cluster is up. */
  up(): Promise<void>;
  stop(): Promise<void>;
}

/** A master is taken for dead after so long. */
const nodeTimeoutMs = 1000;
const slots = 16_384;

export async function startRedisCluster(options: { replicas: boolean }): Promise<TestCluster> {
  const start = async () => {
    const busPort = await freePort();
    const settings = {
      "cluster-enabled": "yes",
      "cluster-node-timeout": nodeTimeoutMs,
      "cluster-port": busPort,
      // However long a replica has not heard of its master, it takes over.
      "cluster-replica-validity-factor": 0,
      "repl-diskless-sync-delay": 0,
    };
    const node = await startRedis({
      args: Object.entries(settings).flatMap(([key, value]) => [`--${key}`, `${value}`]),
    });
    return { ...node, busPort };
  };
  const masters = await Promise.all([start(), start(), start()]);
  const replicas = options.replicas ? await Promise.all([start(), start(), start()]) : [];
  const nodes = [...masters, ...replicas];

  const eventually = async (holds: () => Promise<boolean>) => {
    const until = Date.now() + 20_000;
    while (!(await holds().catch(() => false))) {
      if (Date.now() > until) throw new Error("the Redis Cluster does not come up");
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  };
  const says = async (node: TestRedis, words: string[], what: string) =>
    String(await redisCommand(node.url, ...words)).includes(what);
  const up = () =>
    eventually(async () => {
      const answers = await Promise.all(nodes.map((node) => says(node, ["CLUSTER", "INFO"], "cluster_state:ok")));
      return answers.every(Boolean);
    });

  const [first] = masters;
  for (const node of nodes.slice(1))
    await redisCommand(first!.url, "CLUSTER", "MEET", "127.0.0.1", node.port, node.busPort);
  for (const [index, node] of masters.entries()) {
    const from = Math.ceil((slots * index) / 3);
    await redisCommand(node.url, "CLUSTER", "ADDSLOTSRANGE", from, Math.ceil((slots * (index + 1)) / 3) - 1);
  }
  await up();
  for (const [index, node] of replicas.entries()) {
    const master = String(await redisCommand(masters[index]!.url, "CLUSTER", "MYID"));
    await eventually(() => says(node, ["CLUSTER", "NODES"], master));
    await redisCommand(node.url, "CLUSTER", "REPLICATE", master);
    await eventually(() => says(node, ["INFO", "replication"], "master_link_status:up"));
  }

  return {
    url: nodes.map((node) => node.url).join(","),
    masters,
    up,
    async masterOf(key) {
      for (const asked of nodes) {
        const found = await masterAccordingTo(asked, key).catch(() => undefined);
        if (found !== undefined) return nodes.find((node) => node.port === found);
      }
      return undefined;
    },
    async stop() {
      await Promise.all(nodes.map((node) => node.stop()));
    },
  };
}

/** The port of the slot's master, as one node sees it. Throws when it does not answer, or takes that master for dead. */
async function masterAccordingTo(node: TestRedis, key: string): Promise<number> {
  const slot = (await redisCommand(node.url, "CLUSTER", "KEYSLOT", key)) as number;
  const known = String(await redisCommand(node.url, "CLUSTER", "NODES"))
    .trim()
    .split("\n");
  for (const line of known) {
    // <id> <ip:port@busport> <flags> <master> <ping> <pong> <epoch> <link> <slot> ...
    const [, address, flags, , , , , , ...ranges] = line.split(" ");
    if (!/\bmaster\b/.test(flags!) || /fail/.test(flags!)) continue;
    const holds = ranges.some((range) => {
      const [from, to = from] = range.split("-").map(Number);
      return from! <= slot && slot <= to!;
    });
    if (holds) return Number(/:(\d+)@/.exec(address!)![1]);
  }
  throw new Error(`nobody serves ${key}`);
}
