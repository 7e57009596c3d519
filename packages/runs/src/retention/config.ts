import { z } from "zod";

const days = z.coerce.number().int().min(1).max(36_500);
/** The database lets nobody cut the audit trail nearer than this: see `audit_cut`. */
const shortestAuditDays = 30;

/** What is kept for how long. `CONTENTS` is what a run said and did, `TOTALS` that it was there and what it cost. */
export const retentionConfig = z
  .object({
    RETENTION_CONTENTS_DAYS: days
      .default(30)
      .describe(
        "how long contents are kept: logs, results, artifacts, messages and deliveries, questions to people, workspaces",
      ),
    RETENTION_TOTALS_DAYS: days
      .default(400)
      .describe("how long runs and batches are listed, with status, times, tokens and cost"),
    RETENTION_AUDIT_DAYS: days
      .min(shortestAuditDays)
      .default(400)
      .describe(
        "how long the audit trail is kept; it is cut at a signed checkpoint only, so nothing goes without `DROVER_AUDIT_KEY`",
      ),
  })
  .refine((config) => config.RETENTION_CONTENTS_DAYS <= config.RETENTION_TOTALS_DAYS, {
    path: ["RETENTION_CONTENTS_DAYS"],
    error: "must not be more than RETENTION_TOTALS_DAYS",
  });
export type RetentionConfig = z.infer<typeof retentionConfig>;

export interface Retention {
  contentsDays: number;
  totalsDays: number;
  auditDays: number;
}

export const retentionOf = (config: RetentionConfig): Retention => ({
  contentsDays: config.RETENTION_CONTENTS_DAYS,
  totalsDays: config.RETENTION_TOTALS_DAYS,
  auditDays: config.RETENTION_AUDIT_DAYS,
});
