/** The worker's own port: alive, ready, metrics. Off unless `WORKER_PORT` is set. */
import { timingSafeEqual } from "node:crypto";
import type { WakeQueue } from "@drover/queue";
import type { RunWorker } from "@drover/runs";
import { collectProcessMetrics, type Logger, metrics, metricsContentType, metricsText } from "@drover/telemetry";
import { fastify } from "fastify";

export interface PortOptions {
  port: number;
  host: string;
  metricsToken: string | undefined;
  worker: RunWorker;
  queue: WakeQueue;
  logger: Logger;
}

/** Listens and returns the address. Throws when the port is busy. */
export async function startPort(options: PortOptions): Promise<{ url: string; close(): Promise<void> }> {
  const { worker, queue, metricsToken } = options;
  const app = fastify({ logger: false });
  collectProcessMetrics();
  app.get("/health", () => ({ status: "ok" }));
  app.get("/ready", (_request, reply) => {
    if (worker.healthy) return { status: "ready" };
    return reply.code(503).send({ status: "not_ready", reasons: ["the liveness connection to Postgres is down"] });
  });
  app.get("/metrics", async (request, reply) => {
    if (metricsToken !== undefined && !matches(request.headers.authorization, metricsToken))
      return reply.code(401).header("www-authenticate", "Bearer").send();
    gauges(worker, queue);
    return reply.type(metricsContentType).send(await metricsText());
  });
  const url = await app.listen({ port: options.port, host: options.host });
  return { url, close: () => app.close() };
}

const counted = { stalled: 0, wakesLost: 0 };
const troubleNames = { stalled: "stalled", wakesLost: "wake_lost" } as const;

/** What is a state rather than an event is read when it is asked for. */
function gauges(worker: RunWorker, queue: WakeQueue): void {
  metrics.slots.set(worker.slots);
  metrics.slotsActive.set(worker.active);
  for (const name of Object.keys(troubleNames) as (keyof typeof troubleNames)[]) {
    metrics.queueTrouble.inc({ event: troubleNames[name] }, queue.counters[name] - counted[name]);
    counted[name] = queue.counters[name];
  }
}

function matches(header: string | undefined, token: string): boolean {
  const given = Buffer.from(header ?? "");
  const wanted = Buffer.from(`Bearer ${token}`);
  return given.length === wanted.length && timingSafeEqual(given, wanted);
}
