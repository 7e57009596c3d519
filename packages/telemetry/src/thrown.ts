/** Anything may be thrown, and any part of it may throw when it is looked at: what is made of it here cannot fail. */
import { types } from "node:util";

const mostCharacters = 10_000;

/** What was thrown, as text. */
export function messageOf(thrown: unknown): string {
  try {
    const text = thrown instanceof Error ? thrown.message || thrown.name : String(thrown);
    return typeof text === "string" ? text.slice(0, mostCharacters) : "an error without a message";
  } catch {
    return "an error that cannot be told";
  }
}

/** What was thrown, as something that can be looked at: errors and plain values as they are, everything else as an error with its text. */
export function asThrown(thrown: unknown): unknown {
  const isObject = (typeof thrown === "object" && thrown !== null) || typeof thrown === "function";
  if (!isObject) return thrown;
  if (!types.isProxy(thrown) && types.isNativeError(thrown) && isReadable(thrown)) return thrown;
  return new Error(messageOf(thrown));
}

/** Nothing of it throws that is looked at on the way to a result or a log line. */
function isReadable(error: Error): boolean {
  try {
    for (let at: unknown = error, depth = 0; types.isNativeError(at) && depth < 10; at = at.cause, depth++)
      void [at.name, at.message, at.stack, (at as { code?: unknown }).code];
    return !(error instanceof Promise);
  } catch {
    return false;
  }
}
