/** JSON as Postgres can keep it: its `text` and `json` operators refuse NUL and lone surrogates; JSON has no NaN or Infinity. */

/** NUL and lone surrogates as `JSON.stringify` writes them, in values and keys alike, and the escaped backslash that only looks so. */
const unstorable = /(\\\\)|\\u(?:0000|d[89a-f][0-9a-f]{2})/g;

/**
 * JSON text that Postgres stores and reads back; `changed` when something had to be replaced (by U+FFFD, a number by null).
 * Throws on what JSON has no form for: cycles, BigInt, thousands of levels.
 */
export function storableJson(value: unknown): { text: string; changed: boolean } {
  const written = JSON.stringify(value) ?? "null";
  const text = written.includes("\\u")
    ? written.replace(unstorable, (match, backslash) => (backslash ? match : "\uFFFD"))
    : written;
  return { text, changed: text !== written || (text.includes("null") && holdsNonFinite(value)) };
}

function holdsNonFinite(value: unknown): boolean {
  if (typeof value === "number") return !Number.isFinite(value);
  return typeof value === "object" && value !== null && Object.values(value).some(holdsNonFinite);
}

/** Text without NUL and lone surrogates, each replaced by U+FFFD. */
export function storableText(text: string): string {
  return text.toWellFormed().replaceAll("\0", "\uFFFD");
}
