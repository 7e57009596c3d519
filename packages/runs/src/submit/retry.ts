/**
 * Retrying: a new run that takes up one that did not complete, from its last good step. Its log begins with the old one's input and copies of
 * what that one had finished, so that nothing finished is done or paid for again; what is copied is a pure function of the old log, which is final.
 */
import type { LogEvent, Permission, RunInput } from "@drover/harness";
import { fold, toUsd } from "@drover/harness/worker";
import { DroverError, toWireId, uuidv7 } from "@drover/protocol";
import { type Blobs, type Pool, type Transaction, transaction } from "@drover/storage";
import { recordAudit } from "../audit/entries.ts";
import { encodeData } from "../log/append.ts";
import { readLog } from "../log/events.ts";
import { requireContents } from "../log/read.ts";
import { insertRetry } from "../moves/create.ts";
import type { Moved } from "../moves/moved.ts";
import { isFinal, type Status } from "../moves/state.ts";
import type { Observe } from "../observe.ts";
import { tagEach } from "./fair.ts";
import { type Idempotency, keyMismatch, readWinner } from "./submit.ts";

export interface Retry {
  tenant: string;
  id: string;
  /** What is to be different. */
  changes: Partial<Pick<RunInput, "limits" | "max_iterations" | "max_cost_usd" | "model">>;
  /** What the tools of whoever asks may do at most; absent: all. The run's own bounds hold as well. */
  permissions?: Permission[] | undefined;
  /** Whether links to decide may go to the callback, should the run have asked for that. */
  callbackDecides: boolean;
  actor: string;
  /** So long after its last heartbeat an owner may still be at work. */
  leaseMs: number;
  observe?: Observe;
  idempotency?: Idempotency | undefined;
}

/** `made`: the new run, to be woken; null when the idempotency key had made it before. */
export interface Retried {
  id: string;
  made: Moved | null;
}

/**
 * Takes up a failed, partial or cancelled run again; committed when it resolves. Asking twice makes two runs. null: the tenant has no such run.
 * @throws DroverError `conflict` when there is nothing to take up, or its effects are undone; `contents_expired`; `idempotency_mismatch`
 */
export async function retryRun(pool: Pool, blobs: Blobs, retry: Retry): Promise<Retried | null> {
  const { tenant, id: of, changes, actor, idempotency } = retry;
  const { rows } = await pool.query<OldRun>(
    `SELECT agent, priority, status, kind, finished_at, deadline <= now() AS overdue FROM runs WHERE tenant = $1 AND id = $2`,
    [tenant, of],
  );
  const old = rows[0];
  if (!old) return null;
  requireRetryable(old);
  await requireContents(pool, { id: of, status: old.status });

  const log = await readLog(pool, blobs, { tenant, runId: of });
  const seqs = stepsToCopy(log);
  const input = { ...inputOf(log, retry, old.overdue === true), ...changes };
  const { limits } = input;
  const [tag] = await tagEach(pool, [{ tenant, priority: old.priority }]);
  const id = uuidv7();
  const from = toWireId("run", of);
  const quiet_at = new Date(old.finished_at!.getTime() + retry.leaseMs).toISOString();
  const data = await encodeData(blobs, tenant, input);
  const made = await transaction(pool, async (tx) => {
    if (idempotency && !(await takeKey(tx, tenant, idempotency, id))) return null;
    await requireNotUndone(tx, tenant, of);
    const left = await insertRetry(tx, {
      id,
      tenant,
      retryOf: of,
      tag: tag!,
      softMs: Math.max(1, Math.round(limits.soft_seconds * 1000)),
      hardMs: Math.round(limits.hard_seconds * 1000),
      deadline: limits.deadline ?? null,
      submittedBy: actor,
      model: input.model ?? null,
      data,
      seqs,
      artifacts: log.flatMap((event) =>
        event.type === "tool.result" && event.data.artifact ? [event.data.artifact.id] : [],
      ),
      copied: JSON.stringify({ from, events: seqs.length, quiet_at }),
    });
    const about = { retry_of: from, copied: seqs.length, ...changes };
    await recordAudit(tx, [{ tenant, actor, action: "query.retried", runId: id, data: about }]);
    return left;
  });
  if (made) {
    retry.observe?.({ type: "submitted", agents: [old.agent], kind: "retry" });
    return { id, made };
  }
  const winner = await readWinner(pool, tenant, idempotency!);
  if (winner?.runId) return { id: winner.runId, made: null };
  throw keyMismatch();
}

interface OldRun {
  agent: string;
  priority: number;
  status: Status;
  kind: "query" | "rollback";
  finished_at: Date | null;
  overdue: boolean | null;
}

function requireRetryable({ status, kind }: OldRun): void {
  const refused = (why: string) => new DroverError("conflict", why);
  if (kind === "rollback")
    throw refused("This run is a rollback: ask for the rollback of its run again, with POST /query/{id}/rollback.");
  if (status === "completed") throw refused("The run completed: there is nothing to retry. Submit the query anew.");
  if (!isFinal(status)) throw refused(`The run is ${status}: cancel it, or wait for its end, before it is retried.`);
}

/**
 * Its effects, and those of the runs whose steps it had copied, must still stand. They are locked from the oldest on, as a rollback locks the one
 * that it undoes, so that a retry and a rollback see each other.
 */
async function requireNotUndone(tx: Transaction, tenant: string, id: string): Promise<void> {
  const { rows } = await tx.query<{ id: string; rollback: string | null }>(
    `WITH RECURSIVE line AS (
       SELECT id, retry_of FROM runs WHERE tenant = $1 AND id = $2
       UNION ALL SELECT r.id, r.retry_of FROM runs r JOIN line l ON r.id = l.retry_of)
     SELECT id, rollback FROM runs WHERE tenant = $1 AND id IN (SELECT id FROM line) ORDER BY id FOR UPDATE`,
    [tenant, id],
  );
  const undone = rows.find(({ rollback }) => rollback !== null);
  if (undone)
    throw new DroverError(
      "conflict",
      `What ${toWireId("run", undone.id)} did was rolled back, so its steps are no longer true. Submit the query anew.`,
    );
}

async function takeKey(tx: Transaction, tenant: string, key: Idempotency, runId: string): Promise<boolean> {
  const { rowCount } = await tx.query(
    `INSERT INTO idempotency_keys AS k (tenant, key, body_hash, run_id) VALUES ($1, $2, $3, $4)
     ON CONFLICT (tenant, key) DO UPDATE SET body_hash = excluded.body_hash, run_id = excluded.run_id, batch_id = NULL, created_at = now()
       WHERE k.created_at < now() - interval '24 hours'`,
    [tenant, key.key, key.bodyHash, runId],
  );
  return rowCount === 1;
}

/** What the run was asked, its caps as they were raised; without a deadline that has passed. */
function inputOf(log: LogEvent[], { id, permissions, callbackDecides }: Retry, overdue: boolean): RunInput {
  const first = log[0];
  if (first?.type !== "run.queued") throw new Error(`the log of run ${id} does not begin with run.queued`);
  const { callback_decides, permissions: own, limits, ...input } = first.data;
  const { deadline, ...times } = limits;
  const { costNanos, points } = fold(log).caps;
  const both = permissions && own ? own.filter((one) => permissions.includes(one)) : (permissions ?? own);
  return {
    ...input,
    ...(costNanos !== undefined && { max_cost_usd: toUsd(costNanos) }),
    ...(points !== undefined && { action_budget: points }),
    limits: overdue || deadline === undefined ? times : { ...times, deadline },
    ...(both && { permissions: both }),
    ...(callback_decides && callbackDecides && { callback_decides }),
    retry_of: toWireId("run", id),
  };
}

/**
 * The finished steps of a log, by their seq: model calls, results, and what is known of calls that have none. An intent without an outcome stays one:
 * the call is verified, asked about, or made again under the same key. Moved out is what put an end to the run or was refused for its limits, and
 * every permission to do something that was not made use of: what a person allowed once must not be done by two retries.
 */
export function stepsToCopy(log: LogEvent[]): number[] {
  const state = fold(log);
  const calls = new Map(
    state.turns.flatMap((turn) => turn.calls).map((record) => [placeOf(record.iteration, record.index), record]),
  );
  const begun = (iteration?: number, index?: number): boolean => {
    const record = calls.get(placeOf(iteration, index));
    return record !== undefined && (record.intended || record.held !== undefined || record.result !== undefined);
  };
  const last = state.turns.at(-1);
  const answerRefused =
    last?.hidden === "withheld" ||
    [...state.approvals.values()].some(
      ({ request, decision }) => request.subject === "output" && decision && decision.decision !== "approve",
    );
  const turns = log.filter((event) => event.type === "model.call");
  const refused = answerRefused ? turns.at(-1)?.data.iteration : undefined;
  const kept = new Set(
    turns.filter(({ data }) => !data.wrap_up && data.iteration !== refused).map(({ data }) => data.iteration),
  );

  const holds = (approvalId: string): boolean => {
    const { request, decision } = state.approvals.get(approvalId) ?? {};
    if (!request || !decision) return false;
    if (request.subject === "uncertain") return decision.decision === "done";
    if (decision.decision === "approve") return request.subject !== "call" || begun(request.iteration, request.index);
    return decision.decision === "reject" && standsAsRefused.has(request.subject);
  };

  return log.filter(isToBeCopied).map(({ seq }) => seq);

  function isToBeCopied(event: LogEvent): boolean {
    switch (event.type) {
      case "model.call":
        return !event.data.wrap_up && kept.has(event.data.iteration);
      case "action.called":
        return true;
      case "tool.intent":
      case "tool.held":
        return event.data.iteration !== refused;
      case "tool.result":
        // Such a call was not made, or not looked into, for a limit of that run.
        return event.data.problem !== "time" && event.data.problem !== "budget";
      case "policy.applied": {
        const { stage, iteration, index } = event.data;
        if (stage === "input") return true;
        return stage === "output" ? iteration !== undefined && kept.has(iteration) : begun(iteration, index);
      }
      case "approval.requested":
      case "approval.decided":
        return holds(event.data.approval_id);
      default:
        return false;
    }
  }
}

/** A person's no to these does not end a run: the model is told. */
const standsAsRefused = new Set<string>(["call", "result"]);

const placeOf = (iteration?: number, index?: number): string => `${iteration}:${index}`;
