/** Signals over LISTEN and NOTIFY, on one connection that a transaction pooler must not stand before. */
import pg from "pg";
import { type Channel, unpackMessage, type Wire, type WireEvents } from "./signals-wire.ts";

const base = "drover_";
const retryMs = { first: 100, most: 2000 };

export function postgresWire(directUrl: string, events: WireEvents, onError: (error: Error) => void): Wire {
  const channels = new Set<Channel>();
  let client: pg.Client | undefined;
  let pauseMs = retryMs.first;
  let timer: NodeJS.Timeout | undefined;
  let times = 0;
  let closed = false;
  let turn: Promise<unknown> = Promise.resolve();

  /** One statement at a time: pg gives up queueing them itself. */
  function query(on: pg.Client, text: string, values?: unknown[]): Promise<unknown> {
    const answer = turn.then(() => on.query(text, values));
    turn = answer.catch(() => {});
    return answer;
  }

  async function connect(): Promise<void> {
    const fresh = new pg.Client({
      connectionString: directUrl,
      application_name: "drover signals",
      keepAlive: true,
      connectionTimeoutMillis: 5000,
      query_timeout: 2000,
      // A notification is not worth waiting for the disk.
      options: "-c synchronous_commit=off",
    });
    fresh.on("error", (error) => lost(fresh, error));
    fresh.on("end", () => lost(fresh));
    fresh.on("notification", ({ channel, payload = "" }) => {
      const message = unpackMessage(payload);
      if (message) events.message(channel.slice(base.length) as Channel, message.origin, message.parts);
    });
    try {
      await fresh.connect();
      for (const channel of channels) await query(fresh, `LISTEN ${base}${channel}`);
    } catch (error) {
      retry(error as Error);
      void fresh.end().catch(() => {});
      return;
    }
    if (closed) return void fresh.end().catch(() => {});
    client = fresh;
    // Channels that were asked for while it connected.
    for (const channel of channels) listen(fresh, channel);
    pauseMs = retryMs.first;
    events.connected(times++ > 0);
  }
  function listen(on: pg.Client, channel: Channel): void {
    query(on, `LISTEN ${base}${channel}`).catch((error) => lost(on, error));
  }
  function lost(which: pg.Client, error?: Error): void {
    if (client !== which) return;
    client = undefined;
    void which.end().catch(() => {});
    retry(error ?? new Error("the connection for signals ended"));
  }
  function retry(error: Error): void {
    if (closed) return;
    onError(error);
    clearTimeout(timer);
    timer = setTimeout(connect, pauseMs * (0.5 + Math.random() / 2));
    pauseMs = Math.min(pauseMs * 2, retryMs.most);
  }
  void connect();

  return {
    // NOTIFY takes less than 8,000.
    maxBytes: 7900,
    isConnected: () => client !== undefined,
    subscribe(channel) {
      if (channels.has(channel)) return;
      channels.add(channel);
      if (client) listen(client, channel);
    },
    async publish(channel, messages) {
      const on = client;
      if (!on) throw new Error("Postgres is away");
      try {
        await query(on, "SELECT pg_notify($1, message) FROM unnest($2::text[]) AS message", [base + channel, messages]);
      } catch (error) {
        lost(on, error as Error);
        throw error;
      }
    },
    reset() {
      if (client) lost(client);
    },
    async close() {
      closed = true;
      clearTimeout(timer);
      const last = client;
      client = undefined;
      await last?.end().catch(() => {});
    },
  };
}
