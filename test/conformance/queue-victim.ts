/** A worker process that takes one wake-up and never ends it, until it is killed. For `queue-outage.test.ts`. */
import { openQueue, queueConfig } from "@drover/queue";
import { createLogger } from "@drover/telemetry";

const queue = await openQueue(queueConfig.parse(process.env), {
  logger: createLogger({ name: "victim", level: "silent" }),
  postgresUrl: process.env.DATABASE_URL!,
});
queue.consume({
  concurrency: 1,
  lockDurationMs: 1000,
  stalledIntervalMs: 300,
  handle: (runId) => {
    console.log(`took ${runId}`);
    return new Promise(() => {});
  },
});
