/**
 * Following a run: the log is read after every signal, and every two seconds without one, so a lost signal costs time and never an
 * event. Used by the live stream, by long-polling, and by synchronous submits.
 */
import type { LogEvent } from "@drover/harness";
import type { Follower, Signals } from "@drover/queue";
import type { Blobs, Queryable } from "@drover/storage";
import { isFinal, type Status } from "../moves/state.ts";
import { Bell } from "./bell.ts";
import { readLog } from "./events.ts";

const pollMs = 2000;
const pageSize = 500;
const finalTypes = new Set(["run.completed", "run.partial", "run.failed", "run.cancelled"]);

export interface FollowOptions {
  db: Queryable;
  blobs: Blobs;
  signals: Signals;
  tenant: string;
  runId: string;
  /** Last seq already seen; 0 for the whole log. */
  after: number;
  /** Ends the following. */
  signal: AbortSignal;
  /** Text as it streams, best effort; `epoch` tells one owner's text from the next one's. */
  onDelta?: NonNullable<Follower["delta"]>;
}

/** The events after `after`, gap-free and each once, until the final one or `signal`. */
export async function* followLog(options: FollowOptions): AsyncGenerator<LogEvent, void, void> {
  const { db, blobs, tenant, runId, signal } = options;
  const bell = new Bell(signal);
  const unfollow = options.signals.follow(runId, {
    news: () => bell.ring(),
    ...(options.onDelta && { delta: options.onDelta }),
  });
  try {
    let after = options.after;
    while (!signal.aborted) {
      const events = await readLog(db, blobs, { tenant, runId, after, limit: pageSize });
      for (const event of events) {
        yield event;
        after = event.seq;
        if (finalTypes.has(event.type)) return;
      }
      if (events.length < pageSize) await bell.heard(pollMs);
    }
  } finally {
    unfollow();
  }
}

/** Resolves when `changed(status, lastSeq)` holds for the run, at the latest after `waitMs`. Of no run: at once. */
export async function waitForRun(
  options: Omit<FollowOptions, "after" | "onDelta"> & { waitMs: number },
  changed: (run: { status: Status; lastSeq: number }) => boolean = (run) => isFinal(run.status),
): Promise<void> {
  const over = AbortSignal.timeout(Math.ceil(options.waitMs));
  const bell = new Bell(AbortSignal.any([options.signal, over]));
  const unfollow = options.signals.follow(options.runId, { news: () => bell.ring() });
  try {
    while (!over.aborted && !options.signal.aborted) {
      const { rows } = await options.db.query<{ status: Status; last_seq: number }>(
        "SELECT status, last_seq FROM runs WHERE tenant = $1 AND id = $2",
        [options.tenant, options.runId],
      );
      const row = rows[0];
      if (!row || changed({ status: row.status, lastSeq: row.last_seq })) return;
      await bell.heard(pollMs);
    }
  } finally {
    unfollow();
  }
}
