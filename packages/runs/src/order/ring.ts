/** Telling the sequencer's leader that there is something to put into order, so that it may idle. Without a ring it looks once a second. */
import type { Signals } from "@drover/queue";

/** The bell's name. */
export const orderBell = "order";
/** A leader that heard a ring stays awake for longer than this. */
const everyMs = 200;

/** Rings, at most five times a second: call it as often as something was written. */
export function orderRinger(signals: Pick<Signals, "ring">): () => void {
  let rungAt = Number.NEGATIVE_INFINITY;
  return () => {
    const now = performance.now();
    if (now - rungAt < everyMs) return;
    rungAt = now;
    signals.ring(orderBell);
  };
}

/** The same signals; news of runs also ring. */
export function ringingForOrder(signals: Signals): Signals {
  const ring = orderRinger(signals);
  return {
    ...signals,
    news(runId) {
      signals.news(runId);
      ring();
    },
  };
}
