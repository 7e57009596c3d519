/** What no log may have twice, whatever was killed, cut off or sent again. */
import type { Pool } from "@drover/storage";

/** Each counts rows (`n`) that must not be. A step's identity: the iteration of a model's reply, the place of a tool's result in it. */
export const twice: Record<string, string> = {
  "event ids twice in a log":
    "SELECT count(*) AS n FROM (SELECT FROM run_events GROUP BY run_id, event_id HAVING count(*) > 1) t",
  "steps twice in a log": `SELECT count(*) AS n FROM (
     SELECT FROM run_events WHERE type IN ('model.call', 'tool.result') AND data->>'iteration' IS NOT NULL
     GROUP BY run_id, type, data->>'iteration', coalesce(data->>'index', '') HAVING count(*) > 1) t`,
};

/** What there is all the same, as `2 steps twice in a log`. */
export async function foundTwice(pool: Pool): Promise<string[]> {
  const found: string[] = [];
  for (const [what, sql] of Object.entries(twice)) {
    const { rows } = await pool.query<{ n: number }>(sql);
    if (rows[0]!.n > 0) found.push(`${rows[0]!.n} ${what}`);
  }
  return found;
}
