/** Reading the log: each run's events in order, with what the blob store keeps of them. */
import type { LogEvent } from "@drover/harness";
import type { Blobs, Queryable } from "@drover/storage";

interface EventRow {
  run_id: string;
  seq: number;
  type: string;
  data: Record<string, unknown>;
  at: Date;
}

export interface LogPage {
  tenant: string;
  runIds: string[];
  after?: number;
  limit?: number;
}

/** The logs of a tenant's runs, each in order, content over 32 kB fetched back. A run of another tenant has no events. */
export async function readLogs(db: Queryable, blobs: Blobs, page: LogPage): Promise<Map<string, LogEvent[]>> {
  const { rows } = await db.query<EventRow>(
    `SELECT e.run_id, e.seq, e.type, e.data, e.at
     FROM runs r JOIN run_events e ON e.run_id = r.id AND e.seq > $3
     WHERE r.id = ANY($1::uuid[]) AND r.tenant = $2 ORDER BY e.run_id, e.seq LIMIT $4`,
    [page.runIds, page.tenant, page.after ?? 0, page.limit ?? null],
  );
  const hashes = [...new Set(rows.flatMap((row) => (typeof row.data.$blob === "string" ? [row.data.$blob] : [])))];
  const contents = hashes.length > 0 ? await blobs.get(page.tenant, hashes) : undefined;
  const logs = new Map<string, LogEvent[]>();
  for (const row of rows) {
    let data = row.data;
    if (typeof data.$blob === "string") {
      const content = contents?.get(data.$blob);
      if (content === undefined) throw new Error(`the content of event ${row.seq} of run ${row.run_id} is missing`);
      data = JSON.parse(content);
    }
    const event = { seq: row.seq, type: row.type, at: row.at.toISOString(), data } as LogEvent;
    const log = logs.get(row.run_id);
    if (log) log.push(event);
    else logs.set(row.run_id, [event]);
  }
  return logs;
}

/** One run's log after a seq; empty when there is none or it is another tenant's. */
export async function readLog(
  db: Queryable,
  blobs: Blobs,
  run: { tenant: string; runId: string; after?: number; limit?: number },
): Promise<LogEvent[]> {
  const { runId, ...page } = run;
  return (await readLogs(db, blobs, { ...page, runIds: [runId] })).get(runId) ?? [];
}
