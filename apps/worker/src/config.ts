import { z } from "zod";

/** What only the worker process reads. */
export const workerConfig = z.object({
  WORKER_PORT: z.coerce
    .number()
    .int()
    .min(0)
    .max(65_535)
    .optional()
    .describe("port of the worker's health and metrics (off unless set)"),
  WORKER_MEMORY_MB: z.coerce
    .number()
    .int()
    .min(64)
    .optional()
    .describe(
      "a worker that uses more claims nothing; after 10 s of it, it hands its runs over and ends with exit code 75, to be started anew (80 % of the container's, or the machine's, memory)",
    ),
  WORKER_HOST: z.string().default("0.0.0.0").describe("address of the worker's health and metrics"),
  DROVER_CONFIG: z
    .string()
    .optional()
    .describe("path of `drover.config.ts` (that file of the current folder, if it exists)"),
  METRICS_TOKEN: z.string().optional().describe("bearer token that `/metrics` then asks for (none)"),
  LOG_LEVEL: z
    .enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"])
    .default("info")
    .describe("log level"),
});
