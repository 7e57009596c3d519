/**
 * The main loop's side of liveness: who this worker is, how fresh its last confirmed heartbeat is, and what the others want of it.
 * A worker without its liveness connection claims nothing and starts no effect; running steps go on.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { EventEmitter, once } from "node:events";
import { hostname } from "node:os";
import { Worker } from "node:worker_threads";
import type { Pool } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import type { Known } from "../moves/claim.ts";
import type { Held, Lost } from "./beat.ts";
import { workersLock } from "./lock.ts";
import { type Inside, insideName, LivenessMemory } from "./shared.ts";

export interface ThreadData {
  url: string;
  leaseMs: number;
  /** The process is ended when its main loop has not come round for so long; undefined: never. */
  watchdogMs: number | undefined;
  slots: number;
  host: string;
  pid: number;
  known: Known | undefined;
  /** See `LivenessMemory`. */
  memory: SharedArrayBuffer;
}

/** A worker that was declared dead here. `crashed`: its lock is gone; `silent`: it has not been heard of for a lease. */
export interface Death {
  id: string;
  host: string;
  pid: number;
  cause: "crashed" | "silent";
}

export type ToThread = "stop" | Held;
export type FromThread =
  | { type: "registered"; id: string }
  /** Of the runs it asked about: `lost` are not this worker's any more, for `cancelled` a cancel was asked. */
  | { type: "beat"; lost: Lost[]; cancelled: string[] }
  | { type: "cancel"; runIds: string[] }
  | { type: "dead"; id: string }
  | { type: "deaths"; deaths: Death[] }
  | { type: "down"; reason: string }
  /** This connection string will never do. */
  | { type: "unusable"; reason: string };

export interface LivenessOptions {
  /** A direct connection: LISTEN and locks do not pass a transaction pooler. */
  directUrl: string;
  /** Where runs are claimed: the worker must see its own lock from there. */
  pool: Pool;
  leaseMs: number;
  /** End the process when its main loop is stuck for half a lease, at most 5 s; not for a process that is somebody else's too. */
  watchdog: boolean;
  slots: number;
  /** What this worker can carry; undefined: everything. */
  known?: Known | undefined;
  logger: Logger;
  /** A heartbeat was confirmed; `lost` are not this worker's any more. Returns what the next one should ask about. */
  onBeat(lost: Lost[]): Held;
  onCancel(runIds: string[]): void;
  /** The connection is gone, or back. */
  onHealth(healthy: boolean): void;
  /** This worker was declared dead: nothing it held is its own any more. */
  onDead(): void;
  /** Others were: their runs are free. */
  onDeaths(deaths: Death[]): void;
}

export interface Liveness {
  /** This worker's id; a new one after it was declared dead. */
  readonly workerId: string;
  readonly healthy: boolean;
  /**
   * Resolves once the liveness connection is up and the last confirmed heartbeat younger than half the lease: at once, as a rule. Later,
   * somebody may be taking over already; the wait ends with the next heartbeat, or with `signal`, which aborts when the run is lost.
   */
  whenFresh(signal: AbortSignal): Promise<void>;
  /** Does some of a run's work, of a tool when one is named: should the loop get stuck in it, it is known who is to blame. */
  inside<T>(of: Inside, work: () => Promise<T>): Promise<T>;
  /** Removes the worker's row and ends the thread. */
  close(): Promise<void>;
}

const insides = new AsyncLocalStorage<Inside>();
Object.defineProperty(globalThis, Symbol.for(insideName), { value: insides, configurable: true });

/** The watchdog's limit is shorter than the lease: the process ends before anybody takes it for dead. */
const watchdogOf = (leaseMs: number): number => Math.min(5000, leaseMs / 2);

/**
 * Starts the thread; resolves when the worker is registered and sees its own lock. Rejects when that takes longer than 30 s, and when locks
 * cannot be seen.
 */
export async function startLiveness(options: LivenessOptions): Promise<Liveness> {
  const memory = new LivenessMemory();
  const watchdogMs = options.watchdog ? watchdogOf(options.leaseMs) : undefined;
  const data: ThreadData = {
    url: options.directUrl,
    leaseMs: options.leaseMs,
    watchdogMs,
    slots: options.slots,
    host: hostname(),
    pid: process.pid,
    known: options.known,
    memory: memory.buffer,
  };
  memory.beatPulse();
  const pulse = watchdogMs === undefined ? undefined : setInterval(() => memory.beatPulse(), watchdogMs / 25).unref();
  const thread = new Worker(new URL("./thread.ts", import.meta.url), { workerData: data });
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
        thread.postMessage(options.onBeat(message.lost) satisfies ToThread);
        break;
      case "cancel":
        options.onCancel(message.runIds);
        break;
      case "dead":
        options.logger.warn({ worker: message.id }, "declared dead while away; starting anew");
        options.onDead();
        break;
      case "deaths":
        for (const { pid, ...death } of message.deaths)
          options.logger.warn({ ...death, workerPid: pid }, "worker declared dead");
        options.onDeaths(message.deaths);
        break;
      case "down":
        options.logger.warn({ reason: message.reason }, "liveness connection lost");
        setHealth(false);
        break;
      case "unusable":
        registered.reject(new Error(message.reason));
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

  async function close(): Promise<void> {
    stopped = true;
    clearTimeout(timer);
    thread.postMessage("stop" satisfies ToThread);
    const giveUp = setTimeout(() => void thread.terminate(), 2000);
    await ended.promise;
    clearTimeout(giveUp);
    clearInterval(pulse);
  }

  try {
    await registered.promise;
    await requireOwnLock(options.pool, workerId);
  } catch (error) {
    await close();
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
      while (!signal.aborted && (!healthy || process.hrtime.bigint() - memory.confirmed > halfLease))
        await once(beats, "beat", { signal }).catch(() => {});
    },
    async inside(of, work) {
      const leave = of.tool === undefined ? undefined : memory.enter(of.runId, of.tool);
      try {
        return await insides.run(of, work);
      } finally {
        leave?.();
      }
    },
    close,
  };
}

/** Where the others look for this worker's lock, it must be found. */
async function requireOwnLock(pool: Pool, workerId: string): Promise<void> {
  const { rowCount } = await pool.query(
    `SELECT FROM workers w WHERE w.id = $1 AND EXISTS (SELECT FROM ${workersLock("l")} AND l.objid::bigint = w.lock_id)`,
    [workerId],
  );
  if (rowCount === 0)
    throw new Error(
      "this worker cannot see its own liveness lock over DATABASE_URL: DATABASE_DIRECT_URL must lead to the same database on the same server, as a role whose locks can be seen",
    );
}
