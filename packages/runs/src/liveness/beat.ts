/** A heartbeat as a statement: "this worker lives", and what became of the runs it holds. */
import type { Queryable } from "@drover/storage";
import { pastAll } from "../moves/moved.ts";
import { ownLock } from "./lock.ts";

/** Runs of a worker, each with its epoch. */
export interface Held {
  runs: string[];
  epochs: number[];
}

export interface Lost {
  runId: string;
  epoch: number;
}

/** What a heartbeat hears. */
export interface Heard {
  /** Where the worker's row is now. */
  place: string;
  /** This session still holds its lock. */
  locked: boolean;
  /** Of the runs asked about: not this worker's any more. */
  lost: Lost[];
  /** Of the runs asked about: ids of those for which a cancel was asked. */
  cancelled: string[];
}

/** So long past all its limits a run is held before others may end it, ms. */
const heldTooLongMs = 15_000;

/**
 * Moves the heartbeat of the worker's row on, and says which of `held` are past all their limits. Reads the row where it was written last
 * (`place`, null: unknown) and each run by its key, never by an index of what this worker has: under a long snapshot those lead through
 * everything that is over. null: the worker is declared dead.
 */
export async function sayAlive(db: Queryable, worker: string, held: Held, place: string | null): Promise<Heard | null> {
  const { runs, epochs } = held;
  const values = [worker, runs, epochs, heldTooLongMs];
  let [row] = place === null ? [] : (await db.query<HeardRow>(statement("w.ctid = $5::tid"), [...values, place])).rows;
  row ??= (await db.query<HeardRow>(statement("true"), values)).rows[0];
  if (!row) return null;
  const lost = new Set(row.lost);
  return { ...row, lost: runs.flatMap((runId, n) => (lost.has(runId) ? [{ runId, epoch: epochs[n]! }] : [])) };
}

type HeardRow = Omit<Heard, "lost"> & { lost: string[] };

// OFFSET 0: by their keys, whatever the statistics say of the index of running runs.
const statement = (here: string) => `
  WITH mine AS MATERIALIZED (
    SELECT i.id, r.id IS NULL AS lost, r.cancel_requested_at IS NOT NULL AS cancelled, ${pastAll("r", "$4")} AS overdue
    FROM unnest($2::uuid[], $3::int[]) AS i(id, epoch)
    LEFT JOIN LATERAL (SELECT * FROM runs WHERE runs.id = i.id OFFSET 0) r ON r.epoch = i.epoch AND r.worker = $1 AND r.status = 'running')
  UPDATE workers w SET heartbeat_at = clock_timestamp(), overdue = (SELECT array_agg(id) FROM mine WHERE overdue)
  WHERE w.id = $1 AND w.dead_at IS NULL AND ${here}
  RETURNING ctid::text AS place, EXISTS (SELECT FROM ${ownLock}) AS locked,
    coalesce((SELECT array_agg(id) FROM mine WHERE lost), '{}') AS lost,
    coalesce((SELECT array_agg(id) FROM mine WHERE cancelled), '{}') AS cancelled`;
