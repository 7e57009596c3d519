/** queued -> running: what a worker does. The claimer's live row is required in the same statement. */
import { plannedAnew, type Queryable } from "@drover/storage";
import { logVersion } from "../log/append.ts";
import { isCapped } from "../money/budget-sql.ts";

/** What a claim tells the new owner. Durations are ms from the claim, by the database's clock. */
export interface ClaimedRun {
  id: string;
  tenant: string;
  agent: string;
  epoch: number;
  attempt: number;
  priority: number;
  tag: number;
  wake: number;
  /** The highest seq of its log that its owner was told of. */
  lastSeq: number;
  softInMs: number;
  hardInMs: number;
  deadlineInMs: number | null;
  kind: "query" | "rollback";
  ofRun: string | null;
  sessionId: string | null;
  /** Owners lost in a row; from `suspectCrashes` on it is claimed as the only such run of a worker. */
  crashes: number;
  /** Its tenant or session has a cap of money. */
  capped: boolean;
  /** The database's clock at the claim, ms since 1970. */
  claimedAtMs: number;
  /** How long it had been due. */
  waitedMs: number;
  /** How long ago it was accepted. */
  ageMs: number;
}

interface ClaimRow {
  id: string;
  tenant: string;
  agent: string;
  epoch: number;
  attempt: number;
  priority: number;
  tag: number;
  wake: number;
  last_seq: number;
  soft_in: number;
  hard_in: number;
  deadline_in: number | null;
  kind: "query" | "rollback";
  of_run: string | null;
  session_id: string | null;
  crashes: number;
  capped: boolean;
  claimed_at_ms: number;
  waited: number;
  age: number;
}

const claimColumns = `r.id, r.tenant, r.agent, r.epoch, r.attempt, r.priority, r.tag, r.wake, r.last_seq, r.kind, r.of_run, r.session_id, r.crashes,
  ${isCapped} AS capped, (extract(epoch FROM r.claimed_at) * 1000)::float8 AS claimed_at_ms,
  (extract(epoch FROM r.soft_at - r.claimed_at) * 1000)::float8 AS soft_in,
  (extract(epoch FROM r.hard_at - r.claimed_at) * 1000)::float8 AS hard_in,
  (extract(epoch FROM r.deadline - r.claimed_at) * 1000)::float8 AS deadline_in,
  (extract(epoch FROM r.claimed_at - r.available_at) * 1000)::float8 AS waited,
  (extract(epoch FROM r.claimed_at - r.created_at) * 1000)::float8 AS age`;

/** `guarded`: the parameter with the agents whose policies run around every call. */
const claimSet = (
  guarded: string,
): string => `status = 'running', worker = me.id, epoch = r.epoch + 1, claimed_at = now(),
  soft_at = now() + greatest(0, r.soft_ms - r.active_ms) * interval '1 ms',
  hard_at = now() + greatest(0, r.hard_ms - r.active_ms) * interval '1 ms',
  started_at = coalesce(r.started_at, now()), last_seq = r.last_seq + 1, last_append = NULL,
  user_code = r.user_code OR r.agent = ANY(${guarded}::text[]), set_aside_at = NULL`;

const claimGuard = `r.status = 'queued' AND r.available_at <= now() AND r.cancel_requested_at IS NULL AND r.log_version <= ${logVersion}`;

const liveWorker = `SELECT id FROM workers WHERE id = $1 AND dead_at IS NULL AND heartbeat_at > clock_timestamp() - lease_ms * interval '1 ms'`;

const logClaim = `INSERT INTO run_events (run_id, seq, type, data, event_id)
  SELECT id, last_seq, 'run.started', json_strip_nulls(json_build_object('epoch', epoch, 'attempt', attempt, 'worker', $1::uuid,
    'agent_hash', $2::jsonb ->> agent)), gen_random_uuid() FROM claimed r`;

export interface ClaimOptions {
  /** How many runs at most. */
  most: number;
  /** How many of them at most that are suspected of killing workers (default 1). The worker must hold no others. */
  suspects?: number;
  /** Hashes of the agents' definitions as this worker has them, by name. */
  agentHashes?: Record<string, string>;
  /** Agents for which code of users runs also outside of tools (default none). */
  guarded?: string[];
  /** What this worker can carry (default everything). Other runs that are next are set aside for others, until `wakeKnown`. */
  known?: Known | undefined;
  /** Of these runs only (default any). */
  only?: string[];
}

export interface Claimed {
  /** In order: class, then tag. */
  runs: ClaimedRun[];
  /** So many were looked at, claimed or set aside: fewer than `most` means that nothing else is due. */
  seen: number;
  /** Agents of runs that were set aside, each once. */
  aside: string[];
}

/** Agents by name, models as "provider/model" or "provider/*". */
export interface Known {
  agents: string[];
  models: string[];
}

/** In words: what a worker must know to carry a run. */
export const workOf = ({ agent, model }: { agent: string; model: string | null }): string =>
  `the agent "${agent}"${model === null ? "" : ` with the model "${model}"`}`;

/** Whether somebody who has these (SQL: text[], NULL for all) can carry the run `r`. */
export const knows = (agents: string, models: string): string => `(${agents} IS NULL OR r.agent = ANY(${agents}))
  AND (r.model IS NULL OR ${models} IS NULL OR r.model = ANY(${models}) OR split_part(r.model, '/', 1) || '/*' = ANY(${models}))`;

/**
 * A run whose owner was lost so often in a row, unexplained or by its own fault, is suspected: see `ClaimOptions`. A worker takes suspects in
 * groups, each of which has to clear itself, and each twice as large as the last one: 1, 2, 4, …
 */
export const suspectCrashes = 2;

/** A suspect is not claimed before, ms. */
export const suspectBackoffMs = 2000;

/**
 * queued -> running for the runs next in order that are due; the claimer's live row is required in the same statement. Those that were set aside
 * for want of a worker like this one go first. It reads from each class's floor on: not what is over. A run that is next and that this worker
 * cannot carry is put where only workers look that can; its status stays. A claim that comes through after its claimer gave it up makes a run
 * that nobody carries: `readClaims` finds it, or the look for strays, and it is handed over (`Ownership.findStrays`).
 */
export async function claimNext(db: Queryable, worker: string, options: ClaimOptions): Promise<Claimed> {
  const { most, suspects = 1, agentHashes = {}, guarded = [], known, only } = options;
  const due = `${claimGuard}${only ? " AND r.id = ANY($8::uuid[])" : ""}`;
  const isKnown = knows("$4::text[]", "$5::text[]");
  const { rows } = await db.query<(ClaimRow | { id: null }) & Pick<Claimed, "seen"> & { aside: string[] | null }>(
    // A plan made for an empty table would read all of one that has filled since.
    `${plannedAnew} WITH me AS (${liveWorker}),
     suspects AS (
       SELECT r.id, ${isKnown} AS known FROM runs r WHERE ${due} AND r.woken AND r.crashes >= ${suspectCrashes}
       ORDER BY r.priority DESC, r.tag, r.id LIMIT $7 FOR UPDATE SKIP LOCKED),
     aside AS (
       SELECT a.id, true AS known FROM unnest($4::text[]) AS k(agent), LATERAL (
         SELECT r.id FROM runs r WHERE ${due} AND ${isKnown} AND r.agent = k.agent AND r.set_aside_at IS NOT NULL AND r.crashes < ${suspectCrashes}
         ORDER BY r.set_aside_at LIMIT $6 FOR UPDATE SKIP LOCKED) a
       LIMIT $6),
     others AS (
       SELECT o.id, o.known FROM (SELECT priority, floor_tag FROM fair_classes ORDER BY priority DESC) c, LATERAL (
         SELECT r.id, ${isKnown} AS known FROM runs r
         WHERE ${due} AND r.woken AND r.priority = c.priority AND r.tag >= c.floor_tag AND r.crashes < ${suspectCrashes}
         ORDER BY r.tag, r.id LIMIT $6 FOR UPDATE SKIP LOCKED) o
       LIMIT $6),
     next AS MATERIALIZED (SELECT * FROM suspects UNION ALL SELECT * FROM aside UNION ALL SELECT * FROM others LIMIT $6),
     claimed AS (
       UPDATE runs r SET ${claimSet("$3")} FROM me WHERE r.id = ANY(ARRAY(SELECT id FROM next WHERE known)) RETURNING ${claimColumns}),
     left_aside AS (
       UPDATE runs r SET woken = false, set_aside_at = now() FROM me WHERE r.id = ANY(ARRAY(SELECT id FROM next WHERE NOT known)) RETURNING r.agent),
     logged AS (${logClaim})
     SELECT c.*, l.seen, l.aside
     FROM (SELECT (SELECT count(*) FROM next, me) AS seen, (SELECT array_agg(DISTINCT agent) FROM left_aside) AS aside) l LEFT JOIN claimed c ON true
     ORDER BY c.priority DESC, c.tag, c.id`,
    [
      worker,
      JSON.stringify(agentHashes),
      guarded,
      known?.agents ?? null,
      known?.models ?? null,
      most,
      suspects,
      ...(only ? [only] : []),
    ],
  );
  const { seen, aside } = rows[0]!;
  const runs = rows.flatMap(({ seen: _seen, aside: _aside, ...row }) => (row.id === null ? [] : [claimedRun(row)]));
  return { runs, seen, aside: aside ?? [] };
}

/** All that the database says is this worker's, as "<run id> <epoch>". It reads as much as the worker has held lately: a rare look. */
export async function readHeld(db: Queryable, worker: string): Promise<string[]> {
  const { rows } = await db.query<{ held: string }>(
    "SELECT id || ' ' || epoch AS held FROM runs WHERE worker = $1 AND status = 'running'",
    [worker],
  );
  return rows.map(({ held }) => held);
}

/** All that this worker holds, read after a claim whose answer was lost. It reads as much as the worker has held lately: a rare look. */
export async function readClaims(db: Queryable, worker: string): Promise<ClaimedRun[]> {
  const { rows } = await db.query<ClaimRow>(
    `SELECT ${claimColumns} FROM runs r WHERE r.worker = $1 AND r.status = 'running'`,
    [worker],
  );
  return rows.map(claimedRun);
}

function claimedRun(row: ClaimRow): ClaimedRun {
  const { last_seq, soft_in, hard_in, deadline_in, waited, age, of_run, session_id, claimed_at_ms, ...same } = row;
  return {
    ...same,
    ofRun: of_run,
    sessionId: session_id,
    claimedAtMs: claimed_at_ms,
    lastSeq: last_seq,
    softInMs: soft_in,
    hardInMs: hard_in,
    deadlineInMs: deadline_in,
    waitedMs: waited,
    ageMs: age,
  };
}
