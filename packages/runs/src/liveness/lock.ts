/** The session advisory lock that every living worker's liveness connection holds: (`workersLockClass`, `workers.lock_id`). */

/** "drvr" in ASCII: apart from the locks of others in the same database. */
export const workersLockClass = 0x64727672;

/** `pg_locks AS <alias> WHERE …`: the locks of this database's workers. Source: PostgreSQL's manual, view pg_locks. */
export const workersLock = (alias: string): string =>
  `pg_locks ${alias} WHERE ${alias}.locktype = 'advisory' AND ${alias}.classid = ${workersLockClass} AND ${alias}.objsubid = 2 AND ${alias}.granted
     AND ${alias}.database = (SELECT oid FROM pg_database WHERE datname = current_database())`;

/** Of the session that asks. */
export const ownLock = `${workersLock("l")} AND l.pid = pg_backend_pid()`;
