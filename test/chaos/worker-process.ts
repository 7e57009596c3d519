/**
 * A worker as its own process, for tests that kill it: the real run worker with tools that call an endpoint of the test. It kills itself,
 * by SIGKILL, the moment KILL_AFTER steps of its runs are committed, an event of the type KILL_AT is, or a run has left it with the status
 * KILL_LEFT. With HOLD_BEFORE its tools say `entered <tool>` instead of calling.
 * It says `rung` whenever it hears a ring.
 */

import { defaultAgent, ToolRegistry } from "@drover/harness";
import { createModels, modelConfig } from "@drover/llm";
import { loadConfig } from "@drover/protocol";
import { openQueue, openSignals, queueConfig } from "@drover/queue";
import { runsConfig, startWorker } from "@drover/runs";
import { openPool, postgresBlobs, storageConfig } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { endpointTools } from "./tools.ts";

const config = loadConfig(storageConfig.and(queueConfig).and(modelConfig).and(runsConfig));
const logger = createLogger({ name: "worker", level: "warn" });
const url = config.DATABASE_URL!;
const pool = openPool({ url, logger, max: 5 });
const queue = await openQueue(config, { logger, postgresUrl: url });
const signals = await openSignals(config, { logger, directUrl: url });
const models = createModels(config, { logger });
const killAfter = Number(process.env.KILL_AFTER ?? Number.POSITIVE_INFINITY);
let steps = 0;
const die = () => process.kill(process.pid, "SIGKILL");

const worker = await startWorker({
  pool,
  directUrl: url,
  blobs: postgresBlobs(pool),
  queue: {
    ...queue,
    consume: (options) =>
      queue.consume({
        ...options,
        hear: () => {
          const heard = options.hear();
          if (heard) console.log("rung");
          return heard;
        },
      }),
  },
  signals,
  logger,
  agents: {
    agent: () => defaultAgent,
    model: (id) => models.resolve(id ?? models.default),
    tools: new ToolRegistry(
      endpointTools(process.env.TOOL_URL!, {
        timeoutMs: Number(process.env.TOOL_TIMEOUT_MS ?? 60_000),
        ...(process.env.HOLD_BEFORE && { holdBefore: (tool) => console.log(`entered ${tool}`) }),
      }),
    ),
    policies: [],
  },
  slots: config.WORKER_CONCURRENCY,
  leaseMs: config.LEASE_SECONDS * 1000,
  partialEveryMs: config.PARTIAL_EVERY_SECONDS * 1000,
  workspaces: config.DROVER_WORKSPACES,
  observe: (told) => {
    if (told.type === "left" && told.moved.status === process.env.KILL_LEFT) die();
    if (told.type !== "logged") return;
    const { event } = told;
    if (event.type === process.env.KILL_AT) die();
    if (event.type !== "model.call" && event.type !== "tool.result") return;
    if (++steps === killAfter) die();
  },
});
console.log(`ready ${worker.workerId}`);
process.on("SIGTERM", async () => {
  await worker.stop(config.SHUTDOWN_GRACE_SECONDS * 1000);
  await Promise.all([queue.close(), signals.close()]);
  await pool.end();
  console.log("stopped");
});
