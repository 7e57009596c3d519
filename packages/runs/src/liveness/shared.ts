/**
 * What the main loop and its liveness thread share without a message: the last confirmed heartbeat, the main loop's pulse, and which
 * tool it entered last. Plain memory, so that the thread can read it while the main loop is stuck.
 */

/** A run's code that is under way: a call of a tool, or something else of the run. */
export interface Inside {
  runId: string;
  tool?: string;
}

/** Where an inspector finds whose code is running: `AsyncLocalStorage<Inside>` under this name of `globalThis`. */
export const insideName = "drover.inside";

interface Call {
  runId: string;
  tool: string;
  at: bigint;
}

const encoder = new TextEncoder();
const layout = { times: 0, numbers: 24, text: 32, bytes: 512 };

export class LivenessMemory {
  /** Hand it to the thread. */
  readonly buffer: SharedArrayBuffer;
  readonly #times: BigInt64Array;
  /** How many calls are under way, and the length of the text about the one entered last. */
  readonly #numbers: Int32Array;
  readonly #text: Uint8Array;
  /** In the order they were entered. */
  readonly #underWay = new Set<Call>();
  #written: Call | undefined;

  constructor(buffer = new SharedArrayBuffer(layout.bytes)) {
    this.buffer = buffer;
    this.#times = new BigInt64Array(buffer, layout.times, 3);
    this.#numbers = new Int32Array(buffer, layout.numbers, 2);
    this.#text = new Uint8Array(buffer, layout.text);
  }

  /** `process.hrtime.bigint()` when the last confirmed heartbeat was sent. */
  get confirmed(): bigint {
    return Atomics.load(this.#times, 0);
  }
  set confirmed(at: bigint) {
    Atomics.store(this.#times, 0, at);
  }

  /** `process.hrtime.bigint()` when the main loop last came round. */
  get pulse(): bigint {
    return Atomics.load(this.#times, 1);
  }
  beatPulse(): void {
    Atomics.store(this.#times, 1, process.hrtime.bigint());
  }

  /** Main loop: a tool's code is about to run. Returns what to call when the call is over. */
  enter(runId: string, tool: string): () => void {
    const call = { runId, tool, at: process.hrtime.bigint() };
    this.#underWay.add(call);
    this.#write(call);
    return () => {
      this.#underWay.delete(call);
      let last = this.#written;
      if (call === last) {
        last = undefined;
        for (const other of this.#underWay) last = other;
      }
      this.#write(last);
    };
  }

  #write(call: Call | undefined): void {
    Atomics.store(this.#numbers, 0, this.#underWay.size);
    if (call === this.#written) return;
    this.#written = call;
    const { written } = call ? encoder.encodeInto(`${call.runId} ${call.tool}`, this.#text) : { written: 0 };
    Atomics.store(this.#times, 2, call?.at ?? 0n);
    Atomics.store(this.#numbers, 1, written);
  }

  /**
   * Thread, while the main loop is stuck: the call that must be it. It was entered since the loop last came round, or it is the only one under
   * way; undefined when it may have been another.
   */
  stuckIn(): Inside | undefined {
    const length = Atomics.load(this.#numbers, 1);
    const isOnly = Atomics.load(this.#numbers, 0) === 1;
    if (length === 0 || !(isOnly || Atomics.load(this.#times, 2) >= this.pulse)) return;
    const text = new TextDecoder().decode(this.#text.slice(0, length));
    const space = text.indexOf(" ");
    return { runId: text.slice(0, space), tool: text.slice(space + 1) };
  }
}
