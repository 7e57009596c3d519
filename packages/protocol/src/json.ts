/** JSON as it is hashed and compared, and objects without what is not given. */
import { createHash } from "node:crypto";

/**
 * The one text of a JSON value (RFC 8785): no white space, members sorted by their names' UTF-16 code units, strings and numbers as
 * ECMAScript's `JSON.stringify` writes them. Numbers are IEEE 754 doubles, so `1E21` is `1e+21` and `-0` is `0`. Takes what
 * `JSON.parse` gives, however deep; what else a program holds is what `JSON.stringify` makes of it. Half a surrogate pair is written as its
 * escape, such as `\ud800`.
 */
export function canonicalJson(value: unknown): string {
  // What is left to write, last first: pieces of text, and values in a box. A stack, as recursion would end at some depth.
  const left: (string | { value: unknown })[] = [{ value }];
  let text = "";
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    if (typeof next === "string") {
      text += next;
      continue;
    }
    const plain = asJson(next.value);
    if (Array.isArray(plain)) {
      left.push("]");
      for (let at = plain.length - 1; at >= 0; at--) left.push({ value: plain[at] }, at > 0 ? "," : "");
      left.push("[");
    } else if (typeof plain === "object" && plain !== null) {
      const members = plain as Record<string, unknown>;
      const names = Object.keys(members)
        .filter((name) => !["undefined", "function", "symbol"].includes(typeof members[name]))
        .sort();
      left.push("}");
      for (let at = names.length - 1; at >= 0; at--)
        left.push({ value: members[names[at]!] }, `${at > 0 ? "," : ""}${JSON.stringify(names[at])}:`);
      left.push("{");
    } else text += JSON.stringify(plain) ?? "null";
  }
  return text;
}

/** A date and its like say themselves what they are in JSON. */
const asJson = (value: unknown): unknown => {
  const { toJSON } = Object(value) as { toJSON?: unknown };
  return typeof toJSON === "function" ? toJSON.call(value) : value;
};

/** SHA-256 of the canonical JSON, 32 bytes. */
export function hashJson(value: unknown): Buffer {
  return createHash("sha256").update(canonicalJson(value)).digest();
}

/** The properties that are given: those whose value is not undefined. */
export function given<T extends object>(properties: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(properties).filter(([, value]) => value !== undefined)) as never;
}
