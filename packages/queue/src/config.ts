import { z } from "zod";

/** One or more `redis://` or `rediss://` nodes; user, password and scheme of the first hold for nodes that name none. */
const redisUrl = z.string().superRefine((value, context) => {
  try {
    redisNodes(value);
  } catch {
    context.addIssue({
      code: "custom",
      message: "must be redis://… or rediss://…, for a Cluster several with commas between",
    });
  }
});

/** Where wake-ups and live news travel. */
export const queueConfig = z
  .object({
    REDIS_URL: redisUrl
      .optional()
      .describe(
        "Redis or Valkey for wake-ups; several nodes, comma-separated, for a Cluster (default: BullMQ on Postgres)",
      ),
    DROVER_QUEUE_PREFIX: z
      .string()
      .regex(/^[\w.{}-]+$/, "may hold letters, digits, _ . - { }")
      .default("{drover}")
      .describe("prefix of all keys and channels in Redis; braces keep them in one Cluster slot"),
  })
  .refine((config) => !config.REDIS_URL?.includes(",") || /\{[^}]+\}/.test(config.DROVER_QUEUE_PREFIX), {
    path: ["DROVER_QUEUE_PREFIX"],
    message: "needs a part in {braces} on a Redis Cluster",
  });
export type QueueConfig = z.infer<typeof queueConfig>;

export interface RedisNode {
  host: string;
  port: number;
  username: string | undefined;
  password: string | undefined;
  tls: boolean;
}

/** The nodes of a `REDIS_URL`. A comma, also a trailing one, means Cluster. Throws on anything that is no such URL. */
export function redisNodes(value: string): { nodes: [RedisNode, ...RedisNode[]]; cluster: boolean } {
  const parts = value.split(",").map((part) => part.trim());
  const scheme = /^rediss?:\/\//.exec(parts[0] ?? "")?.[0];
  if (!scheme) throw new TypeError("no Redis URL");
  const [first, ...rest] = parts
    .filter((part) => part !== "")
    .map((part) => {
      const url = new URL(part.includes("://") ? part : scheme + part);
      if (!/^rediss?:$/.test(url.protocol) || !url.hostname) throw new TypeError("no Redis URL");
      return {
        host: url.hostname.replace(/^\[|\]$/g, ""),
        port: url.port ? Number(url.port) : 6379,
        username: decodeURIComponent(url.username) || undefined,
        password: decodeURIComponent(url.password) || undefined,
        tls: url.protocol === "rediss:",
      };
    });
  if (!first) throw new TypeError("no Redis URL");
  const nodes = rest.map((node) => ({
    ...node,
    username: node.username ?? first.username,
    password: node.password ?? first.password,
  }));
  return { nodes: [first, ...nodes], cluster: parts.length > 1 };
}
