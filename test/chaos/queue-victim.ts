/** A worker process that takes one ring and hangs with it, until it is killed. For `queue-outage.test.ts`. */
import { writeSync } from "node:fs";
import { openQueue, queueConfig } from "@drover/queue";
import { createLogger } from "@drover/telemetry";

const queue = await openQueue(queueConfig.parse(process.env), {
  logger: createLogger({ name: "victim", level: "silent" }),
  postgresUrl: process.env.DATABASE_URL!,
});
queue.consume({
  lockDurationMs: 1000,
  stalledIntervalMs: 300,
  hear: () => {
    writeSync(1, "took it\n");
    for (;;);
  },
});
