/** How a worker's death is seen and told: the advisory lock its row stands for, when and why it was declared dead, and who was to blame. */
import { inOrder } from "../in-order.ts";

export const liveness = inOrder(
  // `lock_id`: the second key of the session advisory lock that the worker's liveness connection holds.
  `ALTER TABLE workers
    ADD COLUMN lock_id int,
    ADD COLUMN dead_at timestamptz(3),
    ADD COLUMN cause text CHECK (cause IN ('crashed', 'silent', 'blocked')),
    ADD COLUMN culprit uuid,
    ADD COLUMN culprit_tool text,
    ADD CONSTRAINT workers_dead CHECK ((dead_at IS NULL) = (cause IS NULL))`,
  // The dead worker whose loss counted as a crash: should it come back, it takes the count back.
  `ALTER TABLE runs ADD COLUMN lost_worker uuid`,
  `CREATE INDEX runs_lost_worker ON runs (lost_worker) WHERE lost_worker IS NOT NULL`,
);
