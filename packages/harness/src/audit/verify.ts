/**
 * Verifying a trail without trusting where it was kept: takes the entries as they stand there, names each tenant's first bad one, and
 * says what was done to it as far as the rest of the trail tells. Memory does not grow with the trail.
 */
import type { KeyObject } from "node:crypto";
import { type Checkpoint, isSigned } from "./checkpoint.ts";
import { type ChainedEntry, chainHash, noHash } from "./trail.ts";

/** The first place where a tenant's trail is not what was written. */
export interface BadEntry {
  tenant: string;
  /** The place, from 1. */
  seq: number;
  /** Of the entry that is meant; null where it is gone. */
  id: string | null;
  /**
   * `edited`: its content, place or hash; `missing`: it was deleted; `inserted`: it was put in; `moved`: it stands in another's place;
   * `altered`: one of these, and what is left does not tell which; `cut`: the tail is gone; `rewritten`: all fits, and yet a
   * checkpoint has seen another entry here; `forged`: a checkpoint of this place is not signed by a trusted key.
   */
  problem: "edited" | "missing" | "inserted" | "moved" | "altered" | "cut" | "rewritten" | "forged";
  /** For people: goes on after "entry N". */
  message: string;
}

export interface VerifiedChain {
  tenant: string;
  /** Entries that were given. */
  entries: number;
  /** The last entry of a good trail; null when it is empty or bad. */
  head: { seq: number; hash: string } | null;
  /** Entries up to this one were cut off by retention, at a checkpoint; 0: none. */
  cut: number;
  /** Checkpoints that the trail agrees with. */
  checkpoints: number;
  bad: BadEntry | null;
}

export interface VerifyOptions {
  /** Each must be met; so give only those of the tenants whose entries you give. */
  checkpoints?: Iterable<Checkpoint>;
  /** When given, a checkpoint that none of them signed is bad. Without, checkpoints are trusted as they are. */
  publicKeys?: readonly KeyObject[];
  /** By tenant, how far its trail goes by another source than its entries. */
  lastSeqs?: ReadonlyMap<string, number>;
  /** Asked where no given entry says that its trail was cut here: whether one that has no place yet does. */
  isCutKnown?(tenant: string, upTo: number): Promise<boolean>;
}

/**
 * Verifies the trails of one tenant or many: each tenant's entries in order, tenants mixed at will. Answers by tenant, sorted. Without
 * a checkpoint, a cut tail and a trail that was hashed anew from some entry on look like good ones. A trail that begins later must begin behind
 * a checkpoint, and have an entry `audit.cut` that names this place.
 */
export async function verifyChain(
  entries: Iterable<ChainedEntry> | AsyncIterable<ChainedEntry>,
  options: VerifyOptions = {},
): Promise<VerifiedChain[]> {
  const chains = new Map<string, Chain>();
  const chainOf = (tenant: string): Chain => {
    const chain = chains.get(tenant) ?? new Chain(tenant);
    chains.set(tenant, chain);
    return chain;
  };
  const { publicKeys } = options;
  for (const checkpoint of options.checkpoints ?? [])
    chainOf(checkpoint.tenant).expect(checkpoint, !publicKeys || isSigned(checkpoint, publicKeys));
  for (const [tenant, seq] of options.lastSeqs ?? []) chainOf(tenant).lastSeq = seq;
  for await (const entry of entries) chainOf(entry.tenant).take(entry);
  for (const chain of chains.values())
    if (chain.unsaidCut > 0 && (await options.isCutKnown?.(chain.tenant, chain.unsaidCut))) chain.say(chain.unsaidCut);
  return [...chains.values()].map((chain) => chain.end()).sort((a, b) => (a.tenant < b.tenant ? -1 : 1));
}

/** Whether the entry, as if it stood at `seq`, was chained after `previous` under one of these hashes. */
function belongs(previous: Uint8Array, entry: ChainedEntry, seq = entry.seq, hashes = [entry.hash]): boolean {
  return hashes.includes(chainHash(previous, { ...entry, seq }).toString("hex"));
}

const bytes = (hash: string): Buffer => Buffer.from(hash, "hex");

/** One tenant's trail. After the first entry that does not fit, the others are only searched for what explains it. */
class Chain {
  readonly tenant: string;
  readonly #checkpoints = new Map<number, Checkpoint[]>();
  #given = 0;
  #met = 0;
  /** What comes before its first entry. */
  #start = { seq: 0, hash: noHash };
  /** Places where entries say that it was cut. */
  readonly #said = new Set<number>();
  /** The last entry that fitted, and the hash before it. */
  #last: ChainedEntry | null = null;
  #beforeLast = noHash;
  #bad: BadEntry | null = null;
  #forged: BadEntry | null = null;
  /** The entry that does not fit, the one after it, and the one that was chained where it stands. */
  #found: ChainedEntry | null = null;
  #next: ChainedEntry | null = null;
  #owner: ChainedEntry | null = null;
  lastSeq = 0;

  constructor(tenant: string) {
    this.tenant = tenant;
  }

  expect(checkpoint: Checkpoint, trusted: boolean): void {
    const { seq, at, key_id } = checkpoint;
    if (trusted) this.#checkpoints.set(seq, [...(this.#checkpoints.get(seq) ?? []), checkpoint]);
    else if (seq < (this.#forged?.seq ?? Number.POSITIVE_INFINITY))
      this.#forged = this.#problem(
        seq,
        null,
        "forged",
        `has a checkpoint of ${at} that no trusted key signed (it names key ${key_id})`,
      );
  }

  say(upTo: number): void {
    this.#said.add(upTo);
  }

  /** Where it begins, when nothing that was given says that it was cut there; 0: it begins with its first entry, or it is said. */
  get unsaidCut(): number {
    return this.#said.has(this.#start.seq) ? 0 : this.#start.seq;
  }

  take(entry: ChainedEntry): void {
    if (this.#given === 0) this.#begin(entry);
    this.#given++;
    if (this.#bad) return;
    if (this.#found) {
      this.#next ??= entry;
      if (belongs(this.#hash, entry, this.#place, [entry.hash, this.#found.hash])) this.#owner ??= entry;
    } else if (entry.seq === this.#place && belongs(this.#hash, entry)) {
      this.#beforeLast = this.#hash;
      this.#last = entry;
      const { up_to } = entry.data as { up_to?: unknown };
      if (entry.action === "audit.cut" && typeof up_to === "number") this.say(up_to);
      this.#compare(entry);
    } else this.#found = entry;
  }

  end(): VerifiedChain {
    if (this.#found) this.#bad = this.#explain(this.#found, this.#next, this.#owner);
    if (this.unsaidCut > 0)
      this.#bad = this.#problem(
        1,
        null,
        "missing",
        `is missing, and those after it up to ${this.#start.seq}: the trail begins behind a checkpoint, and no entry says that it was cut there`,
      );
    this.#bad ??= this.#cut();
    if (this.#forged && this.#forged.seq < (this.#bad?.seq ?? Number.POSITIVE_INFINITY)) this.#bad = this.#forged;
    const head = this.#bad || !this.#last ? null : { seq: this.#last.seq, hash: this.#last.hash };
    const { tenant } = this;
    return { tenant, entries: this.#given, cut: this.#start.seq, head, checkpoints: this.#met, bad: this.#bad };
  }

  #begin(first: ChainedEntry): void {
    const seq = first.seq - 1;
    const vouching = this.#checkpoints.get(seq)?.find(({ hash }) => belongs(bytes(hash), first));
    if (!vouching) return;
    this.#start = { seq, hash: bytes(vouching.hash) };
    this.#met++;
  }

  /** Where the next entry must stand. */
  get #place(): number {
    return (this.#last?.seq ?? this.#start.seq) + 1;
  }

  get #hash(): Buffer {
    return this.#last ? bytes(this.#last.hash) : this.#start.hash;
  }

  #problem(seq: number, id: string | null, problem: BadEntry["problem"], message: string): BadEntry {
    return { tenant: this.tenant, seq, id, problem, message };
  }

  #compare(entry: ChainedEntry): void {
    for (const { hash, at } of this.#checkpoints.get(entry.seq) ?? [])
      if (hash === entry.hash) this.#met++;
      else
        this.#bad ??= this.#problem(
          entry.seq,
          entry.id,
          "rewritten",
          `is not the one that the checkpoint of ${at} has seen: it, or entries before it, were written anew`,
        );
  }

  #explain(found: ChainedEntry, next: ChainedEntry | null, owner: ChainedEntry | null): BadEntry {
    const place = this.#place;
    const last = this.#last;
    if (belongs(this.#hash, found, place))
      return this.#problem(place, found.id, "edited", "stands under another number");
    if (last && belongs(this.#beforeLast, found, place - 1)) {
      // Two entries for one place, and both fit: the one that the next entry follows is the true one.
      const [put, instead] = next && belongs(bytes(last.hash), next, place) ? [found, last] : [last, found];
      return this.#problem(place - 1, put.id, "inserted", `was put in: entry ${instead.id} was chained at this place`);
    }
    if (found.seq < place)
      return this.#problem(found.seq, found.id, "inserted", "was put in: another entry was chained at this place");
    if (owner) {
      const isAfterOwner = belongs(bytes(owner.hash), found, place + 1);
      const swapped = isAfterOwner || belongs(bytes(found.hash), found, place + 1, [owner.hash]);
      if (owner === next && !swapped)
        return this.#problem(place, found.id, "inserted", `was put in: entry ${owner.id} was chained at this place`);
      return this.#problem(place, found.id, "moved", `stands where entry ${owner.id} was chained`);
    }
    if (found.seq > place) {
      const many = found.seq - place > 1 ? `, and those after it up to ${found.seq - 1}` : "";
      return this.#problem(place, null, "missing", `is missing${many}`);
    }
    const due = chainHash(this.#hash, found);
    const sealed = this.#checkpoints
      .get(place)
      ?.some(({ hash }) => hash === found.hash || hash === due.toString("hex"));
    if (sealed || (next && (belongs(bytes(found.hash), next) || belongs(due, next))))
      return this.#problem(
        place,
        found.id,
        "edited",
        "was changed: its hash does not fit its content and the entry before",
      );
    if (next && belongs(bytes(found.hash), next, next.seq + 1))
      return this.#problem(place, null, "missing", "is missing, and those after it were given new numbers");
    return this.#problem(place, found.id, "altered", "does not follow from the entry before: one of them was changed");
  }

  /** The trail is good as far as it goes; does it go far enough? */
  #cut(): BadEntry | null {
    const end = this.#last ? `the trail ends with entry ${this.#last.seq}` : "the trail has no entry";
    const known = [...this.#checkpoints.keys()].reduce((most, seq) => Math.max(most, seq), 0);
    if (known >= this.#place)
      return this.#problem(
        this.#place,
        null,
        "cut",
        `is missing: ${end}, and the checkpoint of ${this.#checkpoints.get(known)![0]!.at} has seen entry ${known}`,
      );
    if (this.lastSeq >= this.#place)
      return this.#problem(this.#place, null, "missing", `is missing: ${end}, and went on to entry ${this.lastSeq}`);
    return null;
  }
}
