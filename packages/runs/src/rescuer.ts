/**
 * The rescuer moves what should be moving and is not. It runs in every worker and works on state, not on events; its statements are
 * set-based, skip what others hold, and find nothing when all is well. Each pass may die anywhere: the next one, here or
 * elsewhere, sees the same state.
 */
import { early, type FinalData, fold, initialState, latestText, type RunInput, type RunState } from "@drover/harness";
import { DroverError, uuidv7 } from "@drover/protocol";
import type { Signals, WakeQueue } from "@drover/queue";
import { type Blobs, ensurePartitions, faultOf, type Pool, transaction } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { type ApprovalRecord, decideApproval, findExpired } from "./approvals.ts";
import { releaseOrphans } from "./budget.ts";
import { type AgentSource, rollsBack } from "./executor.ts";
import { advanceClock, moveBases, tagEach } from "./fair.ts";
import { encodeData, readLog } from "./log.ts";
import {
  closeBatches,
  findResumable,
  type Leaving,
  type Left,
  leaveRuns,
  makeRollbacks,
  resumeRuns,
  rewake,
  takeOver,
  wakeDue,
} from "./moves.ts";
import { wakeRuns } from "./wake.ts";

export interface RescuerOptions {
  pool: Pool;
  blobs: Blobs;
  queue: WakeQueue;
  signals: Signals;
  logger: Logger;
  leaseMs: number;
  agents: Pick<AgentSource, "agent">;
  /** No slot is free: nobody here claims from Postgres, so lost wake-ups must be looked for. */
  isFull(): boolean;
  /** The highest tag started per class since the last call. */
  startedTags(): ReadonlyMap<number, number>;
  /** Each run ended here. */
  onEnded?(left: Left): void;
  /** Runs or batches ended here owe messages. */
  onSettled?(): void;
}

export interface Rescuer {
  /** Look again soon, at the latest after `ms`: something will be due then. */
  soon(ms: number): void;
  close(): Promise<void>;
}

const most = 1000;
/** Passes do not follow each other faster, however many back-offs come due. */
const soonestMs = 50;
const graceAfterLimitMs = 15_000;
const lostWakeUpsEveryMs = 5000;
const lostWakeUpsAsked = 500;
const batchesEveryMs = 10_000;
const housekeepingEveryMs = 3_600_000;

export function startRescuer(options: RescuerOptions): Rescuer {
  const { pool, queue, logger, leaseMs } = options;
  const beatMs = leaseMs / 10;
  let stopped = false;
  let timer: NodeJS.Timeout | undefined;
  let dueAt = 0;
  let pass: Promise<void> = Promise.resolve();
  /** Monotonic ms since when this observer has seen the database without a break; it condemns nobody before one lease of that. */
  let watchingSince: number | undefined;
  /** Wall clock at the end of the last pass: the monotonic one may stand still while the machine sleeps. */
  let lookedAt = Date.now();
  const last = { lostWakeUps: 0, batches: 0, housekeeping: Number.NEGATIVE_INFINITY };

  function plan(ms: number): void {
    if (stopped) return;
    const at = performance.now() + ms;
    if (timer && dueAt <= at) return;
    clearTimeout(timer);
    dueAt = at;
    timer = setTimeout(() => {
      timer = undefined;
      pass = pass.then(look);
    }, ms);
  }

  async function look(): Promise<void> {
    if (stopped) return;
    let nextMs = beatMs;
    // A gap in our own passes: whoever is silent may have been paused just like us.
    if (Date.now() - lookedAt > leaseMs) watchingSince = undefined;
    try {
      nextMs = Math.min(nextMs, await onePass());
      watchingSince ??= performance.now();
    } catch (error) {
      watchingSince = undefined;
      const away = faultOf(error) === "unavailable";
      logger[away ? "warn" : "error"]({ err: error }, "rescuer's pass failed");
    }
    lookedAt = Date.now();
    plan(nextMs * (0.8 + Math.random() * 0.4));
  }

  /** Returns in how many ms the next run is due. */
  async function onePass(): Promise<number> {
    const now = performance.now();
    await advanceClock(pool, options.startedTags());
    if (watchingSince !== undefined && now - watchingSince > leaseMs) await declareDead(pool, logger);
    for (let lost: Left[]; ; ) {
      lost = await takeOver(pool, most);
      await send(lost, "taken over from a dead worker");
      if (lost.length < most) break;
    }
    await endOverdue(options);
    await sendDue();
    if (options.isFull() && now - last.lostWakeUps > lostWakeUpsEveryMs) {
      last.lostWakeUps = now;
      await resendLost();
    }
    for (const asked of await findExpired(pool, most)) await expire(asked);
    await send(await makeRollbacks(pool, "all"), "they undo others");
    if (now - last.batches > batchesEveryMs) {
      last.batches = now;
      await releaseOrphans(pool);
      await send(await resumeStuck(pool), "nothing holds them any more");
      if ((await closeBatches(pool, "all")).length > 0) options.onSettled?.();
      await resendMovedClasses();
    }
    if (now - last.housekeeping > housekeepingEveryMs) {
      last.housekeeping = now;
      await pool.query("DELETE FROM idempotency_keys WHERE created_at < now() - interval '25 hours'");
      await ensurePartitions(pool);
    }
    const { rows } = await pool.query<{ ms: number | null }>(
      `SELECT (extract(epoch FROM min(available_at) - now()) * 1000)::float8 AS ms FROM runs WHERE status = 'queued' AND NOT woken`,
    );
    return Math.max(soonestMs, rows[0]?.ms ?? Number.POSITIVE_INFINITY);
  }

  async function expire(asked: ApprovalRecord): Promise<void> {
    try {
      const { resumed } = await decideApproval(pool, options.blobs, asked, { decision: "expire", by: "system" });
      options.signals.news(asked.runId);
      if (resumed) await send([resumed], "nobody decided in time");
    } catch (error) {
      // Somebody decided in this very moment.
      if (!(error instanceof DroverError)) throw error;
    }
  }

  async function send(runs: Left[], why: string): Promise<void> {
    if (runs.length === 0) return;
    logger.info({ runs: runs.length }, `waking runs: ${why}`);
    await wakeRuns(pool, queue, runs).catch((error) => logger.debug({ err: error }, "wake-ups not sent"));
  }

  /** A run that was delayed before its first start gets its place now, not the one of the day it was submitted. */
  async function sendDue(): Promise<void> {
    for (;;) {
      const due = await wakeDue(pool, most);
      const fresh = due.filter((run) => run.neverStarted);
      if (fresh.length > 0) {
        const tags = await tagEach(pool, fresh);
        fresh.forEach((run, index) => {
          run.tag = tags[index]!.tag;
        });
        fresh.sort((a, b) => (a.runId < b.runId ? -1 : 1));
        await pool.query(
          "UPDATE runs r SET tag = i.tag FROM unnest($1::uuid[], $2::bigint[]) AS i(id, tag) WHERE r.id = i.id AND r.status = 'queued'",
          [fresh.map((run) => run.runId), fresh.map((run) => run.tag)],
        );
      }
      await send(due, "due");
      if (due.length < most) return;
    }
  }

  /** Asks BullMQ for the oldest due runs and sends anew, under a new name, those it no longer has. */
  async function resendLost(): Promise<void> {
    const { rows } = await pool.query<{ id: string; wake: number }>(
      `SELECT id, wake FROM runs WHERE status = 'queued' AND woken AND available_at < now() - interval '5 seconds'
       ORDER BY priority DESC, tag, id LIMIT $1`,
      [lostWakeUpsAsked],
    );
    if (rows.length === 0) return;
    const asked = rows.map((row) => ({ runId: row.id, wake: row.wake }));
    const known = await queue.known(asked).catch(() => null);
    if (!known) return;
    await send(
      await rewake(
        pool,
        asked.filter((run) => !known.has(run.runId)),
      ),
      "their wake-up was lost",
    );
  }

  async function resendMovedClasses(): Promise<void> {
    for (const priority of await moveBases(pool)) {
      for (let after = "00000000-0000-0000-0000-000000000000"; ; ) {
        const { rows } = await pool.query<{ id: string; wake: number }>(
          "SELECT id, wake FROM runs WHERE status = 'queued' AND woken AND priority = $1 AND id > $2 ORDER BY id LIMIT $3",
          [priority, after, most],
        );
        if (rows.length === 0) break;
        after = rows.at(-1)!.id;
        await send(
          await rewake(
            pool,
            rows.map((row) => ({ runId: row.id, wake: row.wake })),
          ),
          "their class moved on",
        );
      }
    }
  }

  plan(0);
  return {
    soon: (ms) => plan(Math.max(ms, soonestMs)),
    async close() {
      stopped = true;
      clearTimeout(timer);
      await pass;
    },
  };
}

/** Two statements: whoever closes what a run waits for locks the run first, so it is locked here before it is looked at. */
async function resumeStuck(pool: Pool): Promise<Left[]> {
  const ids = await findResumable(pool, most);
  if (ids.length === 0) return [];
  return await transaction(pool, async (tx) => {
    await tx.query("SELECT FROM runs WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE", [ids]);
    return await resumeRuns(tx, ids);
  });
}

/** Removes the rows of workers whose heartbeat is older than their lease: from now on they are dead for everybody, themselves included. */
async function declareDead(pool: Pool, logger: Logger): Promise<void> {
  const { rows } = await pool.query<{ id: string; host: string; pid: number }>(
    "DELETE FROM workers WHERE heartbeat_at < clock_timestamp() - lease_ms * interval '1 ms' RETURNING id, host, pid",
  );
  for (const row of rows) logger.warn({ worker: row.id, host: row.host, workerPid: row.pid }, "worker declared dead");
}

/**
 * Ends runs that nobody ends: past their hard limit or an unheeded cancel by 15 s, at once when they have no owner, and queued or
 * waiting past their deadline. Each keeps what its log has.
 */
async function endOverdue(options: RescuerOptions): Promise<void> {
  const { pool, blobs } = options;
  const { rows } = await pool.query<{
    id: string;
    tenant: string;
    agent: string;
    kind: "query" | "rollback";
    epoch: number;
    cause: "cancelled" | "deadline" | "time_limit";
    batch_id: string | null;
  }>(
    `SELECT r.id, r.tenant, r.agent, r.kind, r.epoch, r.batch_id,
            CASE WHEN r.cancel_requested_at IS NOT NULL THEN 'cancelled'
                 WHEN r.deadline <= now() THEN 'deadline' ELSE 'time_limit' END AS cause
     FROM runs r LEFT JOIN workers w ON w.id = r.worker
     WHERE r.status = 'running' AND least(r.hard_at, r.deadline, r.cancel_requested_at)
             < now() - CASE WHEN w.id IS NULL THEN 0 ELSE $1 END * interval '1 ms'
     UNION ALL
     SELECT id, tenant, agent, kind, epoch, batch_id, 'deadline' FROM runs WHERE status IN ('queued', 'waiting') AND deadline < now()
     ORDER BY id LIMIT 200`,
    [graceAfterLimitMs],
  );
  const batches = new Set<string>();
  for (const run of rows) {
    const { kept, ending } = await endingOf(options, run);
    const leaving: Leaving = {
      runId: run.id,
      epoch: run.epoch,
      eventId: uuidv7(),
      status: ending.status,
      stopReason: ending.data.stop_reason,
      eventType: `run.${ending.status}`,
      data: await encodeData(blobs, run.tenant, ending.data),
      cancelledData: await encodeData(blobs, run.tenant, kept),
      delayMs: 0,
      attempt: null,
      rollback: rollsBack(options.agents, run),
    };
    const [ended] = await leaveRuns(pool, [leaving], "unowned");
    if (!ended) continue;
    options.onEnded?.(ended);
    options.signals.news(run.id);
    if (run.batch_id) batches.add(run.batch_id);
  }
  if (batches.size > 0) await closeBatches(pool, [...batches]);
  if (rows.length > 0) options.onSettled?.();
}

interface Overdue {
  id: string;
  tenant: string;
  cause: "cancelled" | "deadline" | "time_limit";
}

/** How an overdue run ends, and what a cancel keeps. A log that cannot be read ends its run with nothing, and holds up no other. */
async function endingOf(options: RescuerOptions, run: Overdue) {
  let state: RunState;
  try {
    state = fold(await readLog(options.pool, options.blobs, { tenant: run.tenant, runId: run.id }));
  } catch (error) {
    if (faultOf(error) === "unavailable") throw error;
    options.logger.error({ err: error, run: run.id }, "the log of an overdue run cannot be read");
    state = initialState({} as RunInput);
  }
  const kept: FinalData = { output: latestText(state), stop_reason: null, error: null };
  if (run.cause === "cancelled") return { kept, ending: { status: "cancelled" as const, data: kept } };
  const { status, data } = early(state, run.cause, endMessages[run.cause]);
  return { kept, ending: { status, data } };
}

const endMessages = { deadline: "The run reached its deadline.", time_limit: "The run reached its time limit." };
