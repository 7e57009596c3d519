/** Signals over Redis pub/sub, single node or Cluster: one connection that sends, one that listens. */
import type { QueueConfig } from "./config.ts";
import { connectRedis } from "./redis.ts";
import { type Channel, unpackMessage, type Wire, type WireEvents } from "./signals-wire.ts";

export function redisWire(config: QueueConfig, events: WireEvents, onError: (error: Error) => void): Wire {
  const base = `${config.DROVER_QUEUE_PREFIX}:signals:`;
  const sender = connectRedis(config, "fast", onError);
  const listener = connectRedis(config, "patient", onError);
  const channels = new Set<Channel>();
  let times = 0;

  async function subscribe(): Promise<void> {
    if (channels.size > 0) await listener.subscribe(...[...channels].map((channel) => base + channel));
  }
  listener.on("ready", () => {
    subscribe().then(() => events.connected(times++ > 0), onError);
  });
  listener.on("message", (name: string, text: string) => {
    const message = unpackMessage(text);
    if (message) events.message(name.slice(base.length) as Channel, message.origin, message.parts);
  });

  return {
    maxBytes: 64_000,
    isConnected: () => sender.status === "ready" && listener.status === "ready",
    subscribe(channel) {
      if (channels.has(channel)) return;
      channels.add(channel);
      if (listener.status === "ready") subscribe().catch(onError);
    },
    async publish(channel, messages) {
      if (sender.status !== "ready") throw new Error("Redis is away");
      await Promise.all(messages.map((message) => sender.publish(base + channel, message)));
    },
    reset: () => listener.disconnect(true),
    async close() {
      sender.disconnect();
      listener.disconnect();
    },
  };
}
