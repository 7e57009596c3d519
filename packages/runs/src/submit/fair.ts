/**
 * Fairness between tenants by start tags (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996, with every run of weight 1):
 * a run's tag is `max(tag last started, tenant's last tag) + 1` within its priority class, from a counter, never a count of
 * the backlog. Runs start in the order of class, then tag.
 */
import type { Queryable } from "@drover/storage";

export interface TagRequest {
  tenant: string;
  priority: number;
  count: number;
}

/**
 * Takes blocks of tags, and answers with the first of each. Committed at once and without waiting for the disk (whoever uses a tag commits after it, and that
 * commit flushes this one too), so that the counter's row is never locked for long. Tags never used leave harmless gaps.
 */
export async function takeTags(db: Queryable, requests: TagRequest[]): Promise<number[]> {
  const sorted = requests.map((request, index) => ({ ...request, index })).sort(byTenantAndClass);
  const { rows } = await db.query<{ tenant: string; priority: number; first: number }>(
    `WITH relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),
     asked AS (SELECT * FROM relaxed, unnest($1::text[], $2::smallint[], $3::bigint[]) AS a(tenant, priority, n)),
     taken AS (
       INSERT INTO fair_tenants AS f (tenant, priority, last_tag)
       SELECT a.tenant, a.priority, c.started_tag + a.n FROM asked a JOIN fair_classes c USING (priority)
       ON CONFLICT (tenant, priority) DO UPDATE
       SET last_tag = greatest(f.last_tag, (SELECT started_tag FROM fair_classes WHERE priority = f.priority))
                      + (SELECT n FROM asked WHERE tenant = f.tenant AND priority = f.priority)
       RETURNING f.tenant, f.priority, f.last_tag)
     SELECT t.tenant, t.priority, t.last_tag - a.n + 1 AS first FROM taken t JOIN asked a USING (tenant, priority)`,
    [sorted.map((r) => r.tenant), sorted.map((r) => r.priority), sorted.map((r) => r.count)],
  );
  const blocks = new Map(rows.map((row) => [`${row.priority} ${row.tenant}`, row.first]));
  return requests.map((request) => blocks.get(`${request.priority} ${request.tenant}`)!);
}

/** Groups items by tenant and class, takes their tags, and hands each its own in the order given. */
export async function tagEach<T extends { tenant: string; priority: number }>(
  db: Queryable,
  items: T[],
): Promise<number[]> {
  const counts = new Map<string, TagRequest>();
  for (const { tenant, priority } of items) {
    const key = `${priority} ${tenant}`;
    const request = counts.get(key);
    if (request) request.count++;
    else counts.set(key, { tenant, priority, count: 1 });
  }
  const requests = [...counts.values()];
  const blocks = await takeTags(db, requests);
  const next = new Map(requests.map((request, index) => [`${request.priority} ${request.tenant}`, blocks[index]!]));
  return items.map(({ tenant, priority }) => {
    const key = `${priority} ${tenant}`;
    const tag = next.get(key)!;
    next.set(key, tag + 1);
    return tag;
  });
}

/** Tells the clock of each class the highest tag this worker has started. May lag by a heartbeat: a late clock only favours newcomers. */
export async function advanceClock(db: Queryable, started: ReadonlyMap<number, number>): Promise<void> {
  if (started.size === 0) return;
  const entries = [...started].sort(([a], [b]) => a - b);
  await db.query(
    `WITH relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
     UPDATE fair_classes c SET started_tag = s.tag
     FROM relaxed, unnest($1::smallint[], $2::bigint[]) AS s(priority, tag)
     WHERE c.priority = s.priority AND c.started_tag < s.tag`,
    [entries.map(([priority]) => priority), entries.map(([, tag]) => tag)],
  );
}

/** The highest tag started of each class. */
export async function readClock(db: Queryable): Promise<Map<number, number>> {
  const { rows } = await db.query<{ priority: number; tag: number }>(
    "SELECT priority, started_tag AS tag FROM fair_classes",
  );
  return new Map(rows.map(({ priority, tag }) => [priority, tag]));
}

function byTenantAndClass(a: TagRequest, b: TagRequest): number {
  return a.tenant < b.tenant ? -1 : a.tenant > b.tenant ? 1 : a.priority - b.priority;
}
