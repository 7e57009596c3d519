/** running -> queued or final: what an owner does at its end, and the rescuer for runs that nobody ends. */
import type { FinalData } from "@drover/harness";
import { uuidv7 } from "@drover/protocol";
import { briefLocks, type Queryable } from "@drover/storage";
import { waitForWriters } from "../log/append.ts";
import {
  byKey,
  closeQuestions,
  finals,
  inLine,
  isForNobody,
  type Moved,
  type MovedRow,
  messageOwed,
  movedColumns,
  toMoved,
  totalsOf,
} from "./moved.ts";
import type { Status } from "./state.ts";

/** How an owner lets go of a run. `queued` with a delay is a retry, without one a hand-over. */
export interface Leaving {
  runId: string;
  /** The fence: the owner's epoch and, where an owner leaves, its worker. */
  epoch: number;
  worker?: string;
  eventId: string;
  status: Exclude<Status, "running" | "waiting">;
  stopReason: string | null;
  eventType: string;
  /** Encoded data of the event. */
  data: string;
  /** Encoded data of `run.cancelled`, should the cancel flag be set. */
  cancelledData: string;
  delayMs: number;
  /** The attempt clients see from now on; null leaves it. */
  attempt: number | null;
  /** What it did is to be undone, should it end as `failed` or `partial`. */
  rollback?: boolean;
  /** The log as it is known: at least that long for an owner (see `append.ts`); just that long for the rescuer, which has read it. */
  lastSeq?: number;
}

/** The status a run gets: what its owner says, unless somebody has asked for its cancel. */
const leavingStatus = "CASE WHEN r.cancel_requested_at IS NULL THEN i.status ELSE 'cancelled' END";

/**
 * running -> queued, completed, partial, failed or cancelled: one statement for everything an owner or, for runs past all
 * limits, the rescuer ends. A final status owes its message in the same commit. A run missing from the answer was not its any more.
 * A copy that comes through late finds a run that has left, or another epoch.
 */
export async function leaveRuns(db: Queryable, ops: Leaving[], from: "owned" | "unowned" = "owned"): Promise<Moved[]> {
  // The rescuer settles queued runs as well; the epoch it read is its guard against a claim in between.
  // `coalesce` keeps the planner off the index of running runs: the rows are found by their key.
  const guard =
    from === "owned"
      ? "coalesce(r.status, '') = 'running' AND r.worker = coalesce(i.worker, r.worker) AND r.last_seq >= coalesce(i.last_seq, 0)"
      : "r.status IN ('running', 'queued', 'waiting') AND r.last_seq = coalesce(i.last_seq, r.last_seq)";
  // A lost owner's time ended with its last heartbeat.
  const until =
    from === "owned"
      ? "now()"
      : "greatest(r.claimed_at, coalesce((SELECT heartbeat_at FROM workers w WHERE w.id = r.worker AND w.dead_at IS NOT NULL), now()))";
  const { rows } = await db.query<MovedRow>(
    `WITH ${briefLocks},
     input AS (
       SELECT i.* FROM ${from === "owned" ? "brief, " : ""}unnest($1::uuid[], $2::int[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
         $9::bigint[], $10::int[], $11::uuid[], $12::boolean[], $13::int[], $14::uuid[])
       WITH ORDINALITY AS i(id, epoch, event_id, status, stop_reason, type, data, cancelled_data, delay_ms, attempt, message_id, rollback,
         last_seq, worker, n)),
     moved AS (
       UPDATE runs r SET
         status = ${leavingStatus},
         stop_reason = CASE WHEN r.cancel_requested_at IS NULL THEN i.stop_reason END,
         waiting_for = NULL,
         waiting_level = NULL,
         rollback = CASE WHEN i.rollback AND r.steps > 0 AND ${leavingStatus} IN ('failed', 'partial') THEN 'owed' ELSE r.rollback END,
         worker = NULL,
         finished_at = CASE WHEN ${leavingStatus} <> 'queued' THEN now() END,
         available_at = CASE WHEN i.status = 'queued' THEN now() + i.delay_ms * interval '1 ms' ELSE r.available_at END,
         woken = i.delay_ms = 0,
         tag = CASE WHEN ${leavingStatus} = 'queued' AND i.delay_ms = 0 THEN ${inLine} ELSE r.tag END,
         wake = r.wake + CASE WHEN i.status = 'queued' AND i.delay_ms = 0 THEN 1 ELSE 0 END,
         attempt = coalesce(i.attempt, r.attempt),
         active_ms = r.active_ms + CASE WHEN r.status = 'running' THEN (extract(epoch FROM ${until} - r.claimed_at) * 1000)::bigint ELSE 0 END,
         last_seq = r.last_seq + 1
       FROM input i WHERE ${byKey("$1")} AND r.epoch = i.epoch AND ${guard}
       RETURNING ${movedColumns("r")}, ${totalsOf("r")}, r.tenant, r.callback_url,
                 r.status = 'cancelled' AND i.status <> 'cancelled' AS overruled,
                 i.type, i.data, i.cancelled_data, i.event_id, i.message_id),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, last_seq, CASE WHEN overruled THEN 'run.cancelled' ELSE type END,
              (CASE WHEN overruled THEN cancelled_data ELSE data END)::json, event_id FROM moved),
     owed AS (
       INSERT INTO messages (id, tenant, type, run_id, fanned_out)
       SELECT message_id, tenant, 'query.' || status, id, ${isForNobody("moved")} FROM moved WHERE status IN ${finals}
       RETURNING run_id, fanned_out),
     ${closeQuestions}
     SELECT ${movedColumns("moved")}, moved.totals, ${messageOwed} FROM moved`,
    [
      ops.map((op) => op.runId),
      ops.map((op) => op.epoch),
      ops.map((op) => op.eventId),
      ops.map((op) => op.status),
      ops.map((op) => op.stopReason),
      ops.map((op) => op.eventType),
      ops.map((op) => op.data),
      ops.map((op) => op.cancelledData),
      ops.map((op) => op.delayMs),
      ops.map((op) => op.attempt),
      ops.map(() => uuidv7()),
      ops.map((op) => op.rollback ?? false),
      ops.map((op) => op.lastSeq ?? null),
      ops.map((op) => op.worker ?? null),
    ],
  );
  return rows.map(toMoved);
}

/** Those of `ops` whose leaving is committed although its answer was lost: found by event id. */
export async function readLeft(db: Queryable, ops: Pick<Leaving, "runId" | "eventId">[]): Promise<Moved[]> {
  await waitForWriters(
    db,
    ops.map((op) => op.runId),
  );
  const { rows } = await db.query<MovedRow>(
    `SELECT ${movedColumns("r")}, ${totalsOf("r")}, true AS message_owed
     FROM unnest($1::uuid[], $2::uuid[]) AS i(run_id, event_id)
     JOIN run_events e ON e.run_id = i.run_id AND e.event_id = i.event_id JOIN runs r ON r.id = e.run_id`,
    [ops.map((op) => op.runId), ops.map((op) => op.eventId)],
  );
  return rows.map(toMoved);
}

/** The end of a run that nobody is carrying: what it had is folded from its log. */
export const nothingLeft: FinalData = { output: null, stop_reason: null, error: null };
