/**
 * The text of a model's replies put together from two sources: pieces that come early but may be missing, late, of another try or already of the next
 * reply, each with its place, and the event at a reply's end, which has it whole. Pure: says what is to be printed, prints nothing.
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
  /** What came of it, from its beginning and without a gap. */
  #came = "";
  /** Of replies after it. */
  #later: Piece[] = [];

  get isShown(): boolean {
    return this.#shown !== "";
  }

  add(piece: Piece): void {
    if (piece.iteration > this.#ended + 1) this.#later.push(piece);
    // Another try begins anew; what comes after a gap is in the event at the end.
    else if (piece.iteration > this.#ended && piece.offset <= this.#came.length)
      this.#came = this.#came.slice(0, piece.offset) + piece.text;
  }

  /** What came since the last call, to be printed now; nothing while it is not what follows upon what was printed. */
  take(): string {
    const whole = this.#came.trimStart();
    if (!whole.startsWith(this.#shown)) return "";
    const text = whole.slice(this.#shown.length);
    this.#shown = whole;
    return text;
  }

  /**
   * The reply of turn `iteration` has ended with `text`. Returns what is left to print of it; `again` when what was printed is not its beginning
   * and it must be printed whole.
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
    this.#came = "";
  }
}
