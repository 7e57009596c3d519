import { z } from "zod";

const postgresUrl = z.url({ protocol: /^postgres(ql)?$/, error: "must be a postgres:// or postgresql:// URL" });

/** Where Postgres is. */
export const storageConfig = z.object({
  DATABASE_URL: postgresUrl.optional().describe("Postgres; may be a transaction pooler (embedded in `dev`)"),
  DATABASE_DIRECT_URL: postgresUrl
    .optional()
    .describe("Postgres without a transaction pooler, for LISTEN, locks and migrations (default `DATABASE_URL`)"),
  DATABASE_PREPARED_STATEMENTS: z
    .stringbool({ truthy: ["true"], falsy: ["false"] })
    .default(true)
    .describe(
      "false before a PgBouncer older than 1.21 or with max_prepared_statements = 0: it loses named statements",
    ),
  DATABASE_POOL_SIZE: z.coerce.number().int().min(2).max(200).default(10).describe("connections of one process's pool"),
});
export type StorageConfig = z.infer<typeof storageConfig>;
