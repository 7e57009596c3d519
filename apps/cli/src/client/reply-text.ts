/**
 * The text of a model's replies put together from two sources: pieces that come early but may be missing, late or already of the next
 * reply, and the event at a reply's end, which has it whole. Pure: says what is to be printed, prints nothing.
 */
export class ReplyText {
  /** Printed of the reply under way. */
  #shown = "";
  /** Came, and is not printed yet. */
  #held = "";
  /** Of the reply that ended last: what may still come as pieces. */
  #late = "";

  get isEmpty(): boolean {
    return this.#shown === "" && this.#held === "";
  }

  get isShown(): boolean {
    return this.#shown !== "";
  }

  add(piece: string): void {
    const known = this.#late.startsWith(piece) ? piece : piece.startsWith(this.#late) ? this.#late : "";
    this.#late = this.#late.slice(known.length);
    const news = piece.slice(known.length);
    if (news === "") return;
    this.#late = "";
    this.#held += this.isEmpty ? news.trimStart() : news;
  }

  /** What came since the last call, to be printed now. */
  take(): string {
    const text = this.#held;
    this.#shown += text;
    this.#held = "";
    return text;
  }

  /**
   * The reply has ended with `text`. Returns what is left to print of it; `again` when what was printed is not its beginning and it
   * must be printed whole.
   */
  end(text: string): { rest: string; again: boolean } {
    const whole = text.trimStart();
    const came = this.#shown + this.#held;
    const again = !whole.startsWith(this.#shown);
    const rest = again ? whole : whole.slice(this.#shown.length);
    this.#shown = "";
    const at = whole.indexOf(came);
    if (at >= 0) {
      this.#late = came === "" ? whole : whole.slice(at + came.length);
      this.#held = "";
    } else {
      // The end of this reply, and the beginning of the next.
      let shared = Math.min(came.length, whole.length);
      while (!whole.endsWith(came.slice(0, shared))) shared--;
      this.#late = "";
      this.#held = came.slice(shared).trimStart();
    }
    return { rest, again };
  }

  /** Whoever wrote it is gone: the next piece begins anew. */
  drop(): void {
    this.#shown = "";
    this.#held = "";
    this.#late = "";
  }
}
