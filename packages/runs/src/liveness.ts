/**
 * The main loop's side of liveness: who this worker is, how fresh its last confirmed heartbeat is, and what the others want of it.
 * A worker without its liveness connection claims nothing and starts no effect; running steps go on.
 */
import { EventEmitter, once } from "node:events";
import { hostname } from "node:os";
import { Worker } from "node:worker_threads";
import type { Logger } from "@drover/telemetry";

export interface ThreadData {
  url: string;
  leaseMs: number;
  slots: number;
  host: string;
  pid: number;
  /** One BigInt64: `process.hrtime.bigint()` when the last confirmed heartbeat was sent. */
  confirmed: SharedArrayBuffer;
}

export type ToThread = "stop";
export type FromThread =
  | { type: "registered"; id: string }
  /** `owned`: "<run id> <epoch>" of every run the database says is this worker's, as of `sentAt`. */
  | { type: "beat"; sentAt: bigint; owned: string[]; cancelled: string[] }
  | { type: "cancel"; runIds: string[] }
  | { type: "dead"; id: string }
  | { type: "down"; reason: string };

export interface LivenessOptions {
  /** A direct connection: LISTEN does not pass a transaction pooler. */
  directUrl: string;
  leaseMs: number;
  slots: number;
  logger: Logger;
  onBeat(sentAt: bigint, owned: Set<string>): void;
  onCancel(runIds: string[]): void;
  /** The connection is gone, or back. */
  onHealth(healthy: boolean): void;
  /** This worker was declared dead: nothing it held is its own any more. */
  onDead(): void;
}

export interface Liveness {
  /** This worker's id; a new one after it was declared dead. */
  readonly workerId: string;
  readonly healthy: boolean;
  /**
   * Resolves once the last confirmed heartbeat is younger than half the lease: at once, as a rule. Later, somebody may be taking
   * over already; the wait ends with the next heartbeat, or with `signal`, which aborts when the run is lost.
   */
  whenFresh(signal: AbortSignal): Promise<void>;
  /** Removes the worker's row and ends the thread. */
  close(): Promise<void>;
}

/** Starts the thread; resolves when the worker is registered. Rejects when that takes longer than 30 s. */
export async function startLiveness(options: LivenessOptions): Promise<Liveness> {
  const confirmed = new SharedArrayBuffer(8);
  const view = new BigInt64Array(confirmed);
  const data: ThreadData = {
    url: options.directUrl,
    leaseMs: options.leaseMs,
    slots: options.slots,
    host: hostname(),
    pid: process.pid,
    confirmed,
  };
  const thread = new Worker(new URL("./liveness-thread.ts", import.meta.url), { workerData: data });
  const halfLease = BigInt(Math.round(options.leaseMs * 1e6)) / 2n;
  const beats = new EventEmitter().setMaxListeners(0);
  let workerId = "";
  let healthy = false;
  let stopped = false;
  const registered = Promise.withResolvers<void>();
  const ended = Promise.withResolvers<void>();
  const timer = setTimeout(
    () => registered.reject(new Error("the worker could not register with Postgres within 30 s")),
    30_000,
  );

  function setHealth(now: boolean): void {
    if (healthy === now) return;
    healthy = now;
    options.onHealth(now);
  }

  thread.on("message", (message: FromThread) => {
    switch (message.type) {
      case "registered":
        workerId = message.id;
        clearTimeout(timer);
        registered.resolve();
        break;
      case "beat":
        setHealth(true);
        beats.emit("beat");
        if (message.cancelled.length > 0) options.onCancel(message.cancelled);
        options.onBeat(message.sentAt, new Set(message.owned));
        break;
      case "cancel":
        options.onCancel(message.runIds);
        break;
      case "dead":
        options.logger.warn({ worker: message.id }, "declared dead while away; starting anew");
        options.onDead();
        break;
      case "down":
        options.logger.warn({ reason: message.reason }, "liveness connection lost");
        setHealth(false);
        break;
    }
  });
  thread.on("error", (error) => {
    options.logger.error({ err: error }, "liveness thread failed");
    registered.reject(error);
  });
  thread.on("exit", () => {
    ended.resolve();
    // Without it this worker would be declared dead and never know: better to end and be started anew.
    if (!stopped) {
      options.logger.fatal("liveness thread ended");
      process.kill(process.pid, "SIGTERM");
    }
  });

  try {
    await registered.promise;
  } catch (error) {
    stopped = true;
    await thread.terminate();
    throw error;
  }
  return {
    get workerId() {
      return workerId;
    },
    get healthy() {
      return healthy;
    },
    async whenFresh(signal) {
      while (!signal.aborted && process.hrtime.bigint() - Atomics.load(view, 0) > halfLease)
        await once(beats, "beat", { signal }).catch(() => {});
    },
    async close() {
      stopped = true;
      thread.postMessage("stop" satisfies ToThread);
      const giveUp = setTimeout(() => void thread.terminate(), 2000);
      await ended.promise;
      clearTimeout(giveUp);
    },
  };
}
