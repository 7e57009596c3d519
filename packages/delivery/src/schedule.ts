/**
 * When a delivery is tried again. After the first try come nine more: after 5 s, 5 min, 30 min, 2, 5, 10, 14, 20 and 24 h,
 * each pause jittered by a fifth; the last is cut short so that it falls on the end of the three days.
 */

const second = 1000;
const minute = 60 * second;
const hour = 60 * minute;

const pausesMs = [5 * second, 5 * minute, 30 * minute, 2 * hour, 5 * hour, 10 * hour, 14 * hour, 20 * hour, 24 * hour];
const jitter = 0.2;

/** How long a delivery is tried for, from its making or its redelivery. A try that fails later than this is the last. */
export const giveUpAfterMs = 72 * hour;

/**
 * The pause in ms after a failed try. The receiver's `Retry-After` can make it longer, never shorter; the statement that
 * writes it down ends it with the three days.
 * @param failures tries that had failed before this one
 * @param random 0..1
 */
export function pauseMs(failures: number, askedMs: number | null, random: number = Math.random()): number {
  const planned = pausesMs[Math.min(failures, pausesMs.length - 1)]!;
  const own = planned * (1 + jitter * (2 * random - 1));
  return Math.round(Math.min(Math.max(own, askedMs ?? 0), giveUpAfterMs));
}

/** `Retry-After` as ms from now: seconds, or a date (RFC 9110 section 10.2.3). null when there is none or it is neither. */
export function retryAfterMs(header: string | undefined, now: number = Date.now()): number | null {
  const text = header?.trim() ?? "";
  if (/^\d+$/.test(text)) return Number(text) * second;
  // Only what looks like an HTTP date: Date.parse would take "1.5" for a month.
  const at = /^[A-Z][a-z]{2,8},? /.test(text) ? Date.parse(text) : Number.NaN;
  return Number.isNaN(at) ? null : Math.max(0, at - now);
}
