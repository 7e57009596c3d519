/**
 * Gives what was committed its order across runs: messages their number in the feed, audit entries their place in the chain. It runs in
 * every worker process; one of them leads, the one whose session holds the advisory lock, and works over that same session: without the
 * lock there is no connection to write over. Every batch is one statement, so a crash anywhere leaves all of it or nothing.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Signals } from "@drover/queue";
import { openPool, type Pool, type Queryable, type Transaction } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { chainBatch } from "./audit/chain.ts";
import { CheckpointWriter, type SigningOptions } from "./audit/checkpoints.ts";
import { feedTopic, numberBatch } from "./feed.ts";
import { firstId } from "./inbox.ts";

export interface SequencerOptions {
  /** To look whether anybody leads. */
  pool: Pool;
  /** Must not be a transaction pooler: the lock belongs to the session. */
  directUrl: string;
  logger: Logger;
  /** Tells those who wait for a tenant's feed; without it they look every two seconds. */
  signals?: Pick<Signals, "news">;
  /** Signs checkpoints of the audit trail when given. */
  signing?: SigningOptions;
}

export interface Sequencer {
  /** Waits for the pass under way. */
  close(): Promise<void>;
}

/** The leader's pause between two looks at the inboxes: what is committed has its number within 100 ms. */
const idleMs = 50;
/** How often the others look, and so about how long nobody leads after a leader's death. */
const standbyMs = 1000;
/** A full look is made once in so many ms, or a tenth of the time. */
const fullLookMs = 500;
/** A leader that is silent for so long, stopped or cut off, is ended by the server, which frees the lock. */
const silentMs = 10_000;

export function startSequencer(options: SequencerOptions): Sequencer {
  const { pool, logger, signals } = options;
  const stopping = new AbortController();
  const pause = (ms: number) => delay(ms, undefined, { signal: stopping.signal }).catch(() => {});
  const direct = openPool({
    url: options.directUrl,
    logger,
    max: 1,
    answerTimeoutMs: silentMs,
    applicationName: "drover-sequencer",
  });
  let failing = false;

  async function run(): Promise<void> {
    while (!stopping.signal.aborted) {
      try {
        // An answer that comes late must not hold up the end.
        if (await unlessStopped(nobodyLeads(pool), stopping.signal)) await lead();
      } catch (error) {
        if (!failing) logger.warn({ err: error }, "messages and audit entries cannot be numbered for now");
        failing = true;
      }
      await pause(standbyMs * (0.8 + Math.random() * 0.4));
    }
    await direct.end();
  }

  /** Until it is stopped or something fails. Returns at once when another was quicker. */
  async function lead(): Promise<void> {
    const client = await direct.connect();
    // The next statement says it too; without a listener it would end the process.
    client.on("error", () => {});
    try {
      if (!(await takeLead(client))) return;
      const checkpoints = options.signing && (await CheckpointWriter.open(client, options.signing));
      let fullLookAt = 0;
      // A leader that is told to stop looks once more: nobody may come after it for a while.
      for (let last = false; ; last = stopping.signal.aborted) {
        const startedAt = performance.now();
        const isFull = startedAt >= fullLookAt;
        const from = isFull ? firstId : null;
        await wholeInbox(from, async (after) => {
          const { tenants, next } = await numberBatch(client, after);
          for (const tenant of tenants) signals?.news(feedTopic(tenant));
          return next;
        });
        await wholeInbox(from, (after) => chainBatch(client, after, checkpoints));
        if (isFull) fullLookAt = performance.now() + Math.max(fullLookMs, 10 * (performance.now() - startedAt));
        if (failing) logger.info("messages and audit entries are numbered again");
        failing = false;
        if (last) return;
        await pause(idleMs);
      }
    } finally {
      // Ends the session, and with it the lock.
      client.release(true);
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

/** Batch after batch, each beginning after what the one before returned, until one returns null. */
async function wholeInbox(
  from: string | null,
  takeBatch: (after: string | null) => Promise<string | null>,
): Promise<void> {
  let after = from;
  do after = await takeBatch(after);
  while (after !== null);
}

/** What the work comes to, or undefined as soon as the signal aborts. */
function unlessStopped<T>(work: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const stop = () => resolve(undefined);
    signal.addEventListener("abort", stop);
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}

/** Its name is older than the feed: processes of both versions must keep off each other. */
const lock = "hashtext('drover.audit')";

async function nobodyLeads(db: Queryable): Promise<boolean> {
  const { rows } = await db.query<{ free: boolean }>(`SELECT pg_try_advisory_xact_lock(${lock}) AS free`);
  return rows[0]!.free;
}

async function takeLead(client: Transaction): Promise<boolean> {
  // Rows by key, whatever the statistics say: those of an inbox that fills and empties are always wrong.
  await client.query(
    `SET idle_session_timeout = ${silentMs}; SET statement_timeout = ${silentMs}; SET enable_seqscan = off;
     SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off`,
  );
  const { rows } = await client.query<{ leads: boolean }>(`SELECT pg_try_advisory_lock(${lock}) AS leads`);
  return rows[0]!.leads;
}
