/**
 * Money around runs, durable: caps of a tenant's day and month and of its sessions. What a call may cost at worst is set aside before it
 * (`reserve`), and what it did cost is charged in the statement that records it (`append.ts`). A level without a cap has no account. A day's and
 * a month's start with the cap, at what was spent so far, or with the day, at nothing; a session's starts at what its own runs have spent. No
 * reservation reads a tenant's history.
 */
import type { MoneyBudget, OuterLevel } from "@drover/harness/worker";
import { pause } from "@drover/harness/worker";
import {
  createBatcher,
  type Pool,
  type Queryable,
  type Transaction,
  throughOutages,
  transaction,
} from "@drover/storage";
import { recordAudit } from "../audit/entries.ts";
import type { Moved } from "../moves/moved.ts";
import { resumeRuns } from "../moves/park.ts";
import { payAccounts } from "./budget-sql.ts";

interface ReserveOp {
  runId: string;
  epoch: number;
  tenant: string;
  sessionId: string | null;
  most: number;
  least: number;
}

/** `busy`: what is missing is set aside by others who may give it back. */
type ReserveAnswer = { granted: number } | { exhausted: OuterLevel; busy: boolean };

interface RunBudget extends MoneyBudget {
  /** What claims and appends say about it. */
  capped: boolean;
  /** Whether money is set aside now, which the append that ends the call must charge. */
  readonly held: boolean;
  /** The append that ended the call has charged it. */
  charged(): void;
}

export type BudgetOf = (
  run: { id: string; epoch: number; tenant: string; sessionId: string | null; capped: boolean },
  stop: AbortSignal,
) => RunBudget;

const busyPauseMs = { first: 50, most: 500 };

/** Budgets for the runs of one worker; their reservations share transactions. `signal` ends the waiting for a database that is away. */
export function createBudgets(pool: Pool, signal: AbortSignal): BudgetOf {
  const reserve = createBatcher<ReserveOp, ReserveAnswer>({
    key: (op) => `${op.tenant} ${op.runId}`,
    execute: (ops) => reserveAll(pool, ops),
    // Reserving again replaces what was reserved, so repeating is the same as reading back.
    recover: async (ops) => ops.map(() => undefined),
    signal,
  });
  return (run, stop) => {
    let held = false;
    return {
      capped: run.capped,
      get held() {
        return held;
      },
      charged() {
        held = false;
      },
      async reserve(most, least) {
        for (let pauseMs = busyPauseMs.first; ; pauseMs = Math.min(2 * pauseMs, busyPauseMs.most)) {
          const { id: runId, epoch, tenant, sessionId } = run;
          const answer = await reserve({ runId, epoch, tenant, sessionId, most, least });
          held = "granted" in answer;
          if ("granted" in answer) return answer;
          if (!answer.busy || stop.aborted) return { exhausted: answer.exhausted };
          await pause(pauseMs * (0.5 + Math.random() / 2), stop);
        }
      },
      async settle() {
        if (!held) return;
        held = false;
        await throughOutages(() => releaseReservations(pool, [{ runId: run.id, epoch: run.epoch }]), signal);
      },
    };
  };
}

interface Account {
  tenant: string;
  level: OuterLevel;
  ref: string;
  left: number;
  reserved: number;
}

interface ReservationRow {
  run_id: string;
  tenant: string;
  nanos: number;
  session_ref: string | null;
  day_ref: string | null;
  month_ref: string | null;
}

/**
 * One transaction for many runs: lock the accounts in the order of their keys, share out what is left, write it down. Late comes at most its
 * COMMIT, which holds the accounts until then: whoever repeats it waits, and replaces what it had set aside. What an owner sets aside that has
 * lost its run comes back with the orphans.
 */
async function reserveAll(pool: Pool, ops: ReserveOp[]): Promise<ReserveAnswer[]> {
  return await transaction(pool, async (tx) => {
    // What an earlier owner of the same run had set aside comes back first.
    await releaseReservations(tx, ops);
    const accounts = await lockAccounts(tx, ops);
    const answers = ops.map((op) => share(op, accounts.get(op) ?? []));
    const granted = ops.flatMap((op, at) => {
      const answer = answers[at]!;
      return "granted" in answer ? [{ op, nanos: answer.granted, refs: refsOf(accounts.get(op) ?? []) }] : [];
    });
    if (granted.length === 0) return answers;
    await tx.query(
      `WITH made AS (
         INSERT INTO budget_reservations (run_id, epoch, tenant, nanos, session_ref, day_ref, month_ref)
         SELECT * FROM unnest($1::uuid[], $2::int[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[])
         RETURNING tenant, nanos, session_ref, day_ref, month_ref),
       sums AS (
         SELECT tenant, level, ref, sum(nanos)::bigint AS nanos
         FROM made, LATERAL (VALUES ('session', session_ref), ('tenant_day', day_ref), ('tenant_month', month_ref)) AS v(level, ref)
         WHERE ref IS NOT NULL GROUP BY tenant, level, ref)
       UPDATE budget_accounts a SET reserved_nanos = a.reserved_nanos + s.nanos
       FROM sums s WHERE (a.tenant, a.level, a.ref) = (s.tenant, s.level, s.ref)`,
      [
        granted.map(({ op }) => op.runId),
        granted.map(({ op }) => op.epoch),
        granted.map(({ op }) => op.tenant),
        granted.map(({ nanos }) => nanos),
        granted.map(({ refs }) => refs.session ?? null),
        granted.map(({ refs }) => refs.tenant_day ?? null),
        granted.map(({ refs }) => refs.tenant_month ?? null),
      ],
    );
    return answers;
  });
}

/** Takes what an operation may have from every account it draws on; the accounts go down with it. */
function share({ most, least }: ReserveOp, accounts: Account[]): ReserveAnswer {
  const tightest = accounts.toSorted((a, b) => a.left - b.left)[0];
  if (!tightest) return { granted: most };
  const granted = Math.min(most, tightest.left);
  if (granted < least) return { exhausted: tightest.level, busy: tightest.left + tightest.reserved >= least };
  for (const account of accounts) {
    account.left -= granted;
    account.reserved += granted;
  }
  return { granted };
}

const refsOf = (accounts: Account[]): Partial<Record<OuterLevel, string>> =>
  Object.fromEntries(accounts.map(({ level, ref }) => [level, ref]));

/** The accounts of each operation, locked in the order of their keys; those that do not exist yet are made. */
async function lockAccounts(tx: Transaction, ops: ReserveOp[]): Promise<Map<ReserveOp, Account[]>> {
  const tenants = ops.map((op) => op.tenant);
  const sessions = ops.map((op) => op.sessionId);
  const wanted = `SELECT DISTINCT b.tenant, v.level, v.ref, v.cap
    FROM unnest($1::text[], $2::uuid[]) AS o(tenant, session_id) JOIN budgets b ON b.tenant = o.tenant,
    LATERAL (VALUES ('session', o.session_id::text, b.session_nanos),
                    ('tenant_day', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD'), b.day_nanos),
                    ('tenant_month', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM'), b.month_nanos)) AS v(level, ref, cap)
    WHERE v.cap IS NOT NULL AND v.ref IS NOT NULL`;
  await tx.query(
    `INSERT INTO budget_accounts (tenant, level, ref, used_nanos)
     SELECT w.tenant, w.level, w.ref, CASE w.level WHEN 'session' THEN ${spentBySession("w")} ELSE 0 END FROM (${wanted}) w
     WHERE NOT EXISTS (SELECT FROM budget_accounts a WHERE (a.tenant, a.level, a.ref) = (w.tenant, w.level, w.ref))
     ORDER BY 1, 2, 3 ON CONFLICT DO NOTHING`,
    [tenants, sessions],
  );
  const { rows } = await tx.query<{ tenant: string; level: OuterLevel; ref: string; left: number; reserved: number }>(
    `SELECT a.tenant, a.level, a.ref, w.cap - a.used_nanos - a.reserved_nanos AS left, a.reserved_nanos AS reserved
     FROM budget_accounts a JOIN (${wanted}) w USING (tenant, level, ref) ORDER BY a.tenant, a.level, a.ref FOR UPDATE OF a`,
    [tenants, sessions],
  );
  return new Map(
    ops.map((op) => [
      op,
      rows.filter((row) => row.tenant === op.tenant && (row.level !== "session" || row.ref === op.sessionId)),
    ]),
  );
}

/** What the session of an account has spent, from its own runs. */
const spentBySession = (account: string): string =>
  `coalesce((SELECT sum(r.cost_nanos)::bigint FROM runs r WHERE r.session_id = ${account}.ref::uuid AND r.tenant = ${account}.tenant), 0)`;

/** What a tenant's runs of this UTC day or month have spent: as many rows as there are runs in it. */
const spentSince = (unit: "day" | "month", tenant: string): string =>
  `coalesce((SELECT sum(r.cost_nanos)::bigint FROM runs r WHERE r.tenant = ${tenant}
    AND r.id >= uuidv7_floor(date_trunc('${unit}', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')), 0)`;

/** Gives back what is set aside for these runs by these owners or earlier ones, uncharged. */
async function releaseReservations(db: Queryable, runs: { runId: string; epoch: number }[]): Promise<void> {
  await db.query<ReservationRow>(
    `WITH released AS (
       DELETE FROM budget_reservations b USING unnest($1::uuid[], $2::int[]) AS i(run_id, epoch)
       WHERE b.run_id = i.run_id AND b.epoch <= i.epoch RETURNING b.*, 0 AS cost),
     ${payAccounts}
     SELECT`,
    [runs.map((run) => run.runId), runs.map((run) => run.epoch)],
  );
}

/** Gives back what dead owners had set aside. */
export async function releaseOrphans(db: Queryable): Promise<void> {
  await db.query(
    `WITH released AS (
       DELETE FROM budget_reservations b USING runs r
       WHERE r.id = b.run_id AND (r.status <> 'running' OR r.epoch <> b.epoch) RETURNING b.*, 0 AS cost),
     ${payAccounts}
     SELECT`,
  );
}

/** Caps and usage in nano-USD; null: no cap. Usage is what is charged, without what is set aside. */
export interface TenantBudget {
  day: { cap: number | null; used: number };
  month: { cap: number | null; used: number };
  session: { cap: number | null };
}

/** What a tenant may spend, and has spent in this UTC day and month. */
export async function readBudget(db: Queryable, tenant: string): Promise<TenantBudget> {
  const { rows } = await db.query<{
    day_nanos: number | null;
    month_nanos: number | null;
    session_nanos: number | null;
    day_used: number;
    month_used: number;
  }>(
    `SELECT b.day_nanos, b.month_nanos, b.session_nanos, ${usedIn("day", "b.day_nanos")} AS day_used, ${usedIn("month", "b.month_nanos")} AS month_used
     FROM (SELECT $1::text AS tenant) t LEFT JOIN budgets b USING (tenant)`,
    [tenant],
  );
  const row = rows[0]!;
  return {
    day: { cap: row.day_nanos, used: row.day_used },
    month: { cap: row.month_nanos, used: row.month_used },
    session: { cap: row.session_nanos },
  };
}

const refs = { day: "YYYY-MM-DD", month: "YYYY-MM" };

/** Charged to the account where there is one and a cap keeps it; under a cap without one, nothing was yet; else summed. */
function usedIn(unit: "day" | "month", cap: string): string {
  return `CASE WHEN ${cap} IS NULL THEN ${spentSince(unit, "t.tenant")}
      ELSE coalesce((SELECT used_nanos FROM budget_accounts a WHERE a.tenant = t.tenant AND a.level = 'tenant_${unit}'
        AND a.ref = to_char(now() AT TIME ZONE 'UTC', '${refs[unit]}')), 0) END`;
}

/**
 * Accounts of levels that had no cap until now have missed what was spent without one. A day's and a month's are opened, or set right where
 * money is still set aside; sessions' go, and the next reservation makes them anew, or are set right. Call it before the caps change, with those
 * that will have one afterwards.
 */
async function countAnew(tx: Transaction, tenant: string, capped: { day: boolean; month: boolean }): Promise<void> {
  const uncapped = `a.tenant = $1 AND b.tenant = $1
    AND CASE a.level WHEN 'session' THEN b.session_nanos WHEN 'tenant_day' THEN b.day_nanos ELSE b.month_nanos END IS NULL`;
  await tx.query(
    `SELECT FROM budget_accounts a, budgets b WHERE ${uncapped} ORDER BY a.tenant, a.level, a.ref FOR UPDATE OF a`,
    [tenant],
  );
  await tx.query(`DELETE FROM budget_accounts a USING budgets b WHERE ${uncapped} AND a.reserved_nanos = 0`, [tenant]);
  await tx.query(
    `UPDATE budget_accounts a SET used_nanos = ${spentBySession("a")} FROM budgets b WHERE ${uncapped} AND a.level = 'session'`,
    [tenant],
  );
  for (const unit of ["day", "month"] as const)
    if (capped[unit])
      await tx.query(
        `INSERT INTO budget_accounts AS a (tenant, level, ref, used_nanos)
         SELECT b.tenant, 'tenant_${unit}', to_char(now() AT TIME ZONE 'UTC', '${refs[unit]}'), ${spentSince(unit, "b.tenant")}
         FROM budgets b WHERE b.tenant = $1 AND b.${unit}_nanos IS NULL
         ON CONFLICT (tenant, level, ref) DO UPDATE SET used_nanos = excluded.used_nanos`,
        [tenant],
      );
}

/** What to change: nano-USD, null for no cap, undefined to leave it. */
export interface CapChange {
  day?: number | null | undefined;
  month?: number | null | undefined;
  session?: number | null | undefined;
}

/** Sets caps of a tenant. Runs that wait for one of them look again; returns them: wake them. */
export async function setBudget(pool: Pool, tenant: string, change: CapChange, actor: string): Promise<Moved[]> {
  return await transaction(pool, async (tx) => {
    await tx.query("INSERT INTO budgets (tenant) VALUES ($1) ON CONFLICT DO NOTHING", [tenant]);
    await tx.query("SELECT FROM budgets WHERE tenant = $1 FOR UPDATE", [tenant]);
    await countAnew(tx, tenant, { day: typeof change.day === "number", month: typeof change.month === "number" });
    await tx.query(
      `UPDATE budgets SET day_nanos = CASE WHEN $2 THEN $3 ELSE day_nanos END, month_nanos = CASE WHEN $4 THEN $5 ELSE month_nanos END,
         session_nanos = CASE WHEN $6 THEN $7 ELSE session_nanos END, changed_at = clock_timestamp() WHERE tenant = $1`,
      [
        tenant,
        change.day !== undefined,
        change.day ?? null,
        change.month !== undefined,
        change.month ?? null,
        change.session !== undefined,
        change.session ?? null,
      ],
    );
    await recordAudit(tx, [{ tenant, actor, action: "budget.changed", runId: null, data: { ...change } }]);
    const waiting = await tx.query<{ id: string }>(
      `SELECT id FROM runs WHERE tenant = $1 AND status = 'waiting' AND waiting_level IN ('session', 'tenant_day', 'tenant_month')
       ORDER BY id FOR UPDATE`,
      [tenant],
    );
    return await resumeRuns(
      tx,
      waiting.rows.map((row) => row.id),
    );
  });
}
