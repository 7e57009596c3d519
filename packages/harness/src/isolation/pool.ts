/**
 * The processes that tools run in, of one parent: started ahead where it is known that they are needed, as many as are asked for up to a bound,
 * replaced when they are ended, crash or have served long enough.
 */
import { availableParallelism } from "node:os";
import type { ToolLine } from "./lines.ts";
import { type Kind, ToolProcess } from "./tool-process.ts";

export interface IsolationOptions {
  /** Processes of all tools together at most; calls beyond that wait (default 4 for each core, at least 8). */
  processes?: number | undefined;
  /** Idle processes kept ready for each module (default 1). */
  warm?: number;
  /** Calls after which a process is replaced (default 500). */
  callsPerProcess?: number;
  /** How long a process beyond the warm ones may be idle, ms (default 30,000). */
  idleMs?: number;
  /** For the import of a tool's module, ms (default 30,000). */
  startTimeoutMs?: number;
  /** What a tool gets to clean up between its signal's abort and the end of its process, ms (default 200). */
  graceMs?: number;
  /** Gets what the processes write to standard output and standard error (default: it is dropped). */
  log?(line: ToolLine): void;
}

interface Waiter {
  kind: Kind;
  resolve(process: ToolProcess): void;
  reject(error: unknown): void;
}

/** Idle processes do not keep the parent from ending, and end with it. */
export class Isolation {
  readonly #options: Required<Omit<IsolationOptions, "log" | "processes">> & {
    processes: number;
    log?: IsolationOptions["log"];
  };
  readonly #kinds = new Map<string, Kind>();
  /** All that can still be given calls, now or later. */
  readonly #processes = new Set<ToolProcess>();
  readonly #starting = new Set<ToolProcess>();
  /** The one that was idle for the shortest time stands last. */
  readonly #idle = new Map<ToolProcess, NodeJS.Timeout>();
  /** What has been ended and may not be gone yet. */
  readonly #leaving = new Set<Promise<void>>();
  #waiting: Waiter[] = [];
  #closed = false;

  constructor(options: IsolationOptions = {}) {
    this.#options = {
      warm: 1,
      callsPerProcess: 500,
      idleMs: 30_000,
      startTimeoutMs: 30_000,
      graceMs: 200,
      ...options,
      processes: options.processes ?? Math.max(8, 4 * availableParallelism()),
    };
  }

  /** Processes that there are: starting, idle and at work. */
  get size(): number {
    return this.#processes.size;
  }

  /** The kind of process for these needs. The same object for the same needs. */
  kindOf(kind: Kind): Kind {
    const key = JSON.stringify([kind.module, kind.maxMemoryMb, [...kind.env].sort()]);
    const known = this.#kinds.get(key) ?? kind;
    this.#kinds.set(key, known);
    return known;
  }

  /** Starts the warm processes of every kind that is known. */
  warmUp(): void {
    for (const kind of this.#kinds.values()) this.#keepWarm(kind);
  }

  /** A process to be given calls until it is given back. Rejects with the signal's reason, or with why there can be none. */
  async take(kind: Kind, signal: AbortSignal): Promise<ToolProcess> {
    signal.throwIfAborted();
    if (this.#closed) throw new Error("this process is stopping");
    const { promise, resolve, reject } = Promise.withResolvers<ToolProcess>();
    const waiter: Waiter = { kind, resolve, reject };
    const abort = () => {
      this.#waiting = this.#waiting.filter((other) => other !== waiter);
      reject(signal.reason);
    };
    signal.addEventListener("abort", abort, { once: true });
    this.#waiting.push(waiter);
    this.#serve();
    try {
      return await promise;
    } finally {
      signal.removeEventListener("abort", abort);
    }
  }

  /** A process that is not needed any more. One that is still at work is ended. */
  giveBack(process: ToolProcess): void {
    if (!this.#processes.has(process)) return;
    if (process.isFree && process.calls < this.#options.callsPerProcess) this.#rest(process);
    else if (!process.isGivenUp) process.end();
  }

  /** Ends every process and resolves when they are gone, with all they started. Whoever waits for one is refused. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const { reject } of this.#waiting.splice(0)) reject(new Error("this process is stopping"));
    for (const process of [...this.#processes]) process.end();
    await Promise.all(this.#leaving);
  }

  /** Gives idle processes to those who wait, in their order, and starts what is missing. */
  #serve(): void {
    const coming = Map.groupBy(this.#starting, (process) => process.kind);
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const waiter of waiting) {
      const free = [...this.#idle.keys()].findLast((process) => process.kind === waiter.kind);
      if (free) {
        this.#rouse(free);
        waiter.resolve(free);
        continue;
      }
      this.#waiting.push(waiter);
      if (!coming.get(waiter.kind)?.pop() && this.#makeRoom()) this.#start(waiter.kind);
    }
  }

  /** Whether one more may be started; the process that was idle for longest goes for it. */
  #makeRoom(): boolean {
    if (this.#processes.size < this.#options.processes) return true;
    const [idle] = this.#idle.keys();
    if (idle) this.#dismiss(idle);
    return idle !== undefined;
  }

  #start(kind: Kind): void {
    const process = new ToolProcess(kind, { ...this.#options, onEnd: () => this.#ended(process) });
    this.#processes.add(process);
    this.#starting.add(process);
    const leaving = process.gone.finally(() => this.#leaving.delete(leaving));
    this.#leaving.add(leaving);
    process.ready.then(
      () => {
        this.#starting.delete(process);
        this.#rest(process);
      },
      (error: Error) => this.#refuse(kind, error),
    );
  }

  /** A module that cannot be imported once is not imported once more for each of those who wait. */
  #refuse(kind: Kind, error: Error): void {
    const [refused, others] = [true, false].map((own) =>
      this.#waiting.filter((waiter) => (waiter.kind === kind) === own),
    );
    this.#waiting = others!;
    for (const { reject } of refused!) reject(new Error(`The tool's process could not be started: ${error.message}.`));
    this.#serve();
  }

  #rest(process: ToolProcess): void {
    if (!process.isFree) return;
    process.holdsParent = false;
    const tooLong = setTimeout(() => {
      if (this.#readyOf(process.kind) > this.#options.warm) this.#dismiss(process);
    }, this.#options.idleMs).unref();
    this.#idle.set(process, tooLong);
    this.#serve();
  }

  #rouse(process: ToolProcess): void {
    clearTimeout(this.#idle.get(process));
    this.#idle.delete(process);
    process.holdsParent = true;
  }

  /** Ends an idle process that is not to be replaced. */
  #dismiss(process: ToolProcess): void {
    this.#rouse(process);
    this.#processes.delete(process);
    process.end();
  }

  #ended(process: ToolProcess): void {
    this.#rouse(process);
    const wasStarting = this.#starting.delete(process);
    // Those who wait for one that did not start are told why, before another is started.
    if (!this.#processes.delete(process) || this.#closed || wasStarting) return;
    this.#serve();
    // One that ends without ever having served would be started for ever.
    if (process.calls > 0) this.#keepWarm(process.kind);
  }

  #keepWarm(kind: Kind): void {
    const { warm, processes } = this.#options;
    while (this.#readyOf(kind) < warm && this.#processes.size < processes) this.#start(kind);
  }

  /** Processes of a kind that are idle or about to be. */
  #readyOf(kind: Kind): number {
    return [...this.#idle.keys(), ...this.#starting].filter((process) => process.kind === kind).length;
  }
}

let shared: Isolation | undefined;

/** The one of a process that makes none of its own; never closed. */
export function sharedIsolation(): Isolation {
  shared ??= new Isolation();
  return shared;
}
