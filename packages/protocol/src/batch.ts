/** A batch as clients see it. */
import { z } from "zod";
import { costUsd, metadata, nextCursor, timestamp, wireId } from "./fields.ts";
import { runError, runResult } from "./run.ts";
import { batchStatuses, runStatuses } from "./statuses.ts";

export const batchItem = z
  .object({
    task_id: wireId("run"),
    query: z.string().nullable().describe("null once its contents are no longer kept"),
    status: z.enum(runStatuses),
    result: runResult.optional(),
    error: runError.optional(),
    cost_usd: costUsd,
  })
  .meta({ id: "BatchItem" });

export const batch = z
  .object({
    batch_id: wireId("batch"),
    status: z.enum(batchStatuses).describe("`completed`: every item is final"),
    counts: z.object(
      Object.fromEntries(runStatuses.map((status) => [status, z.int()])) as Record<
        (typeof runStatuses)[number],
        z.ZodInt
      >,
    ),
    completed_count: z.int().describe("items that are final"),
    total: z.int(),
    total_cost_usd: costUsd,
    progress: z.number().describe("final items by all items, 0..1"),
    cancel_requested: z.literal(true).optional(),
    metadata,
    created_at: timestamp,
    finished_at: timestamp.nullable(),
    data: z.array(batchItem).describe("items in the order they were submitted"),
    next_cursor: nextCursor,
  })
  .meta({ id: "Batch" });
export type BatchAnswer = z.infer<typeof batch>;
