/** The words a run's and a batch's state are told in. */
export const runStatuses = ["queued", "running", "waiting", "completed", "partial", "failed", "cancelled"] as const;
export type RunStatus = (typeof runStatuses)[number];

export const batchStatuses = ["running", "completed", "cancelled"] as const;
