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
