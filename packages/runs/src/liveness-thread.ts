/**
 * The liveness thread: one direct connection that says once a heartbeat "this worker lives" and hears what it is told. It runs
 * beside the main loop, so that a busy main loop is not taken for death. Talks to `liveness.ts` by messages only.
 */
import { setTimeout as delay } from "node:timers/promises";
import { parentPort, workerData } from "node:worker_threads";
import { uuidv7 } from "@drover/protocol";
import pg from "pg";
import type { FromThread, ThreadData, ToThread } from "./liveness.ts";

const data = workerData as ThreadData;
const confirmed = new BigInt64Array(data.confirmed);
const port = parentPort!;
const tell = (message: FromThread) => port.postMessage(message);
const stopping = new AbortController();
const beatMs = data.leaseMs / 10;
let id = uuidv7();
let registered = false;

port.on("message", (message: ToThread) => {
  if (message === "stop") stopping.abort();
});

while (!stopping.signal.aborted) {
  try {
    await live();
  } catch (error) {
    tell({ type: "down", reason: (error as Error).message });
    await delay(Math.min(1000, beatMs), undefined, { signal: stopping.signal }).catch(() => {});
  }
}
process.exit(0);

/** One connection's life: register or come back, listen, beat until it breaks or we are told to stop. */
async function live(): Promise<void> {
  const client = new pg.Client({
    connectionString: data.url,
    connectionTimeoutMillis: data.leaseMs / 2,
    query_timeout: data.leaseMs / 2,
    keepAlive: true,
    application_name: "drover-liveness",
  });
  const broken = new AbortController();
  client.on("error", (error) => broken.abort(error));
  client.on("notification", (message) => {
    if (message.channel === "drover_control" && message.payload) tell({ type: "cancel", runIds: [message.payload] });
  });
  try {
    await client.connect();
    await client.query("LISTEN drover_control");
    if (!registered) await register(client);
    while (!stopping.signal.aborted) {
      broken.signal.throwIfAborted();
      await beat(client);
      await delay(beatMs, undefined, { signal: AbortSignal.any([stopping.signal, broken.signal]) }).catch(() => {});
    }
    // The row goes last: whatever this worker could not hand over is free for the others at once.
    await client.query("DELETE FROM workers WHERE id = $1", [id]);
  } finally {
    await client.end().catch(() => {});
  }
}

async function register(client: pg.Client): Promise<void> {
  await client.query(
    "INSERT INTO workers (id, host, pid, slots, lease_ms) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
    [id, data.host, data.pid, data.slots, data.leaseMs],
  );
  registered = true;
  tell({ type: "registered", id });
}

async function beat(client: pg.Client): Promise<void> {
  const sentAt = process.hrtime.bigint();
  const { rows } = await client.query<{ owned: string[]; cancelled: string[] }>(
    `WITH alive AS (UPDATE workers SET heartbeat_at = clock_timestamp() WHERE id = $1 RETURNING id)
     SELECT coalesce(array_agg(r.id || ' ' || r.epoch) FILTER (WHERE r.id IS NOT NULL), '{}') AS owned,
            coalesce(array_agg(r.id) FILTER (WHERE r.cancel_requested_at IS NOT NULL), '{}') AS cancelled
     FROM alive LEFT JOIN runs r ON r.worker = alive.id AND r.status = 'running' GROUP BY alive.id`,
    [id],
  );
  const row = rows[0];
  if (row) {
    Atomics.store(confirmed, 0, sentAt);
    tell({ type: "beat", sentAt, ...row });
    return;
  }
  // Declared dead while away: what was owned is somebody else's. Start anew under another id.
  tell({ type: "dead", id });
  id = uuidv7();
  await register(client);
}
