/**
 * What a tool returned, as text: JSON as `JSON.stringify` writes it, but piece by piece and never more than a bound, so that an output of
 * hundreds of megabytes costs no more memory and no longer pause than one of that bound. Used on both sides of an isolated call.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { z } from "zod";

/** Bytes of one output that are kept at most. */
export const mostKept = 16 * 2 ** 20;
/** Longest stretch of work without a turn for others, ms. */
const longestStretchMs = 10;
/** Text is encoded in pieces of about this many characters. */
const pieceLength = 32_768;
const stepsBetweenPauses = 4096;

export interface Written {
  text: string;
  /** Of `text`, in UTF-8. */
  bytes: number;
  /** It is JSON, not plain text. */
  json: boolean;
  /** False: there was more than `mostKept`. */
  whole: boolean;
}

/** The output by the tool's own schema, where it has one, and as text. @throws Error saying what is wrong with it */
export async function shape(tool: { output?: z.ZodType | undefined }, output: unknown): Promise<Written> {
  if (!tool.output) return await writtenInTurns(output);
  const parsed = await tool.output.safeParseAsync(output);
  if (parsed.success) return await writtenInTurns(parsed.data);
  const problems = parsed.error.issues.map((issue) => `${issue.path.join(".") || "output"}: ${issue.message}`);
  throw new Error(`The tool returned something else than it declares. ${problems.join("; ")}`);
}

/** An output as text, at once. @throws Error when it is not JSON */
export function written(output: unknown, most = mostKept): Written {
  for (const work = writing(output, most); ; ) {
    const { done, value } = work.next();
    if (done) return value;
  }
}

/** An output as text; the event loop gets its turns meanwhile. @throws Error when it is not JSON */
async function writtenInTurns(output: unknown): Promise<Written> {
  let since = performance.now();
  for (const work = writing(output, mostKept); ; ) {
    const { done, value } = work.next();
    if (done) return value;
    if (performance.now() - since < longestStretchMs) continue;
    await nextTurn();
    since = performance.now();
  }
}

/** The first `most` bytes of a text, less a character that would be cut in two. */
export function firstBytes(text: string, most: number): string {
  const start = text.slice(0, most);
  if (Buffer.byteLength(start) <= most) return start;
  return Buffer.from(start)
    .subarray(0, most)
    .toString("utf8")
    .replace(/\uFFFD+$/, "");
}

function* writing(output: unknown, most: number): Generator<void, Written> {
  if (typeof output === "string") {
    const start = output.slice(0, most + 1).toWellFormed();
    const text = firstBytes(start, most);
    const whole = start.length === output.length && text.length === start.length;
    return { text, bytes: Buffer.byteLength(text), json: false, whole };
  }
  const paper = new Paper(most);
  try {
    yield* writeJson(output ?? null, paper);
  } catch (error) {
    throw new Error(`The tool's output is not JSON: ${error instanceof Error ? error.message : String(error)}`);
  }
  if (paper.isEmpty) throw new Error("The tool's output is not JSON.");
  return { ...paper.read(), json: true };
}

/** Collects text as bytes, up to a bound. */
class Paper {
  readonly #most: number;
  readonly #pieces: Buffer[] = [];
  #bytes = 0;
  #pending = "";

  constructor(most: number) {
    this.#most = most;
  }

  get isEmpty(): boolean {
    return this.#bytes === 0 && this.#pending === "";
  }

  /** There is more than the bound allows; what comes now is not needed. */
  get isFull(): boolean {
    return this.#bytes > this.#most;
  }

  put(text: string): void {
    this.#pending += text;
    if (this.#pending.length >= pieceLength) this.#encode();
  }

  read(): { text: string; bytes: number; whole: boolean } {
    this.#encode();
    const all = Buffer.concat(this.#pieces);
    if (all.length <= this.#most) return { text: all.toString("utf8"), bytes: all.length, whole: true };
    const text = all
      .subarray(0, this.#most)
      .toString("utf8")
      .replace(/\uFFFD+$/, "");
    return { text, bytes: Buffer.byteLength(text), whole: false };
  }

  #encode(): void {
    const piece = Buffer.from(this.#pending);
    this.#pending = "";
    this.#pieces.push(piece);
    this.#bytes += piece.length;
  }
}

/** An array or object that is being written. Without `keys` its places are numbered. */
interface Open {
  value: object;
  keys: string[] | undefined;
  size: number;
  next: number;
  close: "]" | "}";
  empty: boolean;
}

/**
 * `JSON.stringify` without its recursion and without its end: it stops when the paper is full, and pauses between pieces. Bytes (`Buffer`, typed
 * arrays) are written from where they are: their own `toJSON` would make a list of numbers of them first.
 */
function* writeJson(root: unknown, paper: Paper): Generator<void, void> {
  const open: Open[] = [];
  const inside = new Set<object>();

  /** Anything but a long string: that takes pauses. */
  function put(value: unknown): void {
    if (typeof value === "string") paper.put(JSON.stringify(value));
    else if (typeof value === "bigint") throw new TypeError("Do not know how to serialize a BigInt");
    else if (typeof value === "number" && !Number.isFinite(value)) paper.put("null");
    else if (typeof value !== "object" || value === null) paper.put(String(value));
    else if (inside.has(value)) throw new TypeError("Converting circular structure to JSON");
    else {
      inside.add(value);
      const opened = openingOf(value);
      open.push(opened);
      paper.put(opened.close === "]" ? "[" : "{");
    }
  }

  const start = plain(root, "");
  if (isLong(start)) yield* writeLong(start, paper);
  else if (start !== undefined) put(start);
  for (let steps = 1; open.length > 0 && !paper.isFull; steps++) {
    if (steps % stepsBetweenPauses === 0) yield;
    const at = open.at(-1)!;
    if (at.next === at.size) {
      paper.put(at.close);
      inside.delete(at.value);
      open.pop();
      continue;
    }
    const key = at.keys ? at.keys[at.next]! : at.next;
    at.next++;
    const value = plain((at.value as Record<string | number, unknown>)[key], key);
    if (value === undefined && at.close === "}") continue;
    if (!at.empty) paper.put(",");
    at.empty = false;
    if (at.close === "}") {
      if (isLong(key)) yield* writeLong(key, paper);
      else paper.put(JSON.stringify(String(key)));
      paper.put(":");
    }
    if (isLong(value)) yield* writeLong(value, paper);
    else put(value ?? null);
  }
}

function openingOf(value: object): Open {
  const base = { value, next: 0, empty: true };
  if (Array.isArray(value)) return { ...base, keys: undefined, size: value.length, close: "]" };
  if (value instanceof Bytes) return { ...base, value: value.of, keys: undefined, size: value.of.length, close: "]" };
  if (ArrayBuffer.isView(value) && "length" in value)
    return { ...base, keys: undefined, size: value.length as number, close: "}" };
  const keys = Object.keys(value);
  return { ...base, keys, size: keys.length, close: "}" };
}

/** Stands for a list of a buffer's bytes. */
class Bytes {
  readonly of: Buffer;
  constructor(of: Buffer) {
    this.of = of;
  }
}

/** What JSON makes of a value before it is written; undefined: it leaves it out. */
function plain(given: unknown, key: string | number): unknown {
  if (Buffer.isBuffer(given)) return { type: "Buffer", data: new Bytes(given) };
  let value = given;
  if ((typeof value === "object" && value !== null) || typeof value === "bigint") {
    const { toJSON } = value as { toJSON?: unknown };
    if (typeof toJSON === "function") value = toJSON.call(value, String(key));
  }
  if (value instanceof Number || value instanceof String || value instanceof Boolean || value instanceof BigInt)
    return value.valueOf();
  return typeof value === "function" || typeof value === "symbol" ? undefined : value;
}

const isLong = (value: unknown): value is string => typeof value === "string" && value.length > pieceLength;

function* writeLong(text: string, paper: Paper): Generator<void, void> {
  paper.put('"');
  for (let from = 0; from < text.length && !paper.isFull; ) {
    let to = Math.min(text.length, from + pieceLength);
    // Not between the halves of a character: alone, each would be escaped.
    if (isHighSurrogate(text.charCodeAt(to - 1))) to = Math.min(text.length, to + 1);
    paper.put(JSON.stringify(text.slice(from, to)).slice(1, -1));
    from = to;
    yield;
  }
  paper.put('"');
}

const isHighSurrogate = (code: number): boolean => code >= 0xd800 && code <= 0xdbff;
