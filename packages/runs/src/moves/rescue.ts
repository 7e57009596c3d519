/** What the rescuer finds: runs whose owner is dead (running -> queued), and runs that somebody must end. */
import type { Queryable } from "@drover/storage";
import { suspectBackoffMs, suspectCrashes } from "./claim.ts";
import { inLine, type Moved, type MovedRow, movedColumns, pastAll, toMoved } from "./moved.ts";
import { knowing, type Lately, since } from "./wake.ts";

/** So many end it. */
export const mostCrashes = 3;

/** The run `r` has no living owner; `w` is the row of its worker, if there is one: dead, and judged (`judgeDeaths`). */
const orphaned = "(w.id IS NULL OR w.blames_all IS NOT NULL)";

/**
 * Until when the lost owner of the run `r` is known to have worked on it: its last confirmed heartbeat or, where its row is gone, the newest
 * event. What comes after it is nobody's time, however long everything was away.
 */
const workedUntil = `greatest(r.claimed_at, coalesce(w.heartbeat_at, (SELECT e.at FROM run_events e WHERE e.run_id = r.id AND e.seq = r.last_seq)))`;

/**
 * Whether the death of `w` counts against the run `r`. A culprit who is known is the only one. Otherwise those whose users' code may have been
 * running, or all, when it was nobody's; suspects only when there was no other suspect: a group of them is tried again in smaller ones. A worker
 * that fell silent, or left runs behind in good order, has not crashed.
 */
const isCrash = `coalesce(CASE WHEN w.culprit IS NOT NULL THEN w.cause = 'blocked' AND w.culprit = r.id
  ELSE w.cause IN ('crashed', 'blocked') AND (w.blames_all OR r.user_code) AND (r.crashes < ${suspectCrashes} OR w.suspects = 1) END, false)`;

/**
 * Where runs are looked for that somebody must move: those of `dead` workers, and `held`, which living ones hold too long. "all" is anywhere, and
 * reads every running run and all that is over.
 */
export type Whose = { dead: string[]; held: string[] } | "all";

/** Workers that have died and may still have runs, and what living ones have said that they hold too long (`workers.overdue`). */
export async function findWhose(db: Queryable): Promise<Exclude<Whose, "all">> {
  const { rows } = await db.query<{ id: string; overdue: string[] | null }>(
    `SELECT id, CASE WHEN dead_at IS NULL THEN overdue END AS overdue FROM workers
     WHERE (dead_at IS NULL AND overdue IS NOT NULL) OR (dead_at IS NOT NULL AND (look_at IS NULL OR look_at <= now())) ORDER BY id`,
  );
  return {
    dead: rows.flatMap(({ id, overdue }) => (overdue ? [] : [id])),
    held: rows.flatMap(({ overdue }) => overdue ?? []),
  };
}

/**
 * These dead workers' runs have been seen to. A claim of theirs may still come through: they are looked at again and again, at growing
 * distances, for a minute.
 */
export async function seenTo(db: Queryable, workers: string[]): Promise<void> {
  await db.query(
    `UPDATE workers SET look_at = CASE WHEN now() - dead_at > interval '1 minute' THEN 'infinity'
       ELSE now() + greatest(now() - dead_at, interval '1 second') END WHERE id = ANY($1::uuid[])`,
    [workers],
  );
}

/** The verdict on workers that have died, while all of their runs are still there to be looked at: once, whoever comes first. */
async function judgeDeaths(db: Queryable): Promise<void> {
  await db.query(
    `UPDATE workers w SET (blames_all, suspects) = (
       SELECT NOT coalesce(bool_or(inside), false), count(*) FILTER (WHERE crashes >= ${suspectCrashes} AND (user_code OR NOT inside))
       FROM (SELECT r.crashes, r.user_code, bool_or(r.user_code) OVER () AS inside FROM runs r WHERE r.worker = w.id AND r.status = 'running') o)
     WHERE w.dead_at IS NOT NULL AND w.blames_all IS NULL`,
  );
}

/**
 * running -> queued for runs whose worker has no live row: it was declared dead, or ended. Cancelled ones, those that have used up their time
 * and those that have lost their last owner are left to `findOverdue`, which ends them with what they had.
 */
export async function takeOver(db: Queryable, most: number, whose: Whose = "all"): Promise<Moved[]> {
  await judgeDeaths(db);
  const { rows } = await db.query<MovedRow>(
    `WITH lost AS (
       SELECT r.id, r.worker, w.cause, (${isCrash})::int AS crash, ${workedUntil} AS worked_until, w.heartbeat_at + w.lease_ms * interval '1 ms' AS quiet_at,
              CASE WHEN w.culprit = r.id THEN w.culprit_tool END AS tool
       FROM runs r LEFT JOIN workers w ON w.id = r.worker
       WHERE r.status = 'running' ${whose === "all" ? "" : "AND r.worker = ANY($2::uuid[])"} AND r.cancel_requested_at IS NULL AND ${orphaned} AND ${workedUntil} < r.hard_at
         AND r.crashes + (${isCrash})::int < ${mostCrashes}
       ORDER BY r.id LIMIT $1 FOR UPDATE OF r SKIP LOCKED),
     judged AS (
       SELECT lost.*, crash = 1 AND r.crashes + crash >= ${suspectCrashes} AS suspect FROM lost JOIN runs r USING (id)),
     moved AS (
       UPDATE runs r SET status = 'queued', worker = NULL, woken = NOT suspect, wake = r.wake + (NOT suspect)::int,
         tag = CASE WHEN suspect THEN r.tag ELSE ${inLine} END,
         available_at = now() + CASE WHEN suspect THEN ${suspectBackoffMs} ELSE 0 END * interval '1 ms',
         crashes = r.crashes + lost.crash, lost_worker = CASE WHEN lost.crash = 1 THEN lost.worker END,
         active_ms = r.active_ms + (extract(epoch FROM lost.worked_until - r.claimed_at) * 1000)::bigint, last_seq = r.last_seq + 1
       FROM judged lost WHERE r.id = lost.id
       RETURNING ${movedColumns("r")},
                 r.crashes, lost.worker AS lost_worker, lost.cause, lost.quiet_at, lost.tool),
     logged AS (
       INSERT INTO run_events (run_id, seq, type, data, event_id)
       SELECT id, last_seq, 'run.rescued', json_strip_nulls(json_build_object('worker', lost_worker, 'cause', nullif(cause, 'stopped'), 'crashes', nullif(crashes, 0),
         'tool_name', tool, 'quiet_at', to_char(quiet_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'))), gen_random_uuid()
       FROM moved)
     SELECT ${movedColumns("moved")} FROM moved`,
    [most, ...(whose === "all" ? [] : [whose.dead])],
  );
  return rows.map(toMoved);
}

/** A run that somebody must end, since nobody else will. */
export interface Overdue {
  id: string;
  tenant: string;
  agent: string;
  /** What its submission asks for; null: its agent's. */
  model: string | null;
  kind: "query" | "rollback";
  epoch: number;
  lastSeq: number;
  batchId: string | null;
  cause: "cancelled" | "deadline" | "time_limit" | "crash_loop" | "no_worker";
  /** The tool in which its last worker was stuck, where it was this run's. */
  culpritTool: string | null;
}

/** How far `findOverdue` looks. */
export interface OverdueOptions {
  /** How long a living worker may hold a run past its limit, deadline or an unheeded cancel, ms. */
  graceMs: number;
  most: number;
  /** Whose running runs (default all). */
  whose?: Whose;
  /** Of queued and waiting runs: deadlines that passed lately (default at any time). */
  lately?: Lately;
  /** How long a run may wait for a worker that knows its agent and model, ms (default for ever). */
  noWorkerMs?: number;
}

/**
 * What nobody else ends: runs that a living worker holds past their limit, deadline or an unheeded cancel by `graceMs`; without one, runs that
 * had used up their time, are past their deadline or cancelled, or have lost their last owner; queued or waiting ones past their deadline, and
 * those that no living worker could carry for too long.
 */
export async function findOverdue(
  db: Queryable,
  { graceMs, most, whose = "all", lately = null, noWorkerMs }: OverdueOptions,
): Promise<Overdue[]> {
  if (whose === "all" || whose.dead.length > 0) await judgeDeaths(db);
  const { rows } = await db.query<
    Omit<Overdue, "batchId" | "culpritTool" | "lastSeq"> & {
      batch_id: string | null;
      tool: string | null;
      last_seq: number;
    }
  >(
    `SELECT r.id, r.tenant, r.agent, r.model, r.kind, r.epoch, r.last_seq, r.batch_id, CASE WHEN w.culprit = r.id THEN w.culprit_tool END AS tool,
            CASE WHEN r.cancel_requested_at IS NOT NULL THEN 'cancelled'
                 WHEN r.deadline <= now() THEN 'deadline'
                 WHEN r.hard_at <= CASE WHEN ${orphaned} THEN ${workedUntil} ELSE now() END THEN 'time_limit' ELSE 'crash_loop' END AS cause
     FROM (${whose === "all" ? "SELECT * FROM runs" : named("$5", "$6")}) r LEFT JOIN workers w ON w.id = r.worker
     WHERE r.status = 'running' AND CASE WHEN ${orphaned}
       THEN least(r.deadline, r.cancel_requested_at) < now() OR r.hard_at <= ${workedUntil} OR r.crashes + (${isCrash})::int >= ${mostCrashes}
       ELSE ${pastAll("r", "$1")} END
     UNION ALL
     SELECT id, tenant, agent, model, kind, epoch, last_seq, batch_id, NULL, 'deadline' FROM runs
     WHERE status IN ('queued', 'waiting') AND deadline < now() AND ${since("deadline", "$3")}
     UNION ALL
     SELECT id, tenant, agent, model, kind, epoch, last_seq, batch_id, NULL, 'no_worker' FROM runs r
     WHERE set_aside_at < now() - $4::float8 * interval '1 ms' AND status = 'queued' AND NOT EXISTS (${knowing})
     ORDER BY id LIMIT $2`,
    [graceMs, most, lately, noWorkerMs ?? null, ...(whose === "all" ? [] : [whose.dead, whose.held])],
  );
  return rows.map(({ batch_id, tool, last_seq, ...run }) => ({
    ...run,
    lastSeq: last_seq,
    batchId: batch_id,
    culpritTool: tool,
  }));
}

// OFFSET 0: by their keys, whatever the statistics say of other indexes.
const named = (workers: string, ids: string) =>
  `SELECT * FROM runs WHERE status = 'running' AND worker = ANY(${workers}::uuid[])
   UNION ALL SELECT l.* FROM unnest(${ids}::uuid[]) AS i(id), LATERAL (SELECT * FROM runs WHERE runs.id = i.id OFFSET 0) l
   WHERE NOT l.worker = ANY(${workers}::uuid[])`;
