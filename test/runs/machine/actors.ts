/**
 * Who writes to runs at the same time: workers, the rescuer's passes, people at the API, and time. Each plays a part that fast-check made up,
 * through the same batchers and with the same answers to faults as the real one, and notes in the world what it was told.
 */
import type { NewEvent } from "@drover/harness";
import { DroverError, toWireId, uuidv7 } from "@drover/protocol";
import { cancelRun, decideApproval, listApprovals, raiseRunBudget, readLog, rollBack, setBudget } from "@drover/runs";
import { createBatcher, faultOf, type Pool, throughOutages } from "@drover/storage";
import { createLogWriter, LostOwnershipError } from "../../../packages/runs/src/log/append.ts";
import { closeBatches } from "../../../packages/runs/src/moves/batch.ts";
import { type ClaimedRun, readClaims } from "../../../packages/runs/src/moves/claim.ts";
import { makeRollbacks } from "../../../packages/runs/src/moves/create.ts";
import { type Leaving, leaveRuns, readLeft } from "../../../packages/runs/src/moves/leave.ts";
import type { Moved } from "../../../packages/runs/src/moves/moved.ts";
import { type Parking, parkRun } from "../../../packages/runs/src/moves/park.ts";
import { isFinal } from "../../../packages/runs/src/moves/state.ts";
import { claimMany, claimRuns } from "../../support/claim.ts";
import type { Told, World } from "./world.ts";

/** What a worker does with a run that it holds, or held: it goes on when it has been told that the run is lost, to find the fence. */
export type WorkerStep =
  | { do: "step" }
  | { do: "ask" }
  | { do: "park"; for: "approval" | "run" | "tenant_day" }
  | { do: "leave"; status: Leaving["status"]; delayMs: number; rollback: boolean };

/** One run in a worker's hands. `run`: which wake-up it got; null: it takes the next one in order. */
export interface Holding {
  run: number | null;
  steps: WorkerStep[];
}

/** The log writer, the claims, the ends and the parks of one worker, as `worker.ts` and `executor.ts` make them. */
export function createHands(world: World, pool: Pool, worker: string) {
  const never = new AbortController().signal;
  const { blobs } = world.bench;
  const append = createLogWriter(pool, blobs, never);
  const claim = createBatcher<string, ClaimedRun | null>({
    key: (id) => id,
    execute: async ([id]) => [(await claimRuns(pool, worker, [id!]))[0] ?? null],
  });
  const leave = createBatcher({
    key: (op: Leaving) => op.runId,
    execute: async ([op]) => [(await leaveRuns(pool, [op!]))[0] ?? null],
    recover: async ([op]) => [(await readLeft(pool, [op!]))[0]],
  });
  const park = createBatcher({
    key: (op: Parking) => op.runId,
    execute: async ([op]) => [await parkRun(pool, op!)],
    recover: async ([op]) => [(await readLeft(pool, [op!]))[0]],
  });

  return {
    /** Claims `runId`, or what is next; nothing when there is nothing to claim, or the answer is lost for good. */
    async claim(runId: string | null): Promise<ClaimedRun[]> {
      if (runId === null) return (await unlessAway(() => claimMany(pool, worker, 1))) ?? [];
      try {
        const run = await claim(runId);
        return run ? [run] : [];
      } catch (error) {
        if (faultOf(error) !== "unavailable") throw error;
        return ((await unlessAway(() => readClaims(pool, worker))) ?? []).filter(({ id }) => id === runId);
      }
    },
    /** Raises that stand in the run's log. */
    async raises({ tenant, id: runId }: ClaimedRun): Promise<number> {
      const log = await throughOutages(() => readLog(pool, blobs, { tenant, runId }), never);
      return log.filter(({ type }) => type === "budget.raised").length;
    },
    async append(run: ClaimedRun, event: NewEvent): Promise<boolean> {
      try {
        await append({ runId: run.id, epoch: run.epoch, tenant: run.tenant, event });
        return true;
      } catch (error) {
        if (error instanceof LostOwnershipError) return false;
        throw error;
      }
    },
    leave,
    park,
    /** What fails here is the rescuer's. */
    async report({ runId, status, batchId, rollbackOwed }: Moved): Promise<void> {
      if (!isFinal(status)) return;
      await unlessAway(async () => {
        if (batchId) await closeBatches(pool, [batchId]);
        if (rollbackOwed) await makeRollbacks(pool, [runId]);
      });
    },
  };
}

/** What `attempt` gives; null when Postgres is away, or chose it as a deadlock's victim. */
export async function unlessAway<T>(attempt: () => Promise<T>): Promise<T | null> {
  try {
    return await attempt();
  } catch (error) {
    if (!["unavailable", "conflict"].includes(faultOf(error))) throw error;
    return null;
  }
}

export type Hands = ReturnType<typeof createHands>;

const reply = (text: string): NewEvent => ({
  type: "model.call",
  data: {
    iteration: 1,
    model: "x/y",
    text,
    tool_calls: [],
    finish_reason: "stop",
    usage: { input: 1, output: 1, cached: 0 },
    cost_usd: 0.001,
    duration_ms: 1,
  },
});

const question = (reason: string): NewEvent => ({
  type: "approval.requested",
  data: {
    approval_id: toWireId("approval", uuidv7()),
    subject: "call",
    iteration: 1,
    index: 0,
    tool_name: "send",
    input: {},
    reason,
    hash: "00",
    expires_at: new Date(Date.now() + 3_600_000).toISOString(),
    on_expiry: "reject",
  },
});

/** Carries out one step of a worker, and notes what it was told. */
export async function takeStep(
  world: World,
  hands: Hands,
  run: ClaimedRun,
  raises: number,
  step: WorkerStep,
): Promise<void> {
  const { told } = world;
  // Until the answer is there, and for ever when the worker is killed, nobody knows.
  const note = (one: Pick<Told, "eventId" | "mark">): Told => {
    const noted: Told = { ...one, runId: run.id, epoch: run.epoch, answer: "unknown" };
    told.push(noted);
    return noted;
  };
  if (step.do === "step" || step.do === "ask") {
    const mark = world.mark();
    const noted = note({ mark });
    const written = await hands.append(run, step.do === "step" ? reply(mark) : question(mark));
    noted.answer = written ? "yes" : "no";
    return;
  }
  const base = {
    runId: run.id,
    epoch: run.epoch,
    eventId: uuidv7(),
    cancelledData: '{"output":"kept","stop_reason":null,"error":null}',
  };
  const noted = note({ eventId: base.eventId });
  if (step.do === "park") {
    const waitingFor = step.for === "approval" ? "approval" : "budget";
    // A rollback has no cap of its own, and asks no model.
    const level = step.for === "approval" ? null : run.ofRun === null ? step.for : "tenant_day";
    const left = await hands.park({
      ...base,
      waitingFor,
      level,
      raises,
      data: JSON.stringify({ waiting_for: waitingFor }),
    });
    noted.answer = left ? "yes" : "no";
    if (left) await hands.report(left);
    return;
  }
  const { status, delayMs, rollback } = step;
  const back = status === "queued";
  const left = await hands.leave({
    ...base,
    status,
    stopReason: status === "failed" || status === "partial" ? "model_error" : null,
    eventType: back ? (delayMs > 0 ? "run.retrying" : "run.handed_over") : `run.${status}`,
    data: "{}",
    delayMs: back ? delayMs : 0,
    attempt: back && delayMs > 0 ? run.attempt + 1 : null,
    rollback,
  });
  noted.answer = left ? "yes" : "no";
  if (left) await hands.report(left);
}

/** What people do, and programs on their behalf. They repeat what was answered with 503. */
export type ApiCall =
  | { do: "cancel"; run: number }
  | { do: "decide"; yes: boolean }
  | { do: "raise"; run: number }
  | { do: "cap"; nanos: number }
  | { do: "roll back"; run: number };

const looks = 4;

export async function call(world: World, pool: Pool, by: string, { ...api }: ApiCall): Promise<void> {
  const { blobs } = world.bench;
  const tenant = "default";
  const repeated = async <T>(attempt: () => Promise<T>): Promise<{ answer: T | null; sure: boolean }> => {
    for (let sure = true; ; sure = false) {
      try {
        return { answer: await attempt(), sure };
      } catch (error) {
        // A client that repeats a call whose answer it lost may be told that it is too late, by itself.
        if (error instanceof DroverError) return { answer: null, sure };
        if (!["unavailable", "conflict"].includes(faultOf(error))) throw error;
      }
    }
  };
  if (api.do === "cancel") {
    const id = world.runs[api.run % world.runs.length]!;
    const { answer } = await repeated(() => cancelRun(pool, tenant, id, by));
    if (answer) world.cancels.push({ runId: id, status: answer.status });
    return;
  }
  if (api.do === "raise") {
    const runId = world.runs[api.run % world.runs.length]!;
    const mark = world.mark();
    const told: Told = { runId, mark, answer: "unknown" };
    world.told.push(told);
    // More than every cap there was.
    const maxCostUsd = 2 + world.told.length;
    const { answer, sure } = await repeated(() =>
      raiseRunBudget(pool, blobs, { tenant, id: runId }, { maxCostUsd }, mark),
    );
    if (answer) told.answer = "yes";
    else if (sure) told.answer = "no";
    return;
  }
  if (api.do === "cap") {
    await repeated(() => setBudget(pool, tenant, { day: api.nanos }, by));
    return;
  }
  if (api.do === "roll back") {
    await repeated(() => rollBack(pool, tenant, world.runs[api.run % world.runs.length]!, by));
    return;
  }
  // There may be something to decide in a moment.
  for (let look = 0; look < looks; look++) {
    const { answer } = await repeated(() => listApprovals(pool, tenant, { status: "pending", limit: 1 }));
    const asked = answer?.[0];
    if (!asked) continue;
    const mark = world.mark();
    const told: Told = { runId: asked.runId, mark, answer: "unknown" };
    world.told.push(told);
    const decision = { decision: api.yes ? ("approve" as const) : ("reject" as const), by: mark };
    const decided = await repeated(() => decideApproval(pool, blobs, asked, decision));
    if (decided.answer) {
      told.answer = "yes";
      world.decisions.push({ asked, by: mark });
    } else if (decided.sure) told.answer = "no";
    return;
  }
}
