/**
 * Fairness between tenants by start tags (start-time fair queueing: Goyal, Vin, Cheng, SIGCOMM 1996, with every run of weight 1):
 * a run's tag is `max(tag last started, tenant's last tag) + 1` within its priority class, from a counter, never a count of
 * the backlog. Runs start in the order of class, then tag.
 *
 * BullMQ orders by a number from 1 to 2,097,151, smaller first. Each class gets a window of it, and a tag's place is its
 * distance from the class's `base`. When the tag last started has moved half a window away, the base follows it and
 * whatever is still queued is sent anew (`runs/rescuer.ts`). Further than a window ahead, order is by arrival.
 */
import type { Queryable } from "@drover/storage";

const bullmqMax = 2_097_151;
export const classes = 10;
/** Places of one class. */
export const windowSize = Math.floor(bullmqMax / classes);

/** A run's place in BullMQ's order: 1..2,097,151, smaller starts first. Class 9 is the most urgent. */
export function queuePriority(priority: number, tag: number, base: number): number {
  const place = Math.min(Math.max(tag - base, 0), windowSize - 1);
  return (classes - 1 - priority) * windowSize + place + 1;
}

/** The bases of the ten classes, index = class. */
export async function readBases(db: Queryable): Promise<number[]> {
  const { rows } = await db.query<{ base: number }>("SELECT base FROM fair_classes ORDER BY priority");
  return rows.map((row) => row.base);
}

export interface TagRequest {
  tenant: string;
  priority: number;
  count: number;
}

/** The first tag of a block of `count`, and the base its class stands on. */
export interface TagBlock {
  first: number;
  base: number;
}

/**
 * Takes blocks of tags. Committed at once and without waiting for the disk (whoever uses a tag commits after it, and that
 * commit flushes this one too), so that the counter's row is never locked for long. Tags never used leave harmless gaps.
 */
export async function takeTags(db: Queryable, requests: TagRequest[]): Promise<TagBlock[]> {
  const sorted = requests.map((request, index) => ({ ...request, index })).sort(byTenantAndClass);
  const { rows } = await db.query<{ tenant: string; priority: number; first: number; base: number }>(
    `WITH relaxed AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true)),
     asked AS (SELECT * FROM relaxed, unnest($1::text[], $2::smallint[], $3::bigint[]) AS a(tenant, priority, n)),
     taken AS (
       INSERT INTO fair_tenants AS f (tenant, priority, last_tag)
       SELECT a.tenant, a.priority, c.started_tag + a.n FROM asked a JOIN fair_classes c USING (priority)
       ON CONFLICT (tenant, priority) DO UPDATE
       SET last_tag = greatest(f.last_tag, (SELECT started_tag FROM fair_classes WHERE priority = f.priority))
                      + (SELECT n FROM asked WHERE tenant = f.tenant AND priority = f.priority)
       RETURNING f.tenant, f.priority, f.last_tag)
     SELECT t.tenant, t.priority, t.last_tag - a.n + 1 AS first, c.base
     FROM taken t JOIN asked a USING (tenant, priority) JOIN fair_classes c USING (priority)`,
    [sorted.map((r) => r.tenant), sorted.map((r) => r.priority), sorted.map((r) => r.count)],
  );
  const blocks = new Map(rows.map((row) => [`${row.priority} ${row.tenant}`, { first: row.first, base: row.base }]));
  return requests.map((request) => blocks.get(`${request.priority} ${request.tenant}`)!);
}

/** Groups items by tenant and class, takes their tags, and hands each its own in the order given. */
export async function tagEach<T extends { tenant: string; priority: number }>(
  db: Queryable,
  items: T[],
): Promise<{ tag: number; base: number }[]> {
  const counts = new Map<string, TagRequest>();
  for (const { tenant, priority } of items) {
    const key = `${priority} ${tenant}`;
    const request = counts.get(key);
    if (request) request.count++;
    else counts.set(key, { tenant, priority, count: 1 });
  }
  const requests = [...counts.values()];
  const blocks = await takeTags(db, requests);
  const next = new Map(
    requests.map((request, index) => [`${request.priority} ${request.tenant}`, { ...blocks[index]! }]),
  );
  return items.map(({ tenant, priority }) => {
    const block = next.get(`${priority} ${tenant}`)!;
    return { tag: block.first++, base: block.base };
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

/** Moves the base of every class whose clock is half a window ahead of it. Returns the classes moved: their queued runs must be sent anew. */
export async function moveBases(db: Queryable): Promise<number[]> {
  const { rows } = await db.query<{ priority: number }>(
    "UPDATE fair_classes SET base = started_tag WHERE started_tag - base > $1 RETURNING priority",
    [Math.floor(windowSize / 2)],
  );
  return rows.map((row) => row.priority);
}

function byTenantAndClass(a: TagRequest, b: TagRequest): number {
  return a.tenant < b.tenant ? -1 : a.tenant > b.tenant ? 1 : a.priority - b.priority;
}
