/**
 * What the main loop and its liveness thread share without a message: the last confirmed heartbeat, the main loop's pulse, and which
 * tool it entered last. Plain memory, so that the thread can read it while the main loop is stuck.
 */

interface Call {
  runId: string;
  tool: string;
}

const encoder = new TextEncoder();
const layout = { times: 0, length: 16, text: 20, bytes: 512 };

export class LivenessMemory {
  /** Hand it to the thread. */
  readonly buffer: SharedArrayBuffer;
  readonly #times: BigInt64Array;
  readonly #length: Int32Array;
  readonly #text: Uint8Array;
  /** In the order they were entered. */
  readonly #underWay = new Set<Call>();
  #written: Call | undefined;

  constructor(buffer = new SharedArrayBuffer(layout.bytes)) {
    this.buffer = buffer;
    this.#times = new BigInt64Array(buffer, layout.times, 2);
    this.#length = new Int32Array(buffer, layout.length, 1);
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
    const call = { runId, tool };
    this.#underWay.add(call);
    this.#write(call);
    return () => {
      this.#underWay.delete(call);
      if (call !== this.#written) return;
      let last: Call | undefined;
      for (const other of this.#underWay) last = other;
      this.#write(last);
    };
  }

  #write(call: Call | undefined): void {
    this.#written = call;
    const { written } = call ? encoder.encodeInto(`${call.runId} ${call.tool}`, this.#text) : { written: 0 };
    Atomics.store(this.#length, 0, written);
  }

  /** Thread: the call entered last among those under way. */
  lastEntered(): Call | undefined {
    const length = Atomics.load(this.#length, 0);
    if (length === 0) return;
    const text = new TextDecoder().decode(this.#text.slice(0, length));
    const space = text.indexOf(" ");
    return { runId: text.slice(0, space), tool: text.slice(space + 1) };
  }
}
