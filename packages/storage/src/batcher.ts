/**
 * Group commit: many callers' operations share one statement and one commit. What arrives while a commit is on its way forms
 * the next batch, there is no timer. Nothing is acknowledged before its commit.
 *
 * Rules (design section 6), each with a test: operations are sorted by key, so that statements lock rows in one order; a key
 * has operations in one statement at a time; deadlocks and serialization failures are repeated in place; a statement that
 * fails for its data is halved until only the culprit fails; after a broken connection what was sent is read back
 * (`recover`) before it is sent again; who waits for a row that somebody holds waits alone (`free`). The earlier copy may still come through, before the later one or after it: the statement must refuse
 * to do the same twice, and what it refuses after a repetition is read back before it counts as refused.
 */
import { setTimeout as delay } from "node:timers/promises";
import { type Fault, faultOf } from "./database.ts";

export interface BatcherOptions<Op, Result> {
  /** Orders operations and keeps those of one key out of parallel statements. */
  key(op: Op): string;
  /** Executes one statement for all, answers in the order given; null is a refusal. */
  execute(ops: Op[]): Promise<Result[]>;
  /**
   * Called after a broken connection: for each operation its result when it turns out to be committed, else undefined. The
   * statement may still be running on the server, so it must wait for the rows that statement locks. With it, a batch is
   * repeated until the database is back or `signal` aborts; without it, a broken connection fails the batch.
   */
  recover?(ops: Op[]): Promise<(Result | undefined)[]>;
  /**
   * For each operation whether nobody else holds its row. With it, let `execute` give up soon on a lock it cannot have (`briefLocks`): what is held then
   * waits until it is free, or `signal` aborts, and the others go on without it.
   */
  free?(ops: Op[]): Promise<boolean[]>;
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
/** Between two looks whether what is held is free, ms. */
const heldMs = 100;

/**
 * A CTE for a batch's statement, under the name `brief`: join it to what the statement takes its keys from, and it gives up after 200 ms on a lock
 * that somebody holds (`55P03`).
 */
export const briefLocks = "brief AS MATERIALIZED (SELECT set_config('lock_timeout', '200ms', true))";
const outagePauseMs = { first: 50, most: 1000 };

/** Returns the function that queues one operation and resolves with its result once it is committed. */
export function createBatcher<Op, Result>(options: BatcherOptions<Op, Result>): (op: Op) => Promise<Result> {
  const lanes = options.lanes ?? 1;
  const max = options.max ?? 500;
  let queue: Waiting<Op, Result>[] = [];
  const busyKeys = new Set<string>();
  let busyLanes = 0;
  let scheduled = false;
  let held: Waiting<Op, Result>[] = [];

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
    if (busyKeys.size === 0 && held.length === 0) return queue.splice(0, max);
    const heldKeys = new Set(held.map(({ key }) => key));
    const batch: Waiting<Op, Result>[] = [];
    const left: Waiting<Op, Result>[] = [];
    for (const waiting of queue)
      (batch.length < max && !busyKeys.has(waiting.key) && !heldKeys.has(waiting.key) ? batch : left).push(waiting);
    queue = left;
    return batch;
  }

  /** Resolves when every operation of the batch is answered; never rejects. `resent`: an earlier copy may be committed, now or later. */
  async function send(batch: Waiting<Op, Result>[], resent: boolean): Promise<void> {
    let rest = batch;
    let mustRead = resent;
    let readForData = false;
    let pauseMs = outagePauseMs.first;
    let conflicts = 0;
    for (;;) {
      try {
        if (mustRead) rest = await settleCommitted(rest);
        mustRead = false;
        if (rest.length === 0) return;
        const results = await options.execute(rest.map((waiting) => waiting.op));
        const refused: Waiting<Op, Result>[] = [];
        rest.forEach((waiting, index) => {
          if (resent && results[index] === null) refused.push(waiting);
          else waiting.resolve(results[index]!);
        });
        rest = refused;
        if (rest.length > 0) rest = await settleCommitted(rest);
        for (const waiting of rest) waiting.resolve(null as Result);
        return;
      } catch (error) {
        if (isLockTimeout(error) && options.free && !options.signal?.aborted) {
          // What may be committed already is not let go of.
          if (!resent) rest = await holdBack(rest, options.free).catch(() => rest);
          if (rest.length === 0) return;
          continue;
        }
        const fault: Fault = faultOf(error);
        if (fault === "conflict" && ++conflicts < conflictTries) continue;
        if (fault === "unavailable" && options.recover && !options.signal?.aborted) {
          resent = true;
          mustRead = true;
          await delay(pauseMs * (0.5 + Math.random() / 2), undefined, { signal: options.signal }).catch(() => {});
          pauseMs = Math.min(pauseMs * 2, outagePauseMs.most);
          continue;
        }
        if (fault === "data" && resent && !readForData) {
          // What a unique key refuses may be what the earlier copy wrote.
          readForData = true;
          mustRead = true;
          continue;
        }
        if (fault === "data" && rest.length > 1) {
          const half = Math.ceil(rest.length / 2);
          await send(rest.slice(0, half), resent);
          await send(rest.slice(half), resent);
          return;
        }
        for (const waiting of rest) waiting.reject(error);
        return;
      }
    }
  }

  /** Returns those that nobody holds; the others wait beside the queue, and what comes for their keys waits behind them. */
  async function holdBack(
    batch: Waiting<Op, Result>[],
    ask: (ops: Op[]) => Promise<boolean[]>,
  ): Promise<Waiting<Op, Result>[]> {
    const isFree = await ask(batch.map((waiting) => waiting.op));
    const now = batch.filter((_, index) => !isFree[index]);
    if (now.length > 0 && held.push(...now) === now.length) void watchHeld(ask);
    return batch.filter((_, index) => isFree[index]);
  }

  async function watchHeld(ask: (ops: Op[]) => Promise<boolean[]>): Promise<void> {
    while (held.length > 0) {
      await delay(heldMs, undefined, { signal: options.signal }).catch(() => {});
      const waiting = held;
      // An outage is noticed by the statement.
      const isFree = options.signal?.aborted ? [] : await ask(waiting.map(({ op }) => op)).catch(() => []);
      const isOver = (index: number) => options.signal?.aborted || (isFree[index] ?? true);
      queue.unshift(...waiting.filter((_, index) => isOver(index)));
      held = [...waiting.filter((_, index) => !isOver(index)), ...held.slice(waiting.length)];
      pump();
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

const isLockTimeout = (error: unknown): boolean => (error as { code?: unknown } | null)?.code === "55P03";

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
