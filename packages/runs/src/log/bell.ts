/** A bell for one listener. It remembers a ring that nobody was waiting for. */
export class Bell {
  readonly #signal: AbortSignal | undefined;
  #rung = false;
  #wake: () => void = () => {};

  /** `signal`: nobody waits any more once it aborts. */
  constructor(signal?: AbortSignal) {
    this.#signal = signal;
  }

  ring(): void {
    this.#rung = true;
    this.#wake();
  }

  /** Resolves at the next ring, at once when one was missed, after `ms`, or when the signal aborts. */
  async heard(ms: number): Promise<void> {
    if (!this.#rung && !this.#signal?.aborted) {
      const { promise, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, ms);
      this.#wake = resolve;
      const stop = () => resolve();
      this.#signal?.addEventListener("abort", stop);
      await promise;
      this.#signal?.removeEventListener("abort", stop);
      clearTimeout(timer);
    }
    this.#rung = false;
  }
}
