/** From what happens to runs to what Prometheus counts. */
import { isFinal, type Left, type RunObserver } from "@drover/runs";
import { metrics } from "@drover/telemetry";

export function runMetrics(): RunObserver {
  const finished = ({ agent, status, stopReason }: Left) =>
    metrics.runsFinished.inc({ agent, status, stop_reason: stopReason ?? "none" });
  return {
    claimed(run) {
      if (run.epoch === 1) metrics.runsStarted.inc({ agent: run.agent });
      else metrics.runsResumed.inc({ agent: run.agent });
      metrics.pickupLatency.observe(Math.max(0, run.waitedMs) / 1000);
    },
    logged(_run, event) {
      if (event.type === "model.call") {
        const { model, usage, cost_usd, duration_ms } = event.data;
        metrics.modelCalls.inc({ model, result: "ok" });
        for (const kind of ["input", "output", "cached"] as const)
          metrics.modelTokens.inc({ model, kind }, usage[kind]);
        if (cost_usd === null) metrics.modelCostUnknown.inc({ model });
        else metrics.modelCost.inc({ model }, cost_usd);
        metrics.stepDuration.observe({ kind: "model" }, duration_ms / 1000);
      } else if (event.type === "model.failed") {
        metrics.modelCalls.inc({
          model: event.data.model,
          result: event.data.retry_in_ms === null ? "failed" : "retry",
        });
      } else if (event.type === "tool.result") {
        metrics.toolCalls.inc({ tool: event.data.tool_name, result: event.data.status });
        metrics.stepDuration.observe({ kind: "tool" }, event.data.duration_ms / 1000);
      }
    },
    left(run, left, ownedMs) {
      if (!left) metrics.lateResultsDropped.inc({ what: "settle" });
      else if (isFinal(left.status)) {
        finished(left);
        metrics.runDuration.observe({ status: left.status }, (run.ageMs + ownedMs) / 1000);
      } else {
        const reason = left.status === "waiting" ? "waiting" : left.woken ? "handover" : "retry";
        metrics.runsRequeued.inc({ reason });
      }
    },
    late: (what) => metrics.lateResultsDropped.inc({ what }),
    ended: finished,
    condemned: (cause) => metrics.workersCondemned.inc({ cause }),
    rescued: (runs) => metrics.runsRequeued.inc({ reason: "rescue" }, runs),
  };
}
