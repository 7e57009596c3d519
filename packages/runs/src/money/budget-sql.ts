/** Pieces of SQL about money that several statements share. */

/** Whether a cap around the run `r` holds for it. */
export const isCapped = `EXISTS (SELECT FROM budgets b WHERE b.tenant = r.tenant
    AND (num_nonnulls(b.day_nanos, b.month_nanos) > 0 OR (b.session_nanos IS NOT NULL AND r.session_id IS NOT NULL)))`;

/**
 * CTEs that give back and charge what `released` (rows of `budget_reservations` with a `cost`) was set aside for. Accounts are locked in the
 * order of their keys.
 */
export const payAccounts = `sums AS (
       SELECT tenant, level, ref, sum(nanos)::bigint AS nanos, sum(cost)::bigint AS cost
       FROM released, LATERAL (VALUES ('session', session_ref), ('tenant_day', day_ref), ('tenant_month', month_ref)) AS v(level, ref)
       WHERE ref IS NOT NULL GROUP BY tenant, level, ref),
     held AS (
       SELECT a.tenant, a.level, a.ref, s.nanos, s.cost FROM budget_accounts a JOIN sums s USING (tenant, level, ref)
       ORDER BY a.tenant, a.level, a.ref FOR UPDATE OF a),
     paid AS (
       UPDATE budget_accounts a SET reserved_nanos = a.reserved_nanos - h.nanos, used_nanos = a.used_nanos + h.cost
       FROM held h WHERE (a.tenant, a.level, a.ref) = (h.tenant, h.level, h.ref))`;
