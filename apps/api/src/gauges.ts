/** Figures of the whole installation, counted by SQL when somebody scrapes, at most every few seconds. */
import type { WakeQueue } from "@drover/queue";
import { livingWorkers } from "@drover/runs";
import { type Pool, partitionsAhead } from "@drover/storage";
import { metrics } from "@drover/telemetry";

const freshMs = 5000;

/** Partial indexes only: the cost is what is moving, never what is finished. */
const statement = `
  SELECT
    (SELECT count(*) FROM runs WHERE status = 'queued' AND woken) AS due,
    (SELECT count(*) FROM runs WHERE status = 'queued' AND NOT woken AND set_aside_at IS NULL) AS delayed,
    (SELECT count(*) FROM runs WHERE status = 'running') AS running,
    (SELECT count(*) FROM runs WHERE status = 'waiting') AS waiting,
    (SELECT count(*) FROM approvals WHERE status = 'pending') AS approvals,
    (SELECT count(*) FROM audit_unchained) AS unchained,
    (SELECT greatest(0, extract(epoch FROM now() - min(available_at)))::float8 FROM runs WHERE status = 'queued' AND woken) AS oldest,
    (SELECT count(*) FROM deliveries WHERE status = 'pending') AS deliveries,
    (SELECT count(*) FROM ${livingWorkers}) AS workers`;

const unclaimable = `
  SELECT agent, count(*) AS runs FROM runs WHERE set_aside_at IS NOT NULL AND status = 'queued' GROUP BY agent`;

interface Figures {
  due: number;
  delayed: number;
  running: number;
  waiting: number;
  approvals: number;
  unchained: number;
  oldest: number | null;
  deliveries: number;
  workers: number;
}

/** Returns the function that brings the gauges up to date. It rejects when Postgres is away; the gauges then keep their last values. */
export function createGauges(pool: Pool, queue: () => WakeQueue | null): () => Promise<void> {
  let countedAt = Number.NEGATIVE_INFINITY;
  let counting: Promise<void> | undefined;
  const reported = { stalled: 0, wakesLost: 0 };
  const events = { stalled: "stalled", wakesLost: "wake_lost" } as const;

  async function count(): Promise<void> {
    const { rows } = await pool.query<Figures>(statement);
    const { rows: aside } = await pool.query<{ agent: string; runs: number }>(unclaimable);
    const figures = rows[0]!;
    metrics.queueDepth.set({ state: "due" }, figures.due);
    metrics.queueDepth.set({ state: "delayed" }, figures.delayed);
    metrics.queueDepth.set({ state: "running" }, figures.running);
    metrics.queueDepth.set({ state: "waiting" }, figures.waiting);
    metrics.approvalsPending.set(figures.approvals);
    metrics.auditUnchained.set(figures.unchained);
    metrics.queueOldestAge.set(figures.oldest ?? 0);
    metrics.deliveriesPending.set(figures.deliveries);
    metrics.workersLive.set(figures.workers);
    metrics.partitionsAhead.set(await partitionsAhead(pool));
    metrics.runsUnclaimable.reset();
    for (const { agent, runs } of aside) metrics.runsUnclaimable.set({ agent }, runs);
    countedAt = performance.now();
  }

  return async () => {
    const counters = queue()?.counters;
    for (const name of Object.keys(events) as (keyof typeof events)[]) {
      const value = counters?.[name] ?? 0;
      if (value > reported[name]) metrics.queueTrouble.inc({ event: events[name] }, value - reported[name]);
      reported[name] = value;
    }
    if (performance.now() - countedAt < freshMs) return;
    counting ??= count().finally(() => {
      counting = undefined;
    });
    await counting;
  };
}
