import { z } from "zod";

/** What the processes of isolated tools read. */
export const isolationConfig = z.object({
  TOOL_PROCESSES: z.coerce
    .number()
    .int()
    .min(1)
    .optional()
    .describe(
      "processes of tools with `isolation` that a worker runs at a time; calls beyond wait (4 for each core, at least 8)",
    ),
});
