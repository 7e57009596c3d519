/** What must be left of the whole installation once everything is done: closed batches, an unbroken trail, money that adds up, and nothing in between. */

import { verifyAudit } from "@drover/runs";
import type { Pool } from "@drover/storage";
import { twice } from "../../support/twice.ts";
import type { Evidence, Violation } from "./evidence.ts";
import type { Life } from "./supervised.ts";

/** Rows that must not be left, and what they would be. */
const leftovers: Record<string, string> = {
  "open runs": "SELECT count(*) AS n FROM runs WHERE finished_at IS NULL",
  ...twice,
  "open batches": "SELECT count(*) AS n FROM batches WHERE status = 'running'",
  "open questions": "SELECT count(*) AS n FROM approvals WHERE status = 'pending'",
  "money set aside": "SELECT count(*) AS n FROM budget_reservations",
  "accounts with money set aside": "SELECT count(*) AS n FROM budget_accounts WHERE reserved_nanos <> 0",
  "audit entries without a place": "SELECT count(*) AS n FROM audit_unchained",
  "messages without a number": "SELECT count(*) AS n FROM messages_unnumbered",
  "gaps in the feed": "SELECT coalesce(max(seq), 0) - count(*) AS n FROM message_feed",
  "messages missing from the feed":
    "SELECT count(*) AS n FROM messages m WHERE endpoint_id IS NULL AND NOT EXISTS (SELECT FROM message_feed f WHERE f.message_id = m.id)",
  "final runs without their one message":
    "SELECT count(*) AS n FROM runs r WHERE (SELECT count(*) FROM messages m WHERE m.run_id = r.id AND m.type <> 'query.waiting') <> 1",
  "workers that still count as alive": "SELECT count(*) AS n FROM workers WHERE dead_at IS NULL",
};

export async function checkSystem(pool: Pool, { runs }: Evidence, ended: Life[]): Promise<Violation[]> {
  const violations: Violation[] = [];
  for (const [what, sql] of Object.entries(leftovers)) {
    const n = (await pool.query<{ n: number }>(sql)).rows[0]!.n;
    if (n > 0) violations.push({ rule: "nothing is left", text: `${n} ${what}` });
  }
  for (const { tenant, bad, stray, entries } of await verifyAudit(pool))
    if (bad || stray || entries === 0)
      violations.push({
        rule: "the audit trail verifies",
        text: `of ${tenant}: ${JSON.stringify({ bad, stray, entries })}`,
      });
  const { rows } = await pool.query<{ used: number }>(
    "SELECT coalesce(sum(used_nanos), 0) AS used FROM budget_accounts WHERE level = 'tenant_month'",
  );
  const cost = runs.reduce((sum, run) => sum + run.cost_nanos, 0);
  if (rows[0]!.used !== cost)
    violations.push({
      rule: "money adds up",
      text: `the tenant's account says ${rows[0]!.used} nano-USD, its runs ${cost}`,
    });
  for (const { name, code, signal } of ended)
    if (code !== 0) violations.push({ rule: "processes end in order", text: `${name} ended with ${signal ?? code}` });
  return violations;
}
