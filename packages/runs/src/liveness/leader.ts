/**
 * One of all worker processes leads: the one whose session holds an advisory lock. The others look once a second whether anybody does. A
 * leader that dies frees the lock with its session; one that is silent, stopped or cut off, is ended by the server.
 */
import { setTimeout as delay } from "node:timers/promises";
import { openPool, type Pool, type Queryable, type Transaction } from "@drover/storage";
import type { Logger } from "@drover/telemetry";

export interface LeaderOptions {
  /** To look whether anybody leads. */
  pool: Pool;
  /** Must not be a transaction pooler: the lock belongs to the session. */
  directUrl: string;
  logger: Logger;
  /** Name of the lock; who holds it leads. */
  lock: string;
  /** Shown by Postgres as the session's application. */
  name: string;
  /** What the log says while nobody can lead, and when it is over. */
  says: { failing: string; again: string };
  /**
   * The leader's work, over the session that holds the lock: say something at least every few seconds. `works` after each round that did. Ends
   * soon after `stopping` aborts, or by throwing; then somebody else may lead.
   */
  lead(session: Transaction, stopping: AbortSignal, works: () => void): Promise<void>;
}

export interface Leader {
  /** Waits for the round under way. */
  close(): Promise<void>;
}

/** How often the others look, and so about how long nobody leads after a leader's death, ms. */
const standbyMs = 1000;
/** A session that is silent for so long is ended by the server, ms. */
const silentMs = 10_000;

export function startLeader(options: LeaderOptions): Leader {
  const { pool, logger, says } = options;
  const stopping = new AbortController();
  const direct = openPool({
    url: options.directUrl,
    logger,
    max: 1,
    answerTimeoutMs: silentMs,
    applicationName: options.name,
  });
  let failing = false;

  async function run(): Promise<void> {
    while (!stopping.signal.aborted) {
      try {
        // An answer that comes late must not hold up the end.
        if (await unlessStopped(nobodyLeads(pool, options.lock), stopping.signal)) await lead();
      } catch (error) {
        if (!failing) logger.warn({ err: error }, says.failing);
        failing = true;
      }
      await delay(standbyMs * (0.8 + Math.random() * 0.4), undefined, { signal: stopping.signal }).catch(() => {});
    }
    await direct.end();
  }

  /** Until it is stopped or something fails. Returns at once when another was quicker. */
  async function lead(): Promise<void> {
    const session = await direct.connect();
    // The next statement says it too; without a listener it would end the process.
    session.on("error", () => {});
    try {
      if (!(await takeLead(session, options.lock))) return;
      await options.lead(session, stopping.signal, () => {
        if (failing) logger.info(says.again);
        failing = false;
      });
    } finally {
      // Ends the session, and with it the lock.
      session.release(true);
    }
  }

  const running = run();
  return {
    async close() {
      stopping.abort();
      await running;
    },
  };
}

/** What the work comes to, or undefined as soon as the signal aborts. */
function unlessStopped<T>(work: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const stop = () => resolve(undefined);
    signal.addEventListener("abort", stop);
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}

async function nobodyLeads(db: Queryable, lock: string): Promise<boolean> {
  const { rows } = await db.query<{ free: boolean }>("SELECT pg_try_advisory_xact_lock(hashtext($1)) AS free", [lock]);
  return rows[0]!.free;
}

async function takeLead(session: Transaction, lock: string): Promise<boolean> {
  await session.query(`SET idle_session_timeout = ${silentMs}; SET statement_timeout = ${silentMs}`);
  const { rows } = await session.query<{ leads: boolean }>("SELECT pg_try_advisory_lock(hashtext($1)) AS leads", [
    lock,
  ]);
  return rows[0]!.leads;
}
