/** Wake-ups: queued runs whose time has come, or that somebody can carry by now. The status stays. */
import type { Queryable } from "@drover/storage";
import { knows } from "./claim.ts";
import { inLine, type Moved, type MovedRow, movedColumns, toMoved } from "./moved.ts";

/** So long ago, and not longer, something may have become due; null: at any time. */
export type Lately = number | null;

/** Whether `column` lies within the parameter's milliseconds before now, or after it. */
export const since = (column: string, parameter: string): string =>
  `${column} > CASE WHEN ${parameter}::float8 IS NULL THEN '-infinity' ELSE now() - ${parameter}::float8 * interval '1 ms' END`;

/** queued and not yet woken -> queued and woken: delays and back-offs whose time has come, lately. Raises `wake`, which names the job. */
export async function wakeDue(
  db: Queryable,
  most: number,
  lately: Lately = null,
): Promise<(Moved & { tenant: string; neverStarted: boolean })[]> {
  const { rows } = await db.query<MovedRow & { tenant: string; never_started: boolean }>(
    `UPDATE runs r SET woken = true, wake = r.wake + 1, tag = ${inLine}
     FROM (SELECT id FROM runs WHERE status = 'queued' AND NOT woken AND set_aside_at IS NULL AND available_at <= now()
             AND ${since("available_at", "$2")}
           ORDER BY available_at LIMIT $1 FOR UPDATE SKIP LOCKED) due
     WHERE r.id = due.id
     RETURNING ${movedColumns("r")}, r.tenant, r.started_at IS NULL AS never_started`,
    [most, lately],
  );
  return rows.map(({ tenant, never_started, ...row }) => ({ ...toMoved(row), tenant, neverStarted: never_started }));
}

/** In how many ms the next run is due that is not yet woken; null: none is. */
export async function nextDue(db: Queryable, lately: Lately): Promise<number | null> {
  const { rows } = await db.query<{ ms: number | null }>(
    `SELECT (extract(epoch FROM min(available_at) - now()) * 1000)::float8 AS ms FROM runs
     WHERE status = 'queued' AND NOT woken AND set_aside_at IS NULL AND ${since("available_at", "$1")}`,
    [lately],
  );
  return rows[0]!.ms;
}

/**
 * Raises each class's floor to the first run that can be claimed, but not above the tags of `upTo` (by class): a submission that took a lower one
 * may still be on its way. Whoever claims need not read again what lies below.
 */
export async function raiseFloors(db: Queryable, upTo: ReadonlyMap<number, number>): Promise<void> {
  const classes = [...upTo].sort(([a], [b]) => a - b);
  await db.query(
    `WITH found AS (
       SELECT c.priority, least(u.tag, coalesce((
         SELECT r.tag FROM runs r WHERE r.status = 'queued' AND r.woken AND r.priority = c.priority AND r.tag >= c.floor_tag
         ORDER BY r.tag, r.id LIMIT 1), u.tag)) AS tag
       FROM fair_classes c JOIN unnest($1::smallint[], $2::bigint[]) AS u(priority, tag) USING (priority) WHERE u.tag > c.floor_tag)
     UPDATE fair_classes c SET floor_tag = found.tag FROM found WHERE c.priority = found.priority AND c.floor_tag < found.tag`,
    [classes.map(([priority]) => priority), classes.map(([, tag]) => tag)],
  );
}

/** Lifts runs below their class's floor, where nobody looks, onto it: their submission took longer than anybody waits. Reads all that is over. */
export async function liftStragglers(db: Queryable): Promise<void> {
  await db.query(
    `UPDATE runs r SET tag = c.floor_tag FROM fair_classes c
     WHERE r.status = 'queued' AND r.woken AND r.priority = c.priority AND r.tag < c.floor_tag`,
  );
}

/** Runs that were set aside, by agent and model. `known`: a living worker can carry them. */
export async function readAside(
  db: Queryable,
): Promise<{ agent: string; model: string | null; runs: number; since: Date; known: boolean }[]> {
  const { rows } = await db.query(
    `SELECT r.*, EXISTS (${knowing}) AS known FROM (
       SELECT agent, model, count(*)::int AS runs, min(set_aside_at) AS since FROM runs WHERE set_aside_at IS NOT NULL AND status = 'queued'
       GROUP BY agent, model) r`,
  );
  return rows;
}

/** A living worker that can carry the run `r`. */
export const knowing = `SELECT FROM workers w WHERE w.dead_at IS NULL AND ${knows("w.agents", "w.models")}`;

/** queued and set aside -> queued and woken, for runs that a living worker can carry by now. Raises `wake`. */
export async function wakeKnown(db: Queryable, most: number): Promise<Moved[]> {
  const { rows } = await db.query<MovedRow>(
    `UPDATE runs r SET woken = true, set_aside_at = NULL, wake = r.wake + 1, tag = ${inLine}
     FROM (SELECT r.id FROM runs r WHERE r.set_aside_at IS NOT NULL AND r.status = 'queued' AND EXISTS (${knowing})
           ORDER BY r.set_aside_at LIMIT $1 FOR UPDATE SKIP LOCKED) known
     WHERE r.id = known.id
     RETURNING ${movedColumns("r")}`,
    [most],
  );
  return rows.map(toMoved);
}
