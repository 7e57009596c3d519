/**
 * Gives what was committed its order across runs: messages their number in the feed, audit entries their place in the chain. Of all worker
 * processes one leads, and works over the session that holds its lock: without the lock there is no connection to write over. Every batch is
 * one statement, so a crash anywhere leaves all of it or nothing.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Signals } from "@drover/queue";
import type { Pool } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { chainBatch } from "../audit/chain.ts";
import { CheckpointWriter, type SigningOptions } from "../audit/checkpoints.ts";
import { type Leader, startLeader } from "../liveness/leader.ts";
import { Bell } from "../log/bell.ts";
import { feedTopic, numberBatch } from "./feed.ts";
import { firstId, peek } from "./inbox.ts";
import { orderBell } from "./ring.ts";

export interface SequencerOptions {
  /** To look whether anybody leads. */
  pool: Pool;
  /** Must not be a transaction pooler: the lock belongs to the session. */
  directUrl: string;
  logger: Logger;
  /** Tells those who wait for a tenant's feed, which look every two seconds without it, and wakes a leader that idles. */
  signals?: Pick<Signals, "news" | "onRing">;
  /** Signs checkpoints of the audit trail when given. */
  signing?: SigningOptions;
}

export type Sequencer = Leader;

/** The leader's pause between two looks at the inboxes: what is committed has its number within 100 ms; and once nothing was found or rung for a while. */
const pauseMs = { busy: 50, idle: 1000 };
const busyMs = 2000;
/** A full look is made once in so many ms, or a tenth of the time. */
const fullLookMs = { busy: 500, idle: 10_000 };

export function startSequencer({ pool, directUrl, logger, signals, signing }: SequencerOptions): Sequencer {
  return startLeader({
    pool,
    directUrl,
    logger,
    // Older than the feed: processes of both versions must keep off each other.
    lock: "drover.audit",
    name: "drover-sequencer",
    says: {
      failing: "messages and audit entries cannot be numbered for now",
      again: "messages and audit entries are numbered again",
    },
    async lead(session, stopping, works) {
      // Rows by key, whatever the statistics say: those of an inbox that fills and empties are always wrong.
      await session.query(
        "SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off",
      );
      const checkpoints = signing && (await CheckpointWriter.open(session, signing));
      // No checkpoint may come much later than it should.
      const idleLookMs = Math.min(
        fullLookMs.idle,
        Math.max(fullLookMs.busy, (signing?.withinMs ?? fullLookMs.idle) / 4),
      );
      const bell = new Bell(stopping);
      let busyUntil = performance.now() + busyMs;
      const stayAwake = () => {
        busyUntil = performance.now() + busyMs;
        bell.ring();
      };
      const unlisten = signals?.onRing(orderBell, stayAwake);
      let fullLookAt = 0;
      try {
        // A leader that is told to stop looks once more: nobody may come after it for a while.
        for (let last = false; ; last = stopping.aborted) {
          const startedAt = performance.now();
          const isFull = startedAt >= fullLookAt;
          const from = isFull ? firstId : null;
          const { messages, entries } = isFull ? { messages: true, entries: true } : await peek(session);
          if (!isFull && (messages || entries)) busyUntil = startedAt + busyMs;
          if (messages)
            await wholeInbox(from, async (after) => {
              const { tenants, next } = await numberBatch(session, after);
              for (const tenant of tenants) signals?.news(feedTopic(tenant));
              return next;
            });
          if (entries) await wholeInbox(from, (after) => chainBatch(session, after, checkpoints));
          const now = performance.now();
          const pace = now < busyUntil ? "busy" : "idle";
          if (isFull)
            fullLookAt = now + Math.max(pace === "busy" ? fullLookMs.busy : idleLookMs, 10 * (now - startedAt));
          works();
          if (last) return;
          // A ring is answered at once while it idles, and otherwise in its turn.
          if (pace === "idle") await bell.heard(pauseMs.idle);
          else await delay(pauseMs.busy, undefined, { signal: stopping }).catch(() => {});
        }
      } finally {
        unlisten?.();
      }
    },
  });
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
