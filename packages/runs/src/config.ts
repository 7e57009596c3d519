import { z } from "zod";

const seconds = z.coerce.number().positive();

/** How long runs may take and how workers hold them. */
export const runsConfig = z
  .object({
    WORKER_CONCURRENCY: z.coerce.number().int().min(1).max(100_000).default(100).describe("slots of a worker"),
    SHUTDOWN_GRACE_SECONDS: z.coerce
      .number()
      .min(0)
      .max(3600)
      .default(25)
      .describe("how long SIGTERM lets running steps finish"),
    LEASE_SECONDS: z.coerce
      .number()
      .min(0.5)
      .max(300)
      .default(10)
      .describe("a worker silent for longer is dead; the heartbeat is a tenth of it"),
    SOFT_TIME_LIMIT_SECONDS: seconds.max(604_800).default(1500).describe("default soft time limit of a run"),
    HARD_TIME_LIMIT_SECONDS: seconds.max(604_800).default(1800).describe("default hard time limit of a run"),
    NO_WORKER_SECONDS: seconds
      .max(2_592_000)
      .default(3600)
      .describe(
        "how long a run may wait while no living worker knows its agent or model, before it ends as `no_worker`",
      ),
    PARTIAL_EVERY_SECONDS: seconds
      .max(60)
      .default(5)
      .describe("longest silence between two saves of a reply that is still streaming"),
    DROVER_WORKSPACES: z.string().default(".drover/workspaces").describe("folder that holds the runs' workspaces"),
  })
  .refine((config) => config.SOFT_TIME_LIMIT_SECONDS < config.HARD_TIME_LIMIT_SECONDS, {
    path: ["SOFT_TIME_LIMIT_SECONDS"],
    error: "must be less than HARD_TIME_LIMIT_SECONDS",
  });
export type RunsConfig = z.infer<typeof runsConfig>;
