/**
 * JSON as Postgres can keep it, and JSON that hashes the same whatever the order of its keys.
 * Postgres `text` and `json` operators refuse NUL and lone surrogates; JSON has no NaN or Infinity.
 */
import { createHash } from "node:crypto";

/** JSON text that Postgres stores and reads back; `changed` when something had to be replaced (U+FFFD, null). */
export function storableJson(value: unknown): { text: string; changed: boolean } {
  let changed = false;
  const text = JSON.stringify(value, (_key, part) => {
    if (typeof part === "number" && !Number.isFinite(part)) {
      changed = true;
      return null;
    }
    if (typeof part === "string") {
      const clean = storableText(part);
      if (clean !== part) changed = true;
      return clean;
    }
    return typeof part === "bigint" ? part.toString() : part;
  });
  return { text: cleanKeys(text ?? "null"), changed };
}

/** Text without NUL and lone surrogates, each replaced by U+FFFD. */
export function storableText(text: string): string {
  const whole = text.isWellFormed() ? text : text.toWellFormed();
  return whole.includes("\0") ? whole.replaceAll("\0", "\uFFFD") : whole;
}

/** Object keys pass `JSON.stringify`'s replacer untouched; their escapes are the only ones left to find. */
function cleanKeys(text: string): string {
  if (!/\\u(0000|d[89a-f])/.test(text)) return text;
  return text.replace(/(\\\\)|\\u(?:0000|d[89a-f][0-9a-f]{2})/g, (match, escaped) => (escaped ? match : "\uFFFD"));
}

/** JSON with sorted keys (RFC 8785 in spirit), for hashes only. */
export function canonicalJson(value: unknown): string {
  return JSON.stringify(value, (_key, part) =>
    part && typeof part === "object" && !Array.isArray(part)
      ? Object.fromEntries(Object.entries(part).sort(([a], [b]) => (a < b ? -1 : 1)))
      : part,
  );
}

/** SHA-256 of the canonical JSON, 32 bytes. */
export function hashJson(value: unknown): Buffer {
  return createHash("sha256").update(canonicalJson(value)).digest();
}
