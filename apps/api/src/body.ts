/** Reading a body: what JSON cannot carry to where it is kept is refused by its path, never altered in silence. */
import { isUtf8 } from "node:buffer";
import type { FieldError } from "@drover/protocol";
import { invalid } from "./problems.ts";

/** Long enough that a number may not be kept as it is; all others are spared the second look. */
const longNumber = /\d{16}|[eE]\+?\d{3}/;
/** Stands for a number that a double cannot hold. */
class Unkept {}
const unkept = new Unkept();

/** The text of a body. @throws DroverError `invalid_input` when it is not UTF-8 */
export function textOf(bytes: Buffer): string {
  if (!isUtf8(bytes)) throw invalid([{ path: "", message: "is not valid UTF-8" }]);
  return bytes.toString();
}

type WithSource = (this: unknown, key: string, value: unknown, context: { source?: string }) => unknown;

/** @throws DroverError `invalid_input` naming numbers that would change: integers beyond 2^53, and what is too large for a double */
export function requireKept(text: string): void {
  if (!longNumber.test(text)) return;
  const mark: WithSource = (_key, value, { source }) =>
    typeof value === "number" && source !== undefined && changes(value, source) ? unkept : value;
  const errors: FieldError[] = [];
  find(JSON.parse(text, mark as never), "", errors);
  if (errors.length > 0) throw invalid(errors);
}

const changes = (value: number, source: string): boolean =>
  !Number.isFinite(value) || (/^-?\d+$/.test(source) && !Number.isSafeInteger(value));

/** Without recursion: it comes before any bound on depth. */
function find(root: unknown, path: string, errors: FieldError[]): void {
  const open: [unknown, string][] = [[root, path]];
  for (let next = open.pop(); next; next = open.pop()) {
    const [value, at] = next;
    if (value === unkept)
      errors.push({ path: at, message: "is a number that is not kept exactly: send it as a string" });
    else if (Array.isArray(value)) for (const [index, part] of value.entries()) open.push([part, `${at}[${index}]`]);
    else if (typeof value === "object" && value !== null)
      for (const [key, part] of Object.entries(value)) open.push([part, at === "" ? key : `${at}.${key}`]);
  }
}

/** Fields whose text is anybody's: what of it cannot be kept is replaced and marked in the log. */
const free = new Set(["query", "queries", "context", "system_prompt", "note", "edited_input", "result", "metadata"]);

/** The first text of a request that Postgres does not take, by its path; undefined: there is none. */
export function unstorable(value: unknown, path = ""): FieldError | undefined {
  if (typeof value === "string")
    return value.includes("\0") || !value.isWellFormed()
      ? { path, message: "must not contain NUL or half a surrogate pair" }
      : undefined;
  if (typeof value !== "object" || value === null) return undefined;
  for (const [key, part] of Object.entries(value)) {
    const found = free.has(key) ? undefined : unstorable(part, path === "" ? key : `${path}.${key}`);
    if (found) return found;
  }
  return undefined;
}
