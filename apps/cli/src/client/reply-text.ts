/**
 * The text of a model's replies put together from two sources: pieces that come early but may be missing, late, of another
 * try or already of the next reply, each with its place, and the event at a reply's end, which has it whole. Pure: says what is to be
 * printed, prints nothing. Each piece costs its own length, however long the reply is.
 */

/** A piece of the reply of turn `iteration`, which begins `offset` UTF-16 units into it. */
export interface Piece {
  iteration: number;
  offset: number;
  text: string;
}

export class ReplyText {
  /** The turn whose reply ended last. */
  #ended = 0;
  /** Printed of the reply under way. */
  #shown = "";
  /** Came, and is not printed yet. */
  #held = "";
  /** Units that came of it, from its beginning and without a gap. */
  #length = 0;
  /** What is printed is of an earlier try: the rest waits for the end. */
  #overtaken = false;
  /** Of replies after it. */
  #later: Piece[] = [];

  get isShown(): boolean {
    return this.#shown !== "";
  }

  add(piece: Piece): void {
    const { iteration, offset, text } = piece;
    if (iteration > this.#ended + 1) this.#later.push(piece);
    if (iteration !== this.#ended + 1 || this.#overtaken) return;
    if (offset < this.#length) {
      // Another try begins anew.
      this.#overtaken = this.isShown;
      this.#held = "";
      this.#length = 0;
    }
    // What comes after a gap is in the event at the end.
    if (offset !== this.#length || this.#overtaken) return;
    this.#held += this.#shown === "" && this.#held === "" ? text.trimStart() : text;
    this.#length += text.length;
  }

  /** What came since the last call, to be printed now. */
  take(): string {
    const text = this.#held;
    this.#shown += text;
    this.#held = "";
    return text;
  }

  /**
   * The reply of turn `iteration` has ended with `text`. Returns what is left to print of it; `again` when what was printed is not its
   * beginning and it must be printed whole.
   */
  end(iteration: number, text: string): { rest: string; again: boolean } {
    const whole = text.trimStart();
    const again = !whole.startsWith(this.#shown);
    const rest = again ? whole : whole.slice(this.#shown.length);
    this.drop();
    this.#ended = iteration;
    for (const piece of this.#later.splice(0)) this.add(piece);
    return { rest, again };
  }

  /** The reply under way was broken off: its next piece begins anew. */
  drop(): void {
    this.#shown = "";
    this.#held = "";
    this.#length = 0;
    this.#overtaken = false;
  }
}
