/**
 * How many requests one process has under way, in all and to each destination. A destination whose last try failed gets one
 * request at a time until one succeeds, and all that fail together get half of the places: so a dead receiver holds one place for its 15
 * seconds, not eight, and however many are dead, the others go on.
 */

/** What a claim may take. */
export interface Limits {
  /** Of all destinations together. */
  most: number;
  perDestination: number;
  /** Destinations with less room than `perDestination`, 0 among them. */
  rooms: ReadonlyMap<string, number>;
  /** Destinations that fail, and what may be taken of all of these together. */
  failing: ReadonlySet<string>;
  mostFailing: number;
}

/** Failing destinations remembered at most; the one that failed first is forgotten first. */
const remembered = 1000;

export class Lanes {
  readonly #most: number;
  readonly #perDestination: number;
  readonly #active = new Map<string, number>();
  readonly #failing = new Set<string>();
  #total = 0;
  /** A claim is under way, and what it will find is not known. */
  #asked = false;
  /** Destinations that had no room in the last claim, or got all they had room for: more may be due. */
  #short = new Set<string>();
  #allShort = false;
  #failingShort = false;

  constructor(most: number, perDestination: number) {
    this.#most = most;
    this.#perDestination = perDestination;
  }

  /** What may be claimed now. */
  ask(): Limits {
    this.#asked = true;
    const rooms = new Map<string, number>();
    for (const destination of [...this.#active.keys(), ...this.#failing]) {
      const limit = this.#failing.has(destination) ? 1 : this.#perDestination;
      rooms.set(destination, Math.max(0, limit - (this.#active.get(destination) ?? 0)));
    }
    let failingActive = 0;
    for (const destination of this.#failing) failingActive += this.#active.get(destination) ?? 0;
    return {
      most: this.#most - this.#total,
      perDestination: this.#perDestination,
      rooms,
      failing: new Set(this.#failing),
      mostFailing: Math.max(0, Math.ceil(this.#most / 2) - failingActive),
    };
  }

  /** Takes a place for each delivery claimed within `limits`, given by its destination. */
  enter(destinations: string[], limits: Limits): void {
    this.#asked = false;
    this.#short = new Set([...limits.rooms].filter(([, room]) => room === 0).map(([destination]) => destination));
    this.#allShort = destinations.length >= limits.most;
    this.#failingShort =
      destinations.filter((destination) => limits.failing.has(destination)).length >= limits.mostFailing;
    this.#total += destinations.length;
    for (const [destination, claimed] of Map.groupBy(destinations, (destination) => destination)) {
      this.#active.set(destination, (this.#active.get(destination) ?? 0) + claimed.length);
      if (claimed.length >= (limits.rooms.get(destination) ?? limits.perDestination)) this.#short.add(destination);
    }
  }

  /**
   * Gives one place back. Returns whether somebody may be waiting for it.
   * @param failed how it went; null when nothing was learnt about the receiver
   */
  leave(destination: string, failed: boolean | null): boolean {
    this.#total--;
    const left = this.#active.get(destination)! - 1;
    if (left > 0) this.#active.set(destination, left);
    else this.#active.delete(destination);
    const wasFailing = this.#failing.has(destination);
    if (failed === false) this.#failing.delete(destination);
    else if (failed) this.#fail(destination);
    return this.#asked || this.#allShort || this.#short.has(destination) || (wasFailing && this.#failingShort);
  }

  #fail(destination: string): void {
    this.#failing.add(destination);
    if (this.#failing.size > remembered) this.#failing.delete(this.#failing.values().next().value!);
  }
}
