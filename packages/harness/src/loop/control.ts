/**
 * What can end a run from outside: its clock, a cancel, a deploy, a lost ownership. One object per ownership of a run; the loop
 * asks it at every step boundary and hands its signals to whatever is in flight.
 */

/**
 * Why everything in flight was aborted. The first cause wins. `lost`: the run is another's now. `broken`: its log could not be
 * written, which the loop says by throwing.
 */
export type StopCause = "time_limit" | "deadline" | "cancelled" | "shutdown" | "lost" | "broken";

export interface ClockOptions {
  /** From now, in ms of active time. */
  softMs: number;
  hardMs: number;
  /** From now, in ms; the run's absolute deadline. */
  deadlineMs?: number;
}

/** The wrap-up turn's share of the time between soft and hard limit, and its most. */
const wrapUpReserve = { share: 0.5, mostMs: 30_000 };
const longestTimerMs = 2 ** 31 - 1;

export class RunControl {
  /** Aborted with a `StopCause`: hard limit, deadline, cancel, the end of a shutdown's grace, lost ownership. */
  readonly signal: AbortSignal;
  /** Aborted when only the wrap-up turn's reserve of time is left: model calls and tools in flight are cut. */
  readonly cut: AbortSignal;
  /** Which limit the clock stands for. */
  readonly limit: "time_limit" | "deadline";
  readonly #stop = new AbortController();
  readonly #cut = new AbortController();
  readonly #timers: NodeJS.Timeout[] = [];
  #soft = false;
  #draining = false;

  constructor(clock?: ClockOptions) {
    this.signal = this.#stop.signal;
    this.cut = this.#cut.signal;
    this.limit = clock?.deadlineMs !== undefined && clock.deadlineMs < clock.hardMs ? "deadline" : "time_limit";
    if (!clock) return;
    const ownHardMs = Math.min(clock.hardMs, longestTimerMs);
    const ownSoftMs = Math.min(clock.softMs, ownHardMs);
    const hardMs = Math.min(ownHardMs, clock.deadlineMs ?? Number.POSITIVE_INFINITY);
    // A deadline that comes first keeps the proportion of soft to hard.
    const softMs = Math.min(ownSoftMs, hardMs * Math.min(1, Math.max(0, ownSoftMs) / Math.max(1, ownHardMs)));
    const reserveMs = Math.min(wrapUpReserve.mostMs, (hardMs - softMs) * wrapUpReserve.share);
    this.#after(softMs, () => {
      this.#soft = true;
    });
    this.#after(hardMs - reserveMs, () => this.#cut.abort("time_limit"));
    this.#after(hardMs, () => this.stop(this.limit));
  }

  /** The soft limit has passed: no new tool call starts, the next model call is the wrap-up turn. */
  get softReached(): boolean {
    return this.#soft;
  }

  /** The process is stopping: hand the run over at the next step boundary. */
  get draining(): boolean {
    return this.#draining;
  }

  get cause(): StopCause | undefined {
    return this.signal.aborted ? (this.signal.reason as StopCause) : undefined;
  }

  stop(cause: StopCause): void {
    if (!this.signal.aborted) this.#stop.abort(cause);
    this.#cut.abort(cause);
  }

  drain(): void {
    this.#draining = true;
  }

  /** Frees the timers; call it when the run has left this process. */
  close(): void {
    for (const timer of this.#timers) clearTimeout(timer);
  }

  /** What is past already takes effect at once: a run claimed too late makes no model call. */
  #after(ms: number, then: () => void): void {
    if (ms <= 0) then();
    else this.#timers.push(setTimeout(then, ms).unref());
  }
}

/** Resolves after `ms`, or at once when the signal aborts; the listener does not outlive the wait. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, Math.min(ms, longestTimerMs));
    signal.addEventListener("abort", done);
  });
}
