/** What keeps liveness and the rescuer's duties from reading what is over: dead versions of rows, as many as a long snapshot holds back. */
import { inOrder } from "../in-order.ts";

export const bounds = inOrder(
  // No run to be claimed has a lower tag.
  "ALTER TABLE fair_classes ADD COLUMN floor_tag bigint NOT NULL DEFAULT 0",
  // Of a dead worker: when to look again for runs it still has; infinity: it has none. Of a living one: runs it holds past all their limits.
  "ALTER TABLE workers ADD COLUMN look_at timestamptz(3), ADD COLUMN overdue uuid[]",
  // It ended in good order, and left runs behind.
  "ALTER TABLE workers DROP CONSTRAINT workers_cause_check",
  "ALTER TABLE workers ADD CONSTRAINT workers_cause_check CHECK (cause IN ('crashed', 'silent', 'blocked', 'stopped'))",
  "CREATE INDEX runs_suspects ON runs (priority DESC, tag, id) WHERE status = 'queued' AND woken AND crashes >= 2",
);
