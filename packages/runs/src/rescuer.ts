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
import { type AgentSource, type RunObserver, rollsBack } from "./executor.ts";
import { advanceClock, moveBases, tagEach } from "./fair.ts";
import { encodeData, readLog } from "./log.ts";
import {
  closeBatches,
  findOverdue,
  findResumable,
  type Leaving,
  type Left,
  leaveRuns,
  makeRollbacks,
  mostCrashes,
  type Overdue,
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
  observer?: Pick<RunObserver, "ended" | "rescued">;
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
  const { pool, queue, logger } = options;
  const beatMs = options.leaseMs / 10;
  let stopped = false;
  let timer: NodeJS.Timeout | undefined;
  let dueAt = 0;
  let pass: Promise<void> = Promise.resolve();
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
    try {
      nextMs = Math.min(nextMs, await onePass());
    } catch (error) {
      const away = faultOf(error) === "unavailable";
      logger[away ? "warn" : "error"]({ err: error }, "rescuer's pass failed");
    }
    plan(nextMs * (0.8 + Math.random() * 0.4));
  }

  /** Returns in how many ms the next run is due. */
  async function onePass(): Promise<number> {
    const now = performance.now();
    await advanceClock(pool, options.startedTags());
    for (let lost: Left[]; ; ) {
      lost = await takeOver(pool, most);
      if (lost.length > 0) options.observer?.rescued?.(lost.length);
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
      await pool.query(
        `DELETE FROM workers w WHERE dead_at < now() - interval '1 day'
           AND NOT EXISTS (SELECT FROM runs r WHERE r.worker = w.id AND r.status = 'running')`,
      );
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

/**
 * Ends runs that nobody ends (`findOverdue`), each with what its log has. One that cannot be ended now holds up no other.
 */
async function endOverdue(options: RescuerOptions): Promise<void> {
  const { pool, blobs, logger } = options;
  const overdue = await findOverdue(pool, graceAfterLimitMs, 200);
  const batches = new Set<string>();
  for (const run of overdue) {
    try {
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
        lastSeq: run.lastSeq,
      };
      const [ended] = await leaveRuns(pool, [leaving], "unowned");
      if (!ended) continue;
      options.observer?.ended?.(ended);
      options.signals.news(run.id);
      if (run.batchId) batches.add(run.batchId);
    } catch (error) {
      if (faultOf(error) === "unavailable") throw error;
      logger.error({ err: error, run: run.id }, "an overdue run could not be ended");
    }
  }
  if (batches.size > 0) await closeBatches(pool, [...batches]);
  if (overdue.length > 0) options.onSettled?.();
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
  if (run.cause === "crash_loop") {
    const error = { code: run.cause, message: crashLoopMessage(run) };
    return { kept, ending: { status: "failed" as const, data: { ...kept, stop_reason: run.cause, error } } };
  }
  const { status, data } = early(state, run.cause, endMessages[run.cause]);
  return { kept, ending: { status, data } };
}

const endMessages = { deadline: "The run reached its deadline.", time_limit: "The run reached its time limit." };

const crashLoopMessage = ({ culpritTool }: Overdue): string =>
  culpritTool === null
    ? `The worker that carried this run died ${mostCrashes} times in a row without a step of it being finished.`
    : `Its workers died ${mostCrashes} times in a row without a step being finished, the last one because ${culpritTool} blocked its event loop.`;
