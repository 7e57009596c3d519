/**
 * The rescuer moves what should be moving and is not: a table of duties. It works on state, not on events; its statements are set-based,
 * skip what others hold, and find nothing when all is well. Each go may die anywhere: the next one, here or elsewhere, sees the same state.
 * One worker leads, and looks; that two might for a moment does no harm.
 */
import { setTimeout as delay } from "node:timers/promises";
import { DroverError } from "@drover/protocol";
import type { Signals, WakeQueue } from "@drover/queue";
import { type Blobs, ensurePartitions, faultOf, type Pool, transaction } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { startLeader } from "../liveness/leader.ts";
import { releaseOrphans } from "../money/budget.ts";
import { closeBatches } from "../moves/batch.ts";
import { makeRollbacks } from "../moves/create.ts";
import type { Moved } from "../moves/moved.ts";
import { findResumable, resumeRuns } from "../moves/park.ts";
import { findWhose, seenTo, takeOver, type Whose } from "../moves/rescue.ts";
import { type Lately, liftStragglers, nextDue, raiseFloors, readAside, wakeDue, wakeKnown } from "../moves/wake.ts";
import type { Observe } from "../observe.ts";
import { type ApprovalRecord, decideApproval, findExpired } from "../people/approvals.ts";
import type { Retention } from "../retention/config.ts";
import { retain } from "../retention/retention.ts";
import { sweepWorkspaces } from "../retention/workspaces.ts";
import { advanceClock, readClock, tagEach } from "../submit/fair.ts";
import { type Duty, startDuties } from "./duties.ts";
import type { AgentSource } from "./executor.ts";
import { Lookback } from "./lookback.ts";
import { endOverdue } from "./overdue.ts";
import { wakeRuns } from "./wake.ts";

export interface RescuerOptions {
  pool: Pool;
  directUrl: string;
  blobs: Blobs;
  queue: WakeQueue;
  signals: Signals;
  logger: Logger;
  leaseMs: number;
  /** How long a run may wait for a worker that knows its agent and model, ms; undefined: for ever. */
  noWorkerMs: number | undefined;
  agents: Pick<AgentSource, "agent">;
  retention: Retention;
  /** Folder of the runs' workspaces on this machine. */
  workspaces: string;
  /** The highest tag started per class since the last call. */
  startedTags(): ReadonlyMap<number, number>;
  observe: Observe;
  /** Runs or batches ended here owe messages. */
  onSettled?(): void;
}

export interface Rescuer {
  /** Workers have died: their runs are free. */
  deaths(): void;
  /** A run was put off: it may be due before the leader looks. */
  delayed(): void;
  close(): Promise<void>;
}

const most = 1000;
/** There is more than one go sees to; the other duties have their turn before the next, ms. */
const soon = 0;
/** A leader says that it lives. */
const sayEveryMs = 2000;
/** So long ago a statement may have begun that makes something due only now: longer than the server lets a transaction idle. */
const slackMs = 30_000;
/** A look at everything, also at what no bound or index leads to. */
const wholeEveryMs = 600_000;
/** So long a submission may be on its way with its tag. */
const floorAfterMs = 15_000;
/** Of a leader that has just begun: other workers may be starting too. */
const settlingMs = 60_000;
/** Retention has more to do: the others come first, ms. */
const pauseMs = 500;
/** Between two complaints about the same agent. */
const complainEveryMs = 300_000;

export function startRescuer(options: RescuerOptions): Rescuer {
  const { pool, queue, logger, observe } = options;
  const beatMs = options.leaseMs / 10;
  /** When this process began to lead. */
  let leadsSince: number | undefined;
  const lookback = new Lookback(slackMs);
  const floors: { at: number; tags: Map<number, number> }[] = [];
  const complained = new Map<string, number>();

  const duties: Duty[] = [
    { name: "clock", every: beatMs, who: "each", run: () => advanceClock(pool, options.startedTags()) },
    { name: "deaths", every: beatMs, who: "leader", run: seeToDeaths },
    { name: "due", every: beatMs, who: "leader", run: wakeAllDue },
    { name: "questions", every: beatMs, who: "leader", run: () => lately("questions", expireQuestions) },
    {
      name: "rollbacks",
      every: beatMs,
      who: "leader",
      run: async () => send(await makeRollbacks(pool, "all"), "they undo others"),
    },
    { name: "floors", every: 5000, who: "leader", run: raise },
    { name: "set aside", every: options.leaseMs, who: "leader", run: seeToAside },
    { name: "money", every: 10_000, who: "leader", run: () => releaseOrphans(pool) },
    {
      name: "stuck",
      every: 10_000,
      who: "leader",
      run: () => lately("stuck", resumeStuck),
    },
    { name: "batches", every: 60_000, who: "leader", run: endBatches },
    { name: "strays", every: wholeEveryMs, who: "leader", run: lookEverywhere },
    { name: "housekeeping", every: 3_600_000, who: "leader", run: keepHouse },
    { name: "retention", every: 3_600_000, who: "leader", run: keepNoLonger },
    {
      name: "workspaces",
      every: 3_600_000,
      who: "each",
      run: () => sweepWorkspaces(pool, options.workspaces, options.retention.contentsDays),
    },
  ];
  const running = startDuties({
    duties,
    leads: () => leadsSince !== undefined,
    onError: (duty, error) =>
      logger[faultOf(error) === "unavailable" ? "warn" : "error"]({ err: error, duty }, "a duty of the rescuer failed"),
  });
  const leader = startLeader({
    pool,
    directUrl: options.directUrl,
    logger,
    lock: "drover.rescue",
    name: "drover-rescuer",
    says: { failing: "nobody can be rescued from here for now", again: "the rescuer is back" },
    async lead(session, stopping, works) {
      leadsSince = performance.now();
      lookback.forget();
      floors.length = 0;
      running.begin();
      try {
        while (!stopping.aborted) {
          await session.query("SELECT");
          works();
          await delay(sayEveryMs, undefined, { signal: stopping }).catch(() => {});
        }
      } finally {
        leadsSince = undefined;
      }
    },
  });

  /** A leader looks from its last look on, and now and then at everything; who does not lead looks only at what just came. */
  async function lately(what: string, look: (since: Lately) => Promise<boolean>): Promise<number | undefined> {
    const all = await (leadsSince === undefined ? look(slackMs) : lookback.look(what, look));
    return all ? undefined : soon;
  }

  async function seeToDeaths(): Promise<number | undefined> {
    const whose = await findWhose(pool);
    await takeOverAll(whose);
    return await lately("overdue", async (since) => {
      const all = await endOverdue(options, { whose, lately: since });
      if (all && whose.dead.length > 0) await seenTo(pool, whose.dead);
      return all;
    });
  }

  async function takeOverAll(whose: Whose): Promise<void> {
    if (whose !== "all" && whose.dead.length === 0) return;
    for (let taken: Moved[]; ; ) {
      taken = await takeOver(pool, most, whose);
      if (taken.length > 0) observe({ type: "rescued", runs: taken });
      await send(taken, "taken over from a dead worker");
      if (taken.length < most) break;
    }
  }

  /** What no bound or index leads to: claims of workers whose row is gone, submissions that took longer than anybody waits. */
  async function lookEverywhere(): Promise<number | undefined> {
    lookback.forget();
    await takeOverAll("all");
    await liftStragglers(pool);
    await resumeStuck(null);
    return (await endOverdue(options, { whose: "all" })) ? undefined : soon;
  }

  async function expireQuestions(since: Lately): Promise<boolean> {
    const expired = await findExpired(pool, most, since);
    for (const asked of expired) await expire(asked);
    return expired.length < most;
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

  async function send(runs: Moved[], why: string): Promise<void> {
    if (runs.length === 0) return;
    observe({ type: "woken", runs, why });
    await wakeRuns(queue, runs).catch((error) => logger.debug({ err: error }, "wake-ups not sent"));
  }

  /** Returns in how many ms the next one is due. */
  async function wakeAllDue(): Promise<number | undefined> {
    let next: number | null = null;
    await lately("due", async (since) => {
      await sendDue(since);
      next = await nextDue(pool, since);
      return true;
    });
    return next ?? undefined;
  }

  /** Two statements: whoever closes what a run waits for locks the run first, so it is locked here before it is looked at. */
  async function resumeStuck(since: Lately): Promise<boolean> {
    const ids = await findResumable(pool, most, since);
    if (ids.length === 0) return true;
    const resumed = await transaction(pool, async (tx) => {
      await tx.query("SELECT FROM runs WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE", [ids]);
      return await resumeRuns(tx, ids);
    });
    await send(resumed, "nothing holds them any more");
    return ids.length < most;
  }

  /** A run that was delayed before its first start gets its place now, not that of its submission. */
  async function sendDue(since: Lately): Promise<void> {
    for (;;) {
      const due = await wakeDue(pool, most, since);
      const fresh = due.filter((run) => run.neverStarted);
      if (fresh.length > 0) {
        const tags = await tagEach(pool, fresh);
        fresh.forEach((run, index) => {
          run.tag = tags[index]!;
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

  /** The clock of each class as it was a while ago: what has a lower tag is there to be seen by now. */
  async function raise(): Promise<void> {
    const now = performance.now();
    floors.push({ at: now, tags: await readClock(pool) });
    const old = floors.findLastIndex(({ at }) => now - at >= floorAfterMs);
    if (old < 0) return;
    floors.splice(0, old);
    await raiseFloors(pool, floors[0]!.tags);
  }

  /** Runs that no worker takes, until one does or they have waited too long. */
  async function seeToAside(): Promise<number | undefined> {
    const groups = await readAside(pool);
    const now = performance.now();
    for (const { known, ...group } of groups) {
      const name = `${group.agent} ${group.model}`;
      if (known || now - (complained.get(name) ?? Number.NEGATIVE_INFINITY) < complainEveryMs) continue;
      complained.set(name, now);
      observe({ type: "unclaimed", ...group });
    }
    for (const [name, at] of complained) if (now - at >= complainEveryMs) complained.delete(name);
    if (groups.some(({ known }) => known)) await send(await wakeKnown(pool, most), "a worker knows their agent");
    const { noWorkerMs } = options;
    const isSettled = leadsSince !== undefined && now - leadsSince >= Math.min(settlingMs, noWorkerMs ?? 0);
    if (noWorkerMs === undefined || !isSettled || groups.every(({ known }) => known)) return;
    const all = await endOverdue(options, { whose: { dead: [], held: [] }, lately: 0, noWorkerMs });
    return all ? undefined : soon;
  }

  async function endBatches(): Promise<void> {
    if ((await closeBatches(pool, "all")).length > 0) options.onSettled?.();
  }

  async function keepHouse(): Promise<void> {
    await pool.query("DELETE FROM idempotency_keys WHERE created_at < now() - interval '25 hours'");
    await pool.query(
      `DELETE FROM workers w WHERE dead_at < now() - interval '1 day'
         AND NOT EXISTS (SELECT FROM runs r WHERE r.worker = w.id AND r.status = 'running')`,
    );
    await ensurePartitions(pool);
  }

  async function keepNoLonger(): Promise<number | undefined> {
    const { removed, more } = await retain(pool, options.retention, (part, error) =>
      logger.warn({ err: error, part }, "retention of a part failed, and is tried again"),
    );
    if (removed.size > 0) logger.debug({ removed: Object.fromEntries(removed) }, "removed what is kept no longer");
    return more ? pauseMs : undefined;
  }

  return {
    deaths: () => running.soon("deaths"),
    delayed: () => running.soon("due"),
    async close() {
      await running.close();
      await leader.close();
    },
  };
}
