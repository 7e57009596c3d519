/**
 * Submitting: a run exists once its row is committed, and only then is anybody told. Single submissions share statements (group
 * commit), a batch is one transaction of set-based inserts. The wake-up comes after the commit; a lost one is the rescuer's business.
 */
import { contentHash, type RunInput } from "@drover/harness";
import { DroverError, toWireId, uuidv7 } from "@drover/protocol";
import type { WakeQueue } from "@drover/queue";
import { type Blobs, createBatcher, type Pool, transaction } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { recordAudit } from "../audit/entries.ts";
import { encodeData } from "../log/append.ts";
import { insertRuns, type NewRun } from "../moves/create.ts";
import type { Observe } from "../observe.ts";
import { tagEach } from "./fair.ts";

/** A validated query, defaults filled in. */
export interface Submission {
  tenant: string;
  input: RunInput;
  userId: string | null;
  priority: number;
  delayMs: number;
  callbackUrl: string | null;
  /** Message types the callback gets; null: every final one. */
  callbackEvents: string[] | null;
  metadata: Record<string, string>;
  /** Its conversation, which has a budget of its own (default none). */
  sessionId?: string | null;
  /** Who submits: the id of an API key (default nobody). */
  submittedBy?: string | null;
}

export interface Idempotency {
  key: string;
  /** SHA-256 of the canonical body. */
  bodyHash: Buffer;
}

/** `replayed`: the key was used before with the same body, and this is what it made. */
export interface Accepted {
  id: string;
  replayed: boolean;
}

export interface BatchSubmission {
  tenant: string;
  items: Submission[];
  callbackUrl: string | null;
  callbackEvents: string[] | null;
  metadata: Record<string, string>;
  submittedBy?: string | null;
}

export interface Submitter {
  /** Accepts one query; committed when it resolves. Throws `idempotency_mismatch`. */
  submit(submission: Submission, idempotency?: Idempotency): Promise<Accepted>;
  /** Accepts all items or none. Throws `idempotency_mismatch`. */
  submitBatch(batch: BatchSubmission, idempotency?: Idempotency): Promise<Accepted>;
}

/** Rows of one insert statement of a batch. */
const chunk = 1000;

interface SubmitOp {
  run: NewRun;
}

export function createSubmitter(options: {
  pool: Pool;
  blobs: Blobs;
  queue: WakeQueue;
  logger: Logger;
  observe?: Observe;
}): Submitter {
  const { pool, blobs, queue, logger, observe = () => {} } = options;

  const insert = createBatcher<SubmitOp, boolean>({
    key: (op) => op.run.idempotency?.key ?? op.run.id,
    execute: async (ops) => {
      // One key twice in one statement: the second looks up what the first made.
      const runs = firstOfEachKey(ops.map((op) => op.run));
      const tags = await tagEach(pool, runs);
      runs.forEach((run, index) => {
        run.tag = tags[index]!;
      });
      const made = await insertRuns(pool, runs);
      wake(runs.filter((run) => made.has(run.id)));
      return ops.map((op) => made.has(op.run.id));
    },
    lanes: 2,
  });

  function wake(runs: NewRun[]): void {
    const due = runs.filter((run) => run.delayMs === 0);
    void queue.wake(due.length).catch((error) => logger.debug({ err: error }, "wake-up not sent"));
  }

  async function submit(submission: Submission, idempotency?: Idempotency): Promise<Accepted> {
    const run = await newRun(blobs, submission, idempotency ?? null);
    const made = await insert({ run });
    if (made) observe({ type: "submitted", agents: [run.agent], kind: "single" });
    if (made || !idempotency) return { id: run.id, replayed: false };
    const winner = await readWinner(pool, submission.tenant, idempotency);
    if (winner?.runId) return { id: winner.runId, replayed: true };
    throw keyMismatch();
  }

  async function submitBatch(batch: BatchSubmission, idempotency?: Idempotency): Promise<Accepted> {
    const batchId = uuidv7();
    const tags = await tagEach(
      pool,
      batch.items.map((item) => ({ tenant: batch.tenant, priority: item.priority })),
    );
    const runs: NewRun[] = [];
    for (const [index, item] of batch.items.entries()) {
      const run = await newRun(blobs, item, null);
      runs.push({ ...run, batchId, batchIndex: index, tag: tags[index]!, hash: null });
    }
    const accepted = await transaction(pool, async (tx) => {
      if (idempotency) {
        const { rowCount } = await tx.query(
          `INSERT INTO idempotency_keys AS k (tenant, key, body_hash, batch_id) VALUES ($1, $2, $3, $4)
           ON CONFLICT (tenant, key) DO UPDATE
             SET body_hash = excluded.body_hash, run_id = NULL, batch_id = excluded.batch_id, created_at = now()
             WHERE k.created_at < now() - interval '24 hours'`,
          [batch.tenant, idempotency.key, idempotency.bodyHash, batchId],
        );
        if (rowCount === 0) return false;
      }
      await tx.query(
        "INSERT INTO batches (id, tenant, total, callback_url, callback_events, metadata) VALUES ($1, $2, $3, $4, $5, $6)",
        [batchId, batch.tenant, runs.length, batch.callbackUrl, batch.callbackEvents, batch.metadata],
      );
      for (let at = 0; at < runs.length; at += chunk) await insertRuns(tx, runs.slice(at, at + chunk));
      const data = {
        batch: toWireId("batch", batchId),
        queries: runs.length,
        inputs: contentHash(runs.map((run) => run.data)),
      };
      const actor = batch.submittedBy ?? "system";
      await recordAudit(tx, [{ tenant: batch.tenant, actor, action: "batch.submitted", runId: null, data }]);
      return true;
    });
    if (!accepted) {
      const winner = await readWinner(pool, batch.tenant, idempotency!);
      if (winner?.batchId) return { id: winner.batchId, replayed: true };
      throw keyMismatch();
    }
    observe({ type: "submitted", agents: runs.map((run) => run.agent), kind: "batch" });
    wake(runs);
    return { id: batchId, replayed: false };
  }

  return { submit, submitBatch };
}

async function newRun(blobs: Blobs, submission: Submission, idempotency: Idempotency | null): Promise<NewRun> {
  const { input, tenant } = submission;
  return {
    id: uuidv7(),
    tenant,
    agent: input.agent,
    userId: submission.userId,
    batchId: null,
    batchIndex: null,
    priority: submission.priority,
    tag: 0,
    delayMs: submission.delayMs,
    softMs: Math.max(1, Math.round(input.limits.soft_seconds * 1000)),
    hardMs: Math.round(input.limits.hard_seconds * 1000),
    deadline: input.limits.deadline ?? null,
    callbackUrl: submission.callbackUrl,
    callbackEvents: submission.callbackEvents,
    metadata: submission.metadata,
    sessionId: submission.sessionId ?? null,
    submittedBy: submission.submittedBy ?? null,
    model: input.model ?? null,
    hash: contentHash(input),
    data: await encodeData(blobs, tenant, input),
    idempotency,
  };
}

function firstOfEachKey(runs: NewRun[]): NewRun[] {
  const seen = new Set<string>();
  return runs.filter((run) => {
    if (!run.idempotency) return true;
    const key = `${run.tenant} ${run.idempotency.key}`;
    return !seen.has(key) && seen.add(key);
  });
}

/** What an idempotency key made, if it was used with the same body. */
export async function readWinner(
  pool: Pool,
  tenant: string,
  idempotency: Idempotency,
): Promise<{ runId: string | null; batchId: string | null } | null> {
  const { rows } = await pool.query<{ body_hash: Buffer; run_id: string | null; batch_id: string | null }>(
    "SELECT body_hash, run_id, batch_id FROM idempotency_keys WHERE tenant = $1 AND key = $2",
    [tenant, idempotency.key],
  );
  const row = rows[0];
  if (!row?.body_hash.equals(idempotency.bodyHash)) return null;
  return { runId: row.run_id, batchId: row.batch_id };
}

/**
 * What a request with this key and body made before, within 24 hours; null: nothing. For a request that would not be accepted today: it was judged then.
 * @throws DroverError `idempotency_mismatch` when the key came with another body
 */
export async function readReplay(
  pool: Pool,
  tenant: string,
  idempotency: Idempotency,
): Promise<{ runId: string | null; batchId: string | null } | null> {
  const { rowCount } = await pool.query(
    "SELECT FROM idempotency_keys WHERE tenant = $1 AND key = $2 AND created_at > now() - interval '24 hours'",
    [tenant, idempotency.key],
  );
  if (rowCount === 0) return null;
  const winner = await readWinner(pool, tenant, idempotency);
  if (!winner) throw keyMismatch();
  return winner;
}

export function keyMismatch(): DroverError {
  return new DroverError(
    "idempotency_mismatch",
    "This Idempotency-Key was used with another body in the last 24 hours. Use a new key for a new request.",
  );
}
