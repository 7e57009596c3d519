/**
 * Keeps a worker below its memory limit: above it no run is claimed, and a worker that stays above is drained and ends, for its supervisor to
 * start a fresh one. Better a planned end with a hand-over than the kernel's.
 */

import { totalmem } from "node:os";
import { constrainedMemory, memoryUsage } from "node:process";
import type { Logger } from "@drover/telemetry";

export interface MemoryOptions {
  limitBytes: number;
  /** How long it may stay above before it is drained, ms. */
  patienceMs: number;
  logger: Logger;
  /** Claim nothing, or claim again. */
  onPressure(high: boolean): void;
  /** It stayed above: end this process in good order. */
  onOver(): void;
}

const everyMs = 1000;
/** Share of the machine's, or the container's, memory. */
const share = 0.8;

/** What a worker may use when nobody says: most of what its container, or else this machine, has. */
export function defaultMemoryLimit(): number {
  const constrained = constrainedMemory();
  // Without a container's limit Node answers 0, or a number beyond all memory.
  return share * Math.min(constrained > 0 ? constrained : Number.POSITIVE_INFINITY, totalmem());
}

/** Looks once a second; returns what ends it. */
export function watchMemory(options: MemoryOptions): () => void {
  let aboveSince: number | undefined;
  const timer = setInterval(() => {
    const bytes = memoryUsage.rss();
    const now = performance.now();
    if (bytes <= options.limitBytes) {
      if (aboveSince !== undefined) options.onPressure(false);
      aboveSince = undefined;
      return;
    }
    const about = { rss_mb: Math.round(bytes / 2 ** 20), limit_mb: Math.round(options.limitBytes / 2 ** 20) };
    if (aboveSince === undefined) {
      aboveSince = now;
      options.logger.warn(about, "above the memory limit: no run is claimed");
      options.onPressure(true);
    } else if (now - aboveSince >= options.patienceMs) {
      clearInterval(timer);
      options.logger.warn(about, "still above the memory limit: this worker hands its runs over and ends");
      options.onOver();
    }
  }, everyMs);
  timer.unref();
  return () => clearInterval(timer);
}
