/** When a step that failed for a passing reason is tried again. */
import type { RunInput } from "./events.ts";

const longestRetryAfterMs = 3_600_000;

/**
 * Pause before the next attempt, ms: the provider's wish where there is one (up to an hour), else exponential with equal
 * jitter (half fixed, half random), capped. `attempt` is the one that failed, from 1.
 * Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (equal jitter).
 */
export function backoffMs(
  retry: RunInput["retry"],
  attempt: number,
  retryAfterMs: number | undefined,
  random = Math.random,
): number {
  const ceiling = Math.min(retry.max_backoff_ms, retry.backoff_ms * 2 ** (attempt - 1));
  const own = ceiling * (0.5 + random() / 2);
  return Math.round(Math.max(own, Math.min(retryAfterMs ?? 0, longestRetryAfterMs)));
}
