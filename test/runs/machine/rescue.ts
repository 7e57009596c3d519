/** The rescuer's passes one by one, time that passes because rows are moved back in it, and the drain: rescuer and one worker act until nothing moves. */
import { DroverError, uuidv7 } from "@drover/protocol";
import { decideApproval, raiseRunBudget, setBudget } from "@drover/runs";
import { type Pool, transaction } from "@drover/storage";
import { closeBatches } from "../../../packages/runs/src/moves/batch.ts";
import { makeRollbacks } from "../../../packages/runs/src/moves/create.ts";
import { leaveRuns } from "../../../packages/runs/src/moves/leave.ts";
import { findResumable, resumeRuns } from "../../../packages/runs/src/moves/park.ts";
import { findOverdue, takeOver } from "../../../packages/runs/src/moves/rescue.ts";
import { wakeDue } from "../../../packages/runs/src/moves/wake.ts";
import { findExpired } from "../../../packages/runs/src/people/approvals.ts";
import { createHands, takeStep, unlessAway } from "./actors.ts";
import type { World } from "./world.ts";

const most = 1000;
const graceMs = 15_000;

/** What others see, or think they see, of a worker. `blocked`: by the run that it blames; null: nobody knows which. */
export type Death = { cause: "crashed" | "silent" } | { cause: "blocked"; culprit: number | null };

/** A pass of the rescuer, or of the liveness threads; `time passes` for what the name says. Who comes back was not dead, and takes its crash back. */
export type Pass =
  | { do: "take over" }
  | { do: "wake due" }
  | { do: "end overdue" }
  | { do: "expire" }
  | { do: "make rollbacks" }
  | { do: "resume stuck" }
  | { do: "close batches" }
  | { do: "declare dead"; worker: number; death: Death }
  | { do: "come back"; worker: number }
  | { do: "time passes"; over: "delays" | "questions" | "limits" };

/** One pass. What a fault ends, the next pass finds again. */
export async function rescue(world: World, pool: Pool, pass: Pass): Promise<void> {
  await unlessAway(() => passes(world, pool, pass));
}

async function passes(world: World, pool: Pool, pass: Pass): Promise<unknown> {
  const { blobs, leaving } = world.bench;
  switch (pass.do) {
    case "take over":
      return await takeOver(pool, most);
    case "wake due":
      return await wakeDue(pool, most);
    case "end overdue":
      for (const { id, epoch, cause } of await findOverdue(pool, { graceMs, most })) {
        const ending = await leaving(
          { id, epoch },
          cause === "cancelled" ? { status: cause } : { status: "failed", stopReason: cause },
        );
        await leaveRuns(pool, [ending], "unowned");
      }
      return;
    case "expire":
      for (const asked of await findExpired(pool, most))
        await decideApproval(pool, blobs, asked, { decision: "expire", by: "system" }).catch((error) => {
          if (!(error instanceof DroverError)) throw error;
        });
      return;
    case "make rollbacks":
      return await makeRollbacks(pool, "all");
    case "resume stuck": {
      const ids = await findResumable(pool, most);
      if (ids.length === 0) return;
      return await transaction(pool, async (tx) => {
        await tx.query("SELECT FROM runs WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE", [ids]);
        return await resumeRuns(tx, ids);
      });
    }
    case "close batches":
      return await closeBatches(pool, "all");
    case "declare dead":
      return await pool.query(
        "UPDATE workers SET dead_at = clock_timestamp(), cause = $2, culprit = $3 WHERE id = $1 AND dead_at IS NULL",
        [world.workers[pass.worker], pass.death.cause, culpritOf(world, pass.death)],
      );
    case "come back":
      return await pool.query(
        `UPDATE runs SET crashes = greatest(crashes - 1, 0), lost_worker = NULL
         WHERE id IN (SELECT id FROM runs WHERE lost_worker = $1 ORDER BY id FOR UPDATE)`,
        [world.workers[pass.worker]],
      );
    case "time passes":
      return await pool.query(passed[pass.over]);
  }
}

const culpritOf = ({ runs }: World, death: Death) =>
  death.cause === "blocked" && death.culprit !== null ? (runs[death.culprit] ?? uuidv7()) : null;

const passed = {
  delays: "UPDATE runs SET available_at = now() WHERE status = 'queued' AND NOT woken",
  questions: "UPDATE approvals SET expires_at = now() - interval '1 minute' WHERE status = 'pending'",
  limits: `UPDATE runs SET hard_at = now() - interval '1 minute', cancel_requested_at = cancel_requested_at - interval '1 minute'
    WHERE status = 'running'`,
};

const drainPasses: Pass[] = [
  { do: "time passes", over: "delays" },
  { do: "time passes", over: "questions" },
  { do: "take over" },
  { do: "end overdue" },
  { do: "wake due" },
  { do: "expire" },
  { do: "make rollbacks" },
  { do: "resume stuck" },
  { do: "close batches" },
];

const completed = { do: "leave", status: "completed", delayMs: 0, rollback: false } as const;

/** Rounds of the drain: a wait, a back-off and a rollback of it fit in many times. */
const rounds = 8;

/**
 * Every worker that played is dead. The rescuer and a fresh worker act, somebody raises the caps that runs stand at. Throws when a run is not
 * final, or a batch not closed, after a few rounds: it is lost or stuck.
 */
export async function drain(world: World): Promise<void> {
  const { pool, addWorker } = world.bench;
  await pool.query("UPDATE workers SET dead_at = now(), cause = 'crashed' WHERE dead_at IS NULL");
  const hands = createHands(world, pool, await addWorker(3_600_000));
  for (let round = 0; round < rounds; round++) {
    const open = await pool.query<{ id: string; level: string | null }>(
      "SELECT id, waiting_level AS level FROM runs WHERE finished_at IS NULL ORDER BY id",
    );
    const batches = await pool.query("SELECT FROM batches WHERE status = 'running'");
    const owed = await pool.query("SELECT FROM runs WHERE rollback = 'owed'");
    if (open.rows.length + batches.rowCount! + owed.rowCount! === 0) return;
    for (const { id, level } of open.rows)
      if (level === "run")
        await raiseRunBudget(
          pool,
          world.bench.blobs,
          { tenant: "default", id },
          { maxCostUsd: 1e6 + round },
          "key_admin",
        );
    if (open.rows.some(({ level }) => level === "tenant_day"))
      await setBudget(pool, "default", { day: 2e12 }, "key_admin");
    for (const pass of drainPasses) await passes(world, pool, pass);
    for (;;) {
      const held = await hands.claim(null);
      if (held.length === 0) break;
      for (const run of held) {
        await takeStep(world, hands, run, 0, { do: "step" });
        await takeStep(world, hands, run, 0, completed);
      }
    }
  }
  const { rows } = await pool.query(
    "SELECT id, status, waiting_for, waiting_level, woken, available_at, worker, epoch, crashes, rollback FROM runs WHERE finished_at IS NULL",
  );
  throw new Error(`lost or stuck: ${JSON.stringify(rows)}`);
}
