/** The session advisory lock that every living worker's liveness connection holds: (`workersLockClass`, `workers.lock_id`). */

/** "drvr" in ASCII: apart from the locks of others in the same database. */
export const workersLockClass = 0x64727672;

/** `pg_locks AS <alias> WHERE …`: the locks of this database's workers. Source: PostgreSQL's manual, view pg_locks. */
export const workersLock = (alias: string): string =>
  `pg_locks ${alias} WHERE ${alias}.locktype = 'advisory' AND ${alias}.classid = ${workersLockClass} AND ${alias}.objsubid = 2 AND ${alias}.granted
     AND ${alias}.database = (SELECT oid FROM pg_database WHERE datname = current_database())`;

/** The worker `w` does not hold its lock: its liveness connection is gone, at once when its process dies. */
export const unlocked = `(w.lock_id IS NOT NULL AND NOT EXISTS (SELECT FROM ${workersLock("l")} AND l.objid::bigint = w.lock_id))`;
/** The worker `w` has said nothing for a lease. */
export const silent = "w.heartbeat_at < clock_timestamp() - w.lease_ms * interval '1 ms'";
/** `workers w WHERE …`: those that are alive as far as can be seen now, before anybody has declared the others dead. */
export const livingWorkers = `workers w WHERE w.dead_at IS NULL AND NOT ${silent} AND NOT ${unlocked}`;

/** Of the session that asks. */
export const ownLock = `${workersLock("l")} AND l.pid = pg_backend_pid()`;
