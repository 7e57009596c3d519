/** The table of a run's moves: pure, exhaustively tested, repeated by the database as CHECK constraints. */

export const statuses = ["queued", "running", "waiting", "completed", "partial", "failed", "cancelled"] as const;
export type Status = (typeof statuses)[number];

export const finalStatuses = ["completed", "partial", "failed", "cancelled"] as const;

/**
 * Every move there is. queued -> partial/failed is the rescuer's (a deadline that passes in the queue); only an owner, or the
 * rescuer after the hard limit, ends a running run.
 */
export const moves: Record<Status, readonly Status[]> = {
  queued: ["running", "partial", "failed", "cancelled"],
  running: ["queued", "waiting", "completed", "partial", "failed", "cancelled"],
  waiting: ["queued", "partial", "failed", "cancelled"],
  completed: [],
  partial: [],
  failed: [],
  cancelled: [],
};

export const isFinal = (status: Status): boolean => moves[status].length === 0;
export const canMove = (from: Status, to: Status): boolean => moves[from].includes(to);
