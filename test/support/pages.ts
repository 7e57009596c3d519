/** What statements read: pages of 8 KiB, and rows of a table, as Postgres counts them. Each plan is run and taken back before the statement is run for real. */
import type { Pool } from "@drover/storage";

interface Plan {
  "Shared Hit Blocks": number;
  "Shared Read Blocks": number;
  "Relation Name"?: string;
  "Actual Rows": number;
  "Actual Loops": number;
  "Rows Removed by Filter"?: number;
  "Node Type": string;
  Plans?: Plan[];
}

export interface Counted {
  pages: number;
  /** Rows of `runs` that scans came by. */
  runs: number;
}

/** A pool that counts what its statements read. Not for statements inside a transaction of their own (`connect`). */
export function countingPages(pool: Pool): { pool: Pool; read(): Counted } {
  let counted: Counted = { pages: 0, runs: 0 };
  const query = async (text: string, values?: unknown[]) => {
    const client = await pool.connect();
    try {
      await client.query("BEGIN");
      const { rows } = await client.query<{ "QUERY PLAN": [{ Plan: Plan }] }>(
        `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ${text}`,
        values,
      );
      await client.query("ROLLBACK");
      const [{ Plan: plan }] = rows[0]!["QUERY PLAN"];
      counted.pages += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"];
      counted.runs += runsOf(plan);
      return await client.query(text, values);
    } finally {
      client.release();
    }
  };
  return {
    pool: { query } as unknown as Pool,
    read() {
      const since = counted;
      counted = { pages: 0, runs: 0 };
      return since;
    },
  };
}

function runsOf(plan: Plan): number {
  const own =
    plan["Relation Name"] === "runs" && plan["Node Type"].endsWith("Scan")
      ? (plan["Actual Rows"] + (plan["Rows Removed by Filter"] ?? 0)) * plan["Actual Loops"]
      : 0;
  return (plan.Plans ?? []).reduce((sum, part) => sum + runsOf(part), own);
}
