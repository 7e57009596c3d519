/** Every look that is taken again and again, as the product takes it, and a history to take them over: for a test and a bench that count pages. */
import { uuidv7 } from "@drover/protocol";
import type { Pool } from "@drover/storage";
import { type Held, sayAlive } from "../../packages/runs/src/liveness/beat.ts";
import { releaseOrphans } from "../../packages/runs/src/money/budget.ts";
import { closeBatches } from "../../packages/runs/src/moves/batch.ts";
import { claimNext } from "../../packages/runs/src/moves/claim.ts";
import { insertRuns, makeRollbacks, type NewRun } from "../../packages/runs/src/moves/create.ts";
import { leaveRuns } from "../../packages/runs/src/moves/leave.ts";
import { findResumable } from "../../packages/runs/src/moves/park.ts";
import { findOverdue, findWhose, seenTo, takeOver } from "../../packages/runs/src/moves/rescue.ts";
import { nextDue, raiseFloors, readAside, wakeDue } from "../../packages/runs/src/moves/wake.ts";
import { findExpired } from "../../packages/runs/src/people/approvals.ts";
import { advanceClock, readClock, tagEach } from "../../packages/runs/src/submit/fair.ts";

export const overdue = { graceMs: 15_000, most: 200 };

/** A heartbeat, an idle look, and the rescuer's duties. `lately`: ms since their last look. */
export function looks(worker: string, held: Held, place: string, lately: number) {
  const all: Record<string, (db: Pool) => Promise<unknown>> = {
    beat: (db) => sayAlive(db, worker, held, place),
    "idle look": (db) => claimNext(db, worker, { most: 1 }),
    deaths: async (db) => {
      const whose = await findWhose(db);
      await takeOver(db, 1000, whose);
      await findOverdue(db, { ...overdue, whose, lately });
      await seenTo(db, whose.dead);
    },
    due: async (db) => {
      await wakeDue(db, 1000, lately);
      await nextDue(db, lately);
    },
    questions: (db) => findExpired(db, 1000, lately),
    rollbacks: (db) => makeRollbacks(db, "all"),
    floors: async (db) => raiseFloors(db, await readClock(db)),
    "set aside": (db) => readAside(db),
    money: (db) => releaseOrphans(db),
    stuck: (db) => findResumable(db, 1000, lately),
    batches: (db) => closeBatches(db, "all"),
  };
  return all;
}

/** Submits, claims and ends `count` runs, which were delayed for a moment and had a deadline. Leaves the statistics as an autovacuum does. */
export async function endMany(pool: Pool, worker: string, count: number, chunk = 1000): Promise<void> {
  const deadline = new Date(Date.now() + 3_600_000).toISOString();
  const data = '{"output":"done","stop_reason":null,"error":null}';
  for (let left = count; left > 0; left -= chunk) {
    const made = Array.from({ length: Math.min(left, chunk) }, () => newRun(deadline));
    const tags = await tagEach(pool, made);
    for (const [index, run] of made.entries()) run.tag = tags[index]!;
    await insertRuns(pool, made);
    while ((await nextDue(pool, 10_000)) !== null) await wakeDue(pool, chunk, 10_000);
    const ids = made.map((run) => run.id);
    const { runs: claimed } = await claimNext(pool, worker, { most: ids.length, only: ids });
    if (claimed.length < ids.length) throw new Error(`${claimed.length} of ${ids.length} runs could be claimed`);
    const ends = claimed.map(({ id, epoch }) => ({
      runId: id,
      epoch,
      eventId: uuidv7(),
      status: "completed" as const,
      stopReason: null,
      eventType: "run.completed",
      data,
      cancelledData: data,
      delayMs: 0,
      attempt: null,
    }));
    await leaveRuns(pool, ends);
    await advanceClock(pool, new Map([[0, Math.max(...claimed.map((run) => run.tag))]]));
  }
  await raiseFloors(pool, await readClock(pool));
  await pool.query("ANALYZE runs");
}

const newRun = (deadline: string): NewRun => ({
  id: uuidv7(),
  tenant: "default",
  agent: "default",
  userId: null,
  batchId: null,
  batchIndex: null,
  priority: 0,
  tag: 0,
  delayMs: 1,
  softMs: 25_000,
  hardMs: 30_000,
  deadline,
  callbackUrl: null,
  callbackEvents: null,
  metadata: {},
  sessionId: null,
  submittedBy: null,
  model: null,
  data: '{"query":"?","agent":"default"}',
  hash: null,
  idempotency: null,
});
