import { isWebhookSecret } from "@drover/delivery";
import { egressConfig } from "@drover/egress";
import { queueConfig } from "@drover/queue";
import { linksConfig, runsConfig } from "@drover/runs";
import { storageConfig } from "@drover/storage";
import { z } from "zod";

/** Where the API listens and who may come in. */
export const apiConfig = z.object({
  PORT: z.coerce.number().int().min(0).max(65_535).default(8080).describe("port of the API"),
  HOST: z.string().default("0.0.0.0").describe("address the API listens on (`dev`: 127.0.0.1)"),
  DROVER_CONFIG: z
    .string()
    .optional()
    .describe("path of `drover.config.ts` (default: the one in the current folder, if any)"),
  DROVER_BOOTSTRAP_KEY: z
    .string()
    .min(16, "must have at least 16 characters")
    .max(256)
    .regex(/^[\x21-\x7e]+$/, "must be printable ASCII without spaces")
    .optional()
    .describe("API key accepted as admin of tenant `default` (`dev` generates one and prints it once)"),
  DROVER_WEBHOOK_SECRET: z
    .string()
    .refine(isWebhookSecret, "must be whsec_ and the base64 of 24 to 64 bytes")
    .optional()
    .describe("webhook secret of tenant `default` at its first start (random)"),
  METRICS_TOKEN: z.string().min(1).optional().describe("bearer token that `/metrics` then asks for"),
  LOG_LEVEL: z
    .enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"])
    .default("info")
    .describe("least severe level that is logged"),
});

/** Everything an API process is configured by. */
export const apiProcessConfig = storageConfig
  .required({ DATABASE_URL: true })
  .and(queueConfig)
  .and(runsConfig)
  .and(linksConfig)
  .and(egressConfig)
  .and(apiConfig);
export type ApiProcessConfig = z.infer<typeof apiProcessConfig>;
