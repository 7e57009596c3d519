/**
 * Statements that come again and again get a name, under which the server keeps them parsed and, in time, planned: planning is more than half of
 * what a short statement costs. One place for all: whoever sends a statement need not know.
 */
import { createHash } from "node:crypto";
import pg from "pg";

/** So often a text is sent without a name. Some are made on the spot, and never come again. */
const seenBefore = 5;
/** Names at most: each costs every connection memory on the server. */
const mostNames = 200;
/** Texts at most that are counted. */
const mostCounted = 1000;

/**
 * A text that begins so gets no name. A kept plan is made anew only when the table's statistics are: one of a table that was nearly empty
 * then reads all of it later. It is for statements whose plan would change with the size of the table.
 */
export const plannedAnew = "/* planned anew */";

/** 26000: there is no such statement. 42P05: there is one already. Whoever stands between gave the session to another. */
const lostCodes = new Set(["26000", "42P05"]);

/** The error says that a named statement could not be run as it was prepared; nothing was done: it may be repeated as it is. */
export function isStale(error: unknown): boolean {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown };
  return lostCodes.has(code as string) || (code === "0A000" && /cached plan/.test(String(message)));
}

/** The names of one pool's statements. */
export class StatementNames {
  readonly #names = new Map<string, string>();
  readonly #seen = new Map<string, number>();
  /** Raised when what the server keeps no longer fits its tables. */
  #generation = 0;
  #on: boolean;
  readonly #onLost: () => void;

  /** `onLost`: a pooler does not keep named statements, and none is named from now on. */
  constructor(on: boolean, onLost: () => void) {
    this.#on = on;
    this.#onLost = onLost;
  }

  /** undefined: send it without. */
  nameOf(text: string): string | undefined {
    if (!this.#on || text.startsWith(plannedAnew)) return undefined;
    const known = this.#names.get(text);
    if (known !== undefined) return known;
    const seen = (this.#seen.get(text) ?? 0) + 1;
    if (seen > seenBefore && this.#names.size < mostNames) {
      this.#seen.delete(text);
      const name = `drover_${createHash("sha256").update(text).digest("hex").slice(0, 16)}_${this.#generation}`;
      this.#names.set(text, name);
      return name;
    }
    if (this.#seen.size >= mostCounted) this.#seen.clear();
    this.#seen.set(text, seen);
    return undefined;
  }

  /** Hears every error of the server. */
  heard(error: unknown): void {
    if (!this.#on || !isStale(error)) return;
    this.#names.clear();
    this.#generation++;
    if ((error as { code?: string }).code === "0A000") return;
    this.#on = false;
    this.#onLost();
  }
}

/** A client whose statements with values are named by `names`. */
/**
 * What texts and times mean on a connection does not depend on what a role or a database has been set to: it says so as it begins. Every pooler passes these on.
 */
const session = { DateStyle: "ISO, MDY", TimeZone: "UTC", standard_conforming_strings: "on" };

export class NamingClient extends pg.Client {
  readonly #names: StatementNames;

  constructor(config: pg.ClientConfig, names: StatementNames) {
    super(config);
    this.#names = names;
    this.connection.on("errorMessage", (error: unknown) => names.heard(error));
  }

  /** pg's own, which its types leave out. */
  getStartupConf(): object {
    const conf = (pg.Client.prototype as unknown as { getStartupConf(): object }).getStartupConf.call(this);
    return { ...conf, ...session };
  }

  // Its many forms are those of pg: only one of them is changed.
  override query(...args: never[]): never {
    const [text, values, ...rest] = args as unknown[];
    const send = super.query as (...args: unknown[]) => never;
    if (typeof text !== "string" || !Array.isArray(values)) return send.apply(this, args);
    const name = this.#names.nameOf(text);
    return send.call(
      this,
      name === undefined ? text : { name, text, values },
      ...(name === undefined ? [values, ...rest] : rest),
    );
  }
}
