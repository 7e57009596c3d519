/** From where a look at what has become due begins: what is longer ago is over, and read by nobody. */
import type { Lately } from "../moves/wake.ts";

/**
 * Each look begins where the last one began that saw everything, and a little before: a statement that makes something due may take so long. One
 * that did not see everything, or failed, is made again from the same place. The first one is at everything.
 */
export class Lookback {
  readonly #slackMs: number;
  readonly #seenAt = new Map<string, number>();

  constructor(slackMs: number) {
    this.#slackMs = slackMs;
  }

  /** `look` gets how far it looks back, and answers whether it saw all there was. Resolves with that. */
  async look(what: string, look: (lately: Lately) => Promise<boolean>): Promise<boolean> {
    const startedAt = performance.now();
    const before = this.#seenAt.get(what);
    const all = await look(before === undefined ? null : startedAt - before + this.#slackMs);
    if (all) this.#seenAt.set(what, startedAt);
    return all;
  }

  /** The next look of each kind is at everything. */
  forget(): void {
    this.#seenAt.clear();
  }
}
