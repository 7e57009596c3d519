import type { Logger } from "@drover/telemetry";

const quietMs = 10_000;

/**
 * Logs what clients emit while a server is away: each message at once, then at most every 10 s with the number left out meanwhile.
 * Reconnecting clients repeat themselves several times a second.
 */
export function createFaultLog(logger: Logger, away: string): (error: Error) => void {
  const seen = new Map<string, { at: number; left: number }>();
  return (error) => {
    // Not the error itself: pg and ioredis hang their whole client on it.
    const { message, code } = error as NodeJS.ErrnoException;
    const key = message.replace(/[0-9a-f-]{36}|\d+/g, "#");
    const now = performance.now();
    const last = seen.get(key);
    if (last && now - last.at < quietMs) {
      last.left++;
      return;
    }
    if (seen.size > 100) seen.clear();
    seen.set(key, { at: now, left: 0 });
    logger.warn({ reason: message || error.name, code, repeated: last?.left || undefined }, away);
  };
}
