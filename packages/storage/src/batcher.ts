/**
 * Group commit: many callers' operations share one statement and one commit. What arrives while a commit is on its way forms
 * the next batch, there is no timer. Nothing is acknowledged before its commit.
 *
 * Rules (design section 6), each with a test: operations are sorted by key, so that statements lock rows in one order; a key
 * has operations in one statement at a time; deadlocks and serialization failures are repeated in place; a statement that
 * fails for its data is halved until only the culprit fails; after a broken connection what was sent is read back
 * (`recover`) before it is sent again.
 */
import { setTimeout as delay } from "node:timers/promises";
import { type Fault, faultOf } from "./database.ts";

export interface BatcherOptions<Op, Result> {
  /** Orders operations and keeps those of one key out of parallel statements. */
  key(op: Op): string;
  /** Executes one statement for all, answers in the order given. */
  execute(ops: Op[]): Promise<Result[]>;
  /**
   * Called after a broken connection: for each operation its result when it turns out to be committed, else undefined. The
   * statement may still be running on the server, so it must wait for the rows that statement locks. With it, a batch is
   * repeated until the database is back or `signal` aborts; without it, a broken connection fails the batch.
   */
  recover?(ops: Op[]): Promise<(Result | undefined)[]>;
  /** Statements under way at once (default 1). */
  lanes?: number;
  /** Operations in one statement at most (default 500). */
  max?: number;
  /** Ends the waiting for a database that is away. */
  signal?: AbortSignal;
}

interface Waiting<Op, Result> {
  op: Op;
  key: string;
  resolve(result: Result): void;
  reject(error: unknown): void;
}

const conflictTries = 10;
const outagePauseMs = { first: 50, most: 1000 };

/** Returns the function that queues one operation and resolves with its result once it is committed. */
export function createBatcher<Op, Result>(options: BatcherOptions<Op, Result>): (op: Op) => Promise<Result> {
  const lanes = options.lanes ?? 1;
  const max = options.max ?? 500;
  let queue: Waiting<Op, Result>[] = [];
  const busyKeys = new Set<string>();
  let busyLanes = 0;
  let scheduled = false;

  function pump(): void {
    scheduled = false;
    while (busyLanes < lanes && queue.length > 0) {
      const batch = takeBatch();
      if (batch.length === 0) return;
      batch.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0));
      const keys = batch.map((waiting) => waiting.key);
      for (const key of keys) busyKeys.add(key);
      busyLanes++;
      void send(batch, false).finally(() => {
        for (const key of keys) busyKeys.delete(key);
        busyLanes--;
        pump();
      });
    }
  }

  function takeBatch(): Waiting<Op, Result>[] {
    if (busyKeys.size === 0) return queue.splice(0, max);
    const batch: Waiting<Op, Result>[] = [];
    const left: Waiting<Op, Result>[] = [];
    for (const waiting of queue) (batch.length < max && !busyKeys.has(waiting.key) ? batch : left).push(waiting);
    queue = left;
    return batch;
  }

  /** Resolves when every operation of the batch is answered; never rejects. */
  async function send(batch: Waiting<Op, Result>[], maybeCommitted: boolean): Promise<void> {
    let rest = batch;
    let pauseMs = outagePauseMs.first;
    let conflicts = 0;
    for (;;) {
      try {
        if (maybeCommitted) rest = await settleCommitted(rest);
        if (rest.length === 0) return;
        maybeCommitted = false;
        const results = await options.execute(rest.map((waiting) => waiting.op));
        rest.forEach((waiting, index) => {
          waiting.resolve(results[index]!);
        });
        return;
      } catch (error) {
        const fault: Fault = faultOf(error);
        if (fault === "conflict" && ++conflicts < conflictTries) continue;
        if (fault === "unavailable" && options.recover && !options.signal?.aborted) {
          maybeCommitted = true;
          await delay(pauseMs * (0.5 + Math.random() / 2), undefined, { signal: options.signal }).catch(() => {});
          pauseMs = Math.min(pauseMs * 2, outagePauseMs.most);
          continue;
        }
        if (fault === "data" && rest.length > 1) {
          const half = Math.ceil(rest.length / 2);
          await send(rest.slice(0, half), maybeCommitted);
          await send(rest.slice(half), maybeCommitted);
          return;
        }
        for (const waiting of rest) waiting.reject(error);
        return;
      }
    }
  }

  async function settleCommitted(batch: Waiting<Op, Result>[]): Promise<Waiting<Op, Result>[]> {
    const found = await options.recover!(batch.map((waiting) => waiting.op));
    return batch.filter((waiting, index) => {
      const result = found[index];
      if (result === undefined) return true;
      waiting.resolve(result);
      return false;
    });
  }

  return (op) =>
    new Promise<Result>((resolve, reject) => {
      queue.push({ op, key: options.key(op), resolve, reject });
      if (scheduled || busyLanes >= lanes) return;
      scheduled = true;
      setImmediate(pump);
    });
}

/**
 * Repeats something idempotent while the database is away, until it works, fails for another reason, or `signal` aborts. Throws
 * what the last try threw.
 */
export async function throughOutages<T>(attempt: () => Promise<T>, signal: AbortSignal): Promise<T> {
  for (let pauseMs = outagePauseMs.first; ; pauseMs = Math.min(pauseMs * 2, outagePauseMs.most)) {
    try {
      return await attempt();
    } catch (error) {
      if (faultOf(error) !== "unavailable" || signal.aborted) throw error;
      await delay(pauseMs, undefined, { signal }).catch(() => {});
    }
  }
}
