/** What every move answers with, and what several of them do besides. */
import type { Status } from "./state.ts";

export const finals = "('completed', 'partial', 'failed', 'cancelled')";

/** What became of a run that was let go of. */
export interface Moved {
  runId: string;
  agent: string;
  status: Status;
  stopReason: string | null;
  seq: number;
  batchId: string | null;
  priority: number;
  tag: number;
  wake: number;
  woken: boolean;
  /** A rollback is to be made. */
  rollbackOwed: boolean;
  /** A message is to be delivered. */
  messageOwed: boolean;
  /** Where it left an owner, or was ended: what it has taken so far. */
  totals?: RunTotals;
}

/** Of a run, over all its owners, as a log line has them. */
interface RunTotals {
  tenant: string;
  epoch: number;
  attempt: number;
  iterations: number;
  steps: number;
  input_tokens: number;
  output_tokens: number;
  cached_tokens: number;
  /** null: unknown. */
  cost_usd: number | null;
  active_ms: number;
  /** Since it was accepted. */
  duration_ms: number;
}

export interface MovedRow {
  id: string;
  agent: string;
  status: Status;
  stop_reason: string | null;
  last_seq: number;
  batch_id: string | null;
  priority: number;
  tag: number;
  wake: number;
  woken: boolean;
  rollback: "owed" | "made" | null;
  message_owed?: boolean;
  totals?: RunTotals;
}

const columns = [
  "id",
  "agent",
  "status",
  "stop_reason",
  "last_seq",
  "batch_id",
  "priority",
  "tag",
  "wake",
  "woken",
  "rollback",
];

/** A column with the `RunTotals` of the run `of`. */
export const totalsOf = (
  of: string,
): string => `json_build_object('tenant', ${of}.tenant, 'epoch', ${of}.epoch, 'attempt', ${of}.attempt,
    'iterations', ${of}.iterations, 'steps', ${of}.steps, 'input_tokens', ${of}.input_tokens, 'output_tokens', ${of}.output_tokens,
    'cached_tokens', ${of}.cached_tokens, 'cost_usd', CASE WHEN NOT ${of}.cost_unknown THEN ${of}.cost_nanos / 1e9 END, 'active_ms', ${of}.active_ms,
    'duration_ms', (extract(epoch FROM now() - ${of}.created_at) * 1000)::bigint) AS totals`;

/** The columns of a `MovedRow`, of the relation `of`. */
export const movedColumns = (of: string): string => columns.map((column) => `${of}.${column}`).join(", ");

export function toMoved(row: MovedRow): Moved {
  const { id, last_seq, batch_id, stop_reason, rollback, message_owed, ...same } = row;
  return {
    ...same,
    runId: id,
    seq: last_seq,
    batchId: batch_id,
    stopReason: stop_reason,
    rollbackOwed: rollback === "owed",
    messageOwed: message_owed ?? false,
  };
}

/** The running run `of` is past its limit, deadline or cancel by so many ms. */
export const pastAll = (of: string, graceMs: string): string =>
  `least(${of}.hard_at, ${of}.deadline, ${of}.cancel_requested_at) < now() - ${graceMs}::float8 * interval '1 ms'`;

/**
 * The place of the run `r` when it is about to be claimable (again): never below its class's floor, above which whoever claims looks
 * (`raiseFloors`).
 */
export const inLine = "greatest(r.tag, (SELECT f.floor_tag FROM fair_classes f WHERE f.priority = r.priority))";

/**
 * The run `r` of the row `i` of a statement's input, numbered `n`; `ids` is the parameter with all their ids. It says so in three ways, since each
 * keeps the planner from another way to read all runs, whatever its statistics are: none yet, or of when the table was empty. By the first it
 * goes from the input to the runs, the more as it takes the last, which is true, for true of hardly any row; should it go from the runs to the
 * input, it goes by the second.
 */
export const byKey = (ids: string): string =>
  `r.id = i.id AND r.id = ANY(${ofAnyLength(ids)}::uuid[]) AND i.n + 0 = i.n`;

/**
 * An array parameter whose length the planner does not look at. Where it does, a plan for these values looks cheaper than one for any, and a named statement is
 * planned anew each time: more than half of what it costs.
 */
export const ofAnyLength = (array: string): string => `(SELECT ${array}::uuid[])`;

/**
 * Whether nobody is to hear of a message about `of`, a run or a batch: it has no callback, and its tenant no endpoint. Such a message is made as
 * fanned out: it stands in the feed, and costs no delivery anything.
 */
export const isForNobody = (of: string): string =>
  `${of}.callback_url IS NULL AND NOT EXISTS (SELECT FROM endpoints e WHERE e.tenant = ${of}.tenant AND e.enabled)`;

/** Whether the move of `moved` made a message that somebody is to hear of; `owed` is the CTE that makes it. */
export const messageOwed = "EXISTS (SELECT FROM owed o WHERE o.run_id = moved.id AND NOT o.fanned_out) AS message_owed";

/** Questions of runs that end are closed with them. `moved` is the CTE that ends them. */
export const closeQuestions = `closed AS (
       UPDATE approvals a SET status = 'expired', decided_at = now(), decided_by = 'system',
         decision = '{"decision":"expire","by":"system","note":"the run ended"}'
       FROM moved m WHERE a.run_id = m.id AND a.status = 'pending' AND m.status IN ${finals})`;
