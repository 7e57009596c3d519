/** One API process: opens what it needs, listens, and closes in good order. */
import type { Socket } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { ToolRegistry } from "@drover/harness";
import { DroverError } from "@drover/protocol";
import { openQueue, openSignals } from "@drover/queue";
import { createSubmitter } from "@drover/runs";
import { faultOf, isMigrated, openPool, postgresBlobs } from "@drover/storage";
import { addSecret, collectProcessMetrics, createLogger, type Logger } from "@drover/telemetry";
import { defaultBounds } from "./bounds.ts";
import type { ApiProcessConfig } from "./config.ts";
import type { AgentInfo, App, Context, Services } from "./context.ts";
import { bootstrap, KeyRing } from "./keys.ts";
import { countSubmissions } from "./observe.ts";
import { buildServer } from "./server.ts";

export interface ApiDeps {
  /** The agents of `drover.config.ts` by name (default: `default` alone). */
  agents?: Record<string, AgentInfo>;
  /** What keys of a role may ask for, where it is not the default. */
  bounds?: Context["bounds"] | undefined;
  /** Which models workers have, as `knownModels` gives them (default: not checked). */
  models?: readonly string[];
  /** The tools of the installation, for their schemas (default: none). */
  tools?: Context["tools"];
  logger?: Logger;
  /** Pause between two heartbeats of a live stream, ms (default 15,000). */
  heartbeatMs?: number;
  /** How long a statement may take, ms (default 10,000): a network that fell silent says nothing by itself. */
  answerTimeoutMs?: number;
}

export interface Api {
  /** Where it listens, as `http://host:port`. */
  url: string;
  /** Stops accepting, ends streams and waits, lets requests finish, then closes every connection. Can be called twice. */
  close(): Promise<void>;
}

/** A request learns within a second that no connection will come free; while others get theirs, it waits its turn. */
const connecting = { stuckAfterMs: 700, connectTimeoutMs: 15_000 };
const prepareEveryMs = 1000;

/**
 * Starts the API and returns once it listens. While Postgres is away or its schema is older, it answers 503, says why at `/ready`,
 * and tries again every second. @throws Error with the system's code when the address cannot be had, or Postgres refuses us
 */
export async function startApi(config: ApiProcessConfig, deps: ApiDeps = {}): Promise<Api> {
  const logger = deps.logger ?? createLogger({ name: "api", level: config.LOG_LEVEL });
  for (const secret of [config.METRICS_TOKEN, new URL(config.DATABASE_URL).password, process.env.PGPASSWORD])
    addSecret(secret);
  collectProcessMetrics();
  const directUrl = config.DATABASE_DIRECT_URL ?? config.DATABASE_URL;
  const pool = openPool({
    url: config.DATABASE_URL,
    directUrl,
    logger,
    max: config.DATABASE_POOL_SIZE,
    prepared: config.DATABASE_PREPARED_STATEMENTS,
    ...connecting,
    answerTimeoutMs: deps.answerTimeoutMs ?? 10_000,
    applicationName: "drover api",
  });
  const signals = await openSignals(config, { logger, directUrl });
  const stopping = new AbortController();
  let services: Services | null = null;

  const context: Context = {
    config,
    agents: deps.agents ?? { default: {} },
    bounds: { ...defaultBounds, ...deps.bounds },
    models: deps.models ?? null,
    tools: deps.tools ?? new ToolRegistry(),
    keys: new KeyRing(pool),
    pool,
    blobs: postgresBlobs(pool),
    signals,
    logger,
    services() {
      if (services) return services;
      throw new DroverError("service_unavailable", "The service is starting.");
    },
    stopping: stopping.signal,
    heartbeatMs: deps.heartbeatMs ?? 15_000,
  };

  const server = await buildServer(context, () => services);
  const { app } = server;

  /** Opens what needs a database of this version; null when all is open, else what is missing. */
  async function prepare(): Promise<string | null> {
    try {
      if (!(await isMigrated(pool))) return "the database's schema is older than this version: run `drover migrate`";
      const { keys } = await bootstrap(pool, config);
      const queue = await openQueue(config, { logger, postgresUrl: directUrl });
      services = {
        queue,
        submitter: createSubmitter({ pool, blobs: context.blobs, queue, logger, observe: countSubmissions }),
      };
      server.showQueue(services);
      if (keys === 0)
        logger.warn("nobody can come in: no API key works; set DROVER_BOOTSTRAP_KEY or run `drover keys create`");
      return null;
    } catch (error) {
      if (isRefusal(error)) throw error;
      return faultOf(error) === "unavailable" ? "Postgres does not answer" : (error as Error).message;
    }
  }

  /** Tries until all is open or the process stops. What is missing is logged when it changes. */
  async function prepareInTheEnd(missing: string): Promise<void> {
    for (let now: string | null = missing, before = ""; now !== null; ) {
      if (now !== before) logger.warn(`not ready: ${now}`);
      before = now;
      await pause(prepareEveryMs, undefined, { signal: stopping.signal });
      now = await prepare().catch((error: Error) => error.message);
    }
    logger.info("ready");
  }

  async function closeConnections(): Promise<void> {
    await Promise.allSettled([signals.close(), services?.queue.close()]);
    await pool.end();
  }

  const closeSilent = silentConnections(app.server);
  let preparing: Promise<void> | undefined;
  try {
    const missing = await prepare();
    if (missing !== null) {
      preparing = prepareInTheEnd(missing).catch(() => {
        // It stops before it was ready.
      });
    }
    await app.listen({ port: config.PORT, host: config.HOST });
  } catch (error) {
    stopping.abort();
    await app.close().catch(() => {});
    await closeConnections().catch(() => {});
    throw error;
  }

  let closing: Promise<void> | undefined;
  return {
    url: urlOf(app.server.address() as { address: string; port: number }),
    close() {
      closing ??= (async () => {
        stopping.abort();
        await preparing;
        // A connection that was busy when the closing began would stay open for its whole keep-alive time.
        const sweep = setInterval(() => {
          app.server.closeIdleConnections();
          closeSilent();
        }, 50);
        // What is not over by then (an upload of a byte a second) cannot be answered: its client tries again elsewhere.
        const graceMs = config.SHUTDOWN_GRACE_SECONDS * 1000;
        const cut = setTimeout(() => app.server.closeAllConnections(), Math.max(graceMs - lastMs, graceMs / 2));
        await app.close();
        clearTimeout(cut);
        clearInterval(sweep);
        await closeConnections();
      })();
      return closing;
    },
  };
}

/** How long before the end of its grace a process cuts what still stands open, ms. */
const lastMs = 2000;

/** Wrong password, unknown user or database: whoever starts us must hear of it at once. */
const isRefusal = (error: unknown): boolean => /^(28...|3D000)$/.test(String((error as { code?: unknown }).code));

/** An address that means "all" is told as the loopback one, which can be opened. */
function urlOf({ address, port }: { address: string; port: number }): string {
  const host = address === "0.0.0.0" || address === "::" ? "127.0.0.1" : address;
  return `http://${host.includes(":") ? `[${host}]` : host}:${port}`;
}

/** Connections that never sent a request (a browser opens some ahead of time) count as busy for Node. Returns what ends them. */
function silentConnections(server: App["server"]): () => void {
  const silent = new Set<Socket>();
  server.on("connection", (socket) => {
    silent.add(socket);
    socket.once("close", () => silent.delete(socket));
  });
  server.on("request", (request) => silent.delete(request.socket));
  return () => {
    for (const socket of silent) socket.destroy();
  };
}
