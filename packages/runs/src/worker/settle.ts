/** How a run leaves its owner: what the loop's outcome becomes in the database, and the ways out that no outcome covers. */
import type { FinalData, NewEvent, RunFailure } from "@drover/harness";
import { backoffMs, early, type LoopOutcome, latestText, type RunState, waitingOf } from "@drover/harness/worker";
import { uuidv7 } from "@drover/protocol";
import { type Blobs, createBatcher, type Pool, throughOutages } from "@drover/storage";
import { areFree, encodeData } from "../log/append.ts";
import type { ClaimedRun } from "../moves/claim.ts";
import { type Leaving, leaveRuns, nothingLeft, readLeft } from "../moves/leave.ts";
import type { Moved } from "../moves/moved.ts";
import { type Parking, parkRun } from "../moves/park.ts";
import type { AgentSource } from "./executor.ts";

interface SettleOptions {
  pool: Pool;
  blobs: Blobs;
  agents: Pick<AgentSource, "agent">;
  workerId(): string;
  /** Ends the waiting for a database that is away. */
  signal: AbortSignal;
}

/** All of them resolve with what became of the run; null when it was not this owner's any more. */
export interface Settler {
  /** `attempt`: the one it left in. */
  settle(run: ClaimedRun, state: RunState, outcome: LoopOutcome, attempt: number): Promise<Moved | null>;
  /** For what no outcome covers (its log cannot be read, its end cannot be written): tried again with growing pauses, a few times. */
  putBack(run: ClaimedRun): Promise<Moved | null>;
  /** Hands over a run that nobody here carries. */
  giveBack(run: { runId: string; epoch: number }): Promise<Moved | null>;
}

const again = { most: 5, firstMs: 1000 };

export function createSettler({ pool, blobs, agents, workerId, signal }: SettleOptions): Settler {
  const readBack = async (ops: Pick<Leaving, "runId" | "eventId">[]) =>
    inOrder(ops, await readLeft(pool, ops)).map((moved) => moved ?? undefined);
  const leave = createBatcher<Leaving, Moved | null>({
    key: (op) => op.runId,
    execute: async (ops) => inOrder(ops, await leaveRuns(pool, ops)),
    recover: readBack,
    free: (ops) =>
      areFree(
        pool,
        ops.map((op) => op.runId),
      ),
    signal,
  });
  const park = createBatcher<Parking, Moved | null>({
    key: (op) => op.runId,
    execute: async ([op]) => [await parkRun(pool, op!)],
    recover: readBack,
    // Each is a transaction of its own: one that fails must not have another, which was committed, tried again.
    max: 1,
    lanes: 5,
    signal,
  });

  const fenceOf = ({ id: runId, epoch, lastSeq }: ClaimedRun) => ({ runId, epoch, worker: workerId(), lastSeq });

  return {
    async settle(run, state, outcome, attempt) {
      const encode = (data: unknown) => throughOutages(() => encodeData(blobs, run.tenant, data), signal);
      const kept: FinalData = { output: latestText(state), stop_reason: null, error: null };
      const base = { ...fenceOf(run), eventId: uuidv7(), cancelledData: await encode(kept) };
      if (outcome.kind === "park") {
        const level = outcome.waitingFor === "budget" ? outcome.level : null;
        const data = await encode(waitingOf(state, outcome));
        return await park({ ...base, waitingFor: outcome.waitingFor, level, raises: state.raises, data });
      }
      const { event, ...leaving } = leavingOf(outcome, state, attempt, workerId());
      const data = await encode(event.data);
      return await leave({ ...base, ...leaving, eventType: event.type, data, rollback: rollsBack(agents, run) });
    },

    async putBack(run) {
      const error: RunFailure = {
        code: "internal_error",
        message: "An internal error; the service's logs have it under the run's id.",
      };
      const ended: FinalData = { output: null, stop_reason: error.code, error };
      const last = run.attempt >= again.most;
      const delayMs = again.firstMs * 2 ** run.attempt;
      return await leave({
        ...fenceOf(run),
        eventId: uuidv7(),
        status: last ? "failed" : "queued",
        stopReason: last ? error.code : null,
        eventType: last ? "run.failed" : "run.retrying",
        data: JSON.stringify(last ? ended : { attempt: run.attempt + 1, delay_ms: delayMs, error }),
        cancelledData: JSON.stringify(nothingLeft),
        delayMs: last ? 0 : delayMs,
        attempt: run.attempt + 1,
        rollback: rollsBack(agents, run),
      });
    },

    async giveBack({ runId, epoch }) {
      return await leave({
        runId,
        epoch,
        eventId: uuidv7(),
        status: "queued",
        stopReason: null,
        eventType: "run.handed_over",
        data: JSON.stringify({ worker: workerId() }),
        cancelledData: JSON.stringify(nothingLeft),
        delayMs: 0,
        attempt: null,
      });
    },
  };
}

/** Whether what a run did is undone when it does not complete. */
export const rollsBack = (agents: Pick<AgentSource, "agent">, run: Pick<ClaimedRun, "kind" | "agent">): boolean =>
  run.kind === "query" && agents.agent(run.agent)?.onFailure === "rollback";

/** How an outcome of the loop leaves the worker. */
function leavingOf(
  outcome: Exclude<LoopOutcome, { kind: "park" }>,
  state: RunState,
  attempt: number,
  worker: string,
): Pick<Leaving, "status" | "stopReason" | "delayMs" | "attempt"> & { event: NewEvent } {
  switch (outcome.kind) {
    case "final":
      return {
        status: outcome.status,
        stopReason: outcome.data.stop_reason,
        event: { type: `run.${outcome.status}`, data: outcome.data },
        delayMs: 0,
        attempt: null,
      };
    case "handover":
      return {
        status: "queued",
        stopReason: null,
        event: { type: "run.handed_over", data: { worker, ...(outcome.delayMs && { delay_ms: outcome.delayMs }) } },
        delayMs: outcome.delayMs ?? 0,
        attempt: null,
      };
    case "retry": {
      const { failure } = outcome;
      const code: RunFailure["code"] = failure.code === "aborted" ? "internal_error" : failure.code;
      const { retry } = state.input;
      if (attempt >= retry.max_attempts) return leavingOf(early(state, code, failure.message), state, attempt, worker);
      const delayMs = backoffMs(retry, attempt, failure.retryAfterMs);
      const error: RunFailure = { code, message: failure.message };
      return {
        status: "queued",
        stopReason: null,
        event: { type: "run.retrying", data: { attempt: attempt + 1, delay_ms: delayMs, error } },
        delayMs: Math.max(1, delayMs),
        attempt: attempt + 1,
      };
    }
  }
}

function inOrder(ops: { runId: string }[], found: Moved[]): (Moved | null)[] {
  const byRun = new Map(found.map((moved) => [moved.runId, moved]));
  return ops.map((op) => byRun.get(op.runId) ?? null);
}
