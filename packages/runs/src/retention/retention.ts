/**
 * Removes what was kept long enough: a table of parts, each with its own statement that says what is due. A pass removes a slice of each, so that nobody
 * waits for it; it may die anywhere, and the next one goes on. A part goes only when nothing that is kept needs it.
 */
import { dropMonth, type Month, type Pool, type Queryable, readMonths, transaction } from "@drover/storage";
import { cutTrail, readCuttable } from "../audit/cut.ts";
import type { Retention } from "./config.ts";

/** What a pass removes, or would. `rows` of months are an estimate. */
export interface Due {
  part: string;
  keptDays: number;
  rows: number;
  /** Why something that is old enough stays, for people. */
  note?: string;
}

/** Rows a pass removes of each part at most. */
const slice = 500;

interface Part {
  name: string;
  keeps: keyof Retention;
  count(db: Queryable, retention: Retention): Promise<Omit<Due, "part" | "keptDays">>;
  /** A slice; how many are gone. */
  remove(pool: Pool, retention: Retention): Promise<number>;
}

const cutoff = "now() - $1 * interval '1 day'";
const olderThan = (id: string): string => `${id} < uuidv7_floor(${cutoff})`;

/** Rows of a table that are due by a SELECT of their key. */
function rowsOf(keeps: keyof Retention, name: string, table: string, key: string, due: string, order = key): Part {
  return {
    name,
    keeps,
    async count(db, retention) {
      const { rows } = await db.query<{ n: number }>(`SELECT count(*) AS n FROM (${due}) d`, [retention[keeps]]);
      return { rows: rows[0]!.n };
    },
    async remove(pool, retention) {
      const { rowCount } = await pool.query(
        `DELETE FROM ${table} WHERE (${key}) IN (${due} ORDER BY ${order} LIMIT ${slice})`,
        [retention[keeps]],
      );
      return rowCount ?? 0;
    },
  };
}

const messages = rowsOf(
  "contentsDays",
  "messages and deliveries",
  "messages",
  "id",
  `SELECT id FROM messages m WHERE ${olderThan("m.id")} AND m.fanned_out
     AND NOT EXISTS (SELECT FROM deliveries d WHERE d.message_id = m.id AND d.status = 'pending')`,
);

/** The last number of a tenant stays: the next one follows it. */
const feed: Part = {
  name: "places in the feed",
  keeps: "contentsDays",
  async count(db, { contentsDays }) {
    const { rows } = await db.query<{ n: number }>(
      `SELECT count(*) AS n FROM message_feed f WHERE ${olderThan("f.message_id")}
         AND seq < (SELECT max(seq) FROM message_feed l WHERE l.tenant = f.tenant)`,
      [contentsDays],
    );
    return { rows: rows[0]!.n };
  },
  async remove(pool, { contentsDays }) {
    const { rowCount } = await pool.query(
      `DELETE FROM message_feed WHERE (tenant, seq) IN (
         SELECT tenant, f.seq FROM (SELECT id AS tenant FROM tenants) t,
           LATERAL (SELECT seq FROM message_feed WHERE tenant = t.tenant ORDER BY seq DESC LIMIT 1) last,
           LATERAL (SELECT seq, message_id FROM message_feed WHERE tenant = t.tenant ORDER BY seq LIMIT ${slice}) f
         WHERE f.seq < last.seq AND ${olderThan("f.message_id")} LIMIT ${slice})`,
      [contentsDays],
    );
    return rowCount ?? 0;
  },
};

const approvals = rowsOf(
  "contentsDays",
  "answered questions",
  "approvals",
  "id",
  `SELECT id FROM approvals WHERE ${olderThan("id")} AND status <> 'pending'`,
);

/**
 * Whole months, once no run of theirs is open or has ended too lately, and none that is open undoes one of them. Four looks at the runs that are open, each
 * by its own index.
 */
const months: Part = {
  name: "logs, by month",
  keeps: "contentsDays",
  async count(db, { contentsDays }) {
    let rows = 0;
    const notes: string[] = [];
    for (const month of await readMonths(db)) {
      if (month.isDefault || month.untilDaysAgo < contentsDays) continue;
      const held = await whoHolds(db, month, contentsDays);
      if (held) notes.push(`${month.name} stays: ${held}`);
      else if (!month.owned) notes.push(`${month.name} stays: only the owner of the tables can drop it`);
      else rows += month.rows;
    }
    return { rows, ...(notes.length > 0 && { note: notes.join("; ") }) };
  },
  async remove(pool, { contentsDays }) {
    for (const month of await readMonths(pool)) {
      if (month.isDefault || !month.owned || month.untilDaysAgo < contentsDays) continue;
      if (await whoHolds(pool, month, contentsDays)) continue;
      await dropMonth(pool, month);
      return Math.max(slice, month.rows);
    }
    return 0;
  },
};

async function whoHolds(db: Queryable, { low, high }: Month, contentsDays: number): Promise<string | null> {
  const open = (where: string) =>
    `SELECT id FROM runs WHERE ${where} AND coalesce(of_run, id) >= $1 AND coalesce(of_run, id) < $2`;
  const { rows } = await db.query<{ id: string }>(
    `${[
      "status = 'waiting'",
      "status = 'running'",
      "status = 'queued' AND woken",
      "status = 'queued' AND NOT woken",
      "rollback = 'owed'",
    ]
      .map(open)
      .join(" UNION ALL ")} LIMIT 1`,
    [low, high],
  );
  if (rows[0]) return "a run of it is not final, or is being undone";
  const lately = await db.query(
    `SELECT FROM runs WHERE id >= $1 AND id < $2 AND finished_at > now() - $3 * interval '1 day' LIMIT 1`,
    [low, high, contentsDays],
  );
  return lately.rowCount === 0 ? null : "a run of it ended too lately";
}

/** What fell into no month: run by run, each whole. */
const strays: Part = {
  name: "logs outside of any month",
  keeps: "contentsDays",
  async count(db, { contentsDays }) {
    const { rows } = await db.query<{ n: number }>(
      `SELECT count(*) AS n FROM run_events_default e WHERE ${olderThan("run_id")} AND ${strayIsDue}`,
      [contentsDays],
    );
    return { rows: rows[0]!.n };
  },
  async remove(pool, { contentsDays }) {
    const { rowCount } = await pool.query(
      `DELETE FROM run_events_default WHERE run_id IN (
         SELECT DISTINCT run_id FROM run_events_default e WHERE ${olderThan("run_id")} AND ${strayIsDue} ORDER BY run_id LIMIT 50)`,
      [contentsDays],
    );
    return rowCount ?? 0;
  },
};
const strayIsDue = `NOT EXISTS (SELECT FROM runs r WHERE r.id = e.run_id AND (r.finished_at IS NULL OR r.finished_at > ${cutoff} OR r.rollback = 'owed'
  OR EXISTS (SELECT FROM runs u WHERE u.of_run = r.id AND u.finished_at IS NULL)))`;

/**
 * What no log that is kept can name: not stored again since the oldest kept month began, by a day, since clocks differ. Whoever stores or copies it anew makes
 * it young again.
 */
const blobsDue = `SELECT tenant, hash FROM blobs WHERE created_at < least(${cutoff}, $2::timestamptz) - interval '1 day'`;
const blobs: Part = {
  name: "large contents",
  keeps: "contentsDays",
  async count(db, { contentsDays }) {
    const { rows } = await db.query<{ n: number }>(`SELECT count(*) AS n FROM (${blobsDue}) d`, [
      contentsDays,
      await oldestLog(db),
    ]);
    return { rows: rows[0]!.n };
  },
  async remove(pool, { contentsDays }) {
    const { rowCount } = await pool.query(
      `DELETE FROM blobs WHERE (tenant, hash) IN (${blobsDue} ORDER BY created_at LIMIT ${slice})`,
      [contentsDays, await oldestLog(pool)],
    );
    return rowCount ?? 0;
  },
};

/** When the oldest month began that is still there; of what is outside of any month, its oldest run. */
async function oldestLog(db: Queryable): Promise<Date> {
  const kept = (await readMonths(db)).filter((month) => !month.isDefault).map((month) => timeOf(month.low));
  const { rows } = await db.query<{ run_id: string }>("SELECT run_id FROM run_events_default ORDER BY run_id LIMIT 1");
  return new Date(Math.min(...kept, ...rows.map((row) => timeOf(row.run_id)), Date.now()));
}

/** Of a UUIDv7, ms since 1970. */
const timeOf = (id: string): number => Number.parseInt(id.replaceAll("-", "").slice(0, 12), 16);

/** With the sessions' accounts that no run is left of. A run that was undone stays as long as the one that undid it. */
const runsDue = `SELECT id FROM runs r WHERE ${olderThan("r.id")} AND r.finished_at < ${cutoff}
  AND NOT EXISTS (SELECT FROM runs u WHERE u.of_run = r.id AND (u.finished_at IS NULL OR u.finished_at >= ${cutoff}))`;
const runs: Part = {
  name: "runs",
  keeps: "totalsDays",
  async count(db, { totalsDays }) {
    const { rows } = await db.query<{ n: number }>(`SELECT count(*) AS n FROM (${runsDue}) d`, [totalsDays]);
    return { rows: rows[0]!.n };
  },
  remove: (pool, { totalsDays }) =>
    transaction(pool, async (tx) => {
      const { rows } = await tx.query<{ tenant: string; session_id: string | null }>(
        `WITH due AS MATERIALIZED (${runsDue} ORDER BY id LIMIT ${slice})
         DELETE FROM runs WHERE id IN (SELECT id FROM due UNION SELECT u.id FROM runs u JOIN due ON u.of_run = due.id)
         RETURNING tenant, session_id`,
        [totalsDays],
      );
      const sessions = rows.filter((row) => row.session_id !== null);
      if (sessions.length > 0)
        await tx.query(
          `DELETE FROM budget_accounts a USING (SELECT DISTINCT * FROM unnest($1::text[], $2::uuid[]) AS i(tenant, session_id)) s
           WHERE (a.tenant, a.level, a.ref) = (s.tenant, 'session', s.session_id::text) AND a.reserved_nanos = 0
             AND NOT EXISTS (SELECT FROM runs r WHERE r.session_id = s.session_id)`,
          [sessions.map((row) => row.tenant), sessions.map((row) => row.session_id)],
        );
      return rows.length;
    }),
};

const batches = rowsOf(
  "totalsDays",
  "batches",
  "batches",
  "id",
  `SELECT id FROM batches b WHERE ${olderThan("id")} AND finished_at < ${cutoff} AND NOT EXISTS (SELECT FROM runs r WHERE r.batch_id = b.id)`,
);

const accounts = rowsOf(
  "totalsDays",
  "daily and monthly accounts",
  "budget_accounts",
  "tenant, level, ref",
  `SELECT tenant, level, ref FROM budget_accounts WHERE reserved_nanos = 0
     AND ref < to_char(${cutoff}, CASE level WHEN 'tenant_day' THEN 'YYYY-MM-DD' WHEN 'tenant_month' THEN 'YYYY-MM' END)`,
);

const trail: Part = {
  name: "audit trail",
  keeps: "auditDays",
  async count(db, { auditDays }) {
    const { entries, unsigned } = await readCuttable(db, auditDays);
    const note = `${unsigned} old entries stay: no checkpoint after them was signed (DROVER_AUDIT_KEY)`;
    return { rows: entries, ...(unsigned > 0 && { note }) };
  },
  remove: (pool, { auditDays }) => cutTrail(pool, auditDays),
};

/** In this order: logs before what they name, and places before their messages, so that whoever reads the feed is told of what is missing. */
const parts: Part[] = [feed, messages, approvals, months, strays, blobs, runs, batches, accounts, trail];

/** What is due now. It counts exactly, which takes as long as there is much. */
export async function readRetention(db: Queryable, retention: Retention): Promise<Due[]> {
  const due: Due[] = [];
  for (const part of parts)
    due.push({ part: part.name, keptDays: retention[part.keeps], ...(await part.count(db, retention)) });
  return due;
}

/**
 * Removes a slice of all that is due; `removed` by part, of which some had more than a slice when `more`. A part that fails is told of and does not hold up
 * the others.
 */
export async function retain(
  pool: Pool,
  retention: Retention,
  onError: (part: string, error: unknown) => void,
): Promise<{ removed: Map<string, number>; more: boolean }> {
  const removed = new Map<string, number>();
  let more = false;
  for (const part of parts) {
    try {
      const rows = await part.remove(pool, retention);
      if (rows > 0) removed.set(part.name, rows);
      if (rows >= slice) more = true;
    } catch (error) {
      onError(part.name, error);
    }
  }
  return { removed, more };
}
