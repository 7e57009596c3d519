/** From what happens to runs to what Prometheus counts. */
import { isFinal, type Moved, type Observation, type Observe } from "@drover/runs";
import { metrics } from "@drover/telemetry";

export const countRuns: Observe = (told) => {
  switch (told.type) {
    case "claimed": {
      const { epoch, agent, waitedMs } = told.run;
      (epoch === 1 ? metrics.runsStarted : metrics.runsResumed).inc({ agent });
      metrics.pickupLatency.observe(Math.max(0, waitedMs) / 1000);
      break;
    }
    case "logged":
      countStep(told.event);
      break;
    case "left": {
      const { run, moved, ownedMs } = told;
      if (isFinal(moved.status)) {
        finished(moved);
        metrics.runDuration.observe({ status: moved.status }, (run.ageMs + ownedMs) / 1000);
      } else {
        const reason = moved.status === "waiting" ? "waiting" : moved.woken ? "handover" : "retry";
        metrics.runsRequeued.inc({ reason });
      }
      break;
    }
    case "lost":
      metrics.lateResultsDropped.inc({ what: "settle" });
      break;
    case "late":
      metrics.lateResultsDropped.inc({ what: told.what });
      break;
    case "ended":
      finished(told.moved);
      break;
    case "condemned":
      metrics.workersCondemned.inc({ cause: told.cause });
      break;
    case "rescued":
      metrics.runsRequeued.inc({ reason: "rescue" }, told.runs.length);
      break;
  }
};

function finished({ agent, status, stopReason }: Moved): void {
  metrics.runsFinished.inc({ agent, status, stop_reason: stopReason ?? "none" });
}

function countStep(event: Extract<Observation, { type: "logged" }>["event"]): void {
  if (event.type === "model.call") {
    const { model, usage, cost_usd, duration_ms } = event.data;
    metrics.modelCalls.inc({ model, result: "ok" });
    for (const kind of ["input", "output", "cached"] as const) metrics.modelTokens.inc({ model, kind }, usage[kind]);
    if (cost_usd === null) metrics.modelCostUnknown.inc({ model });
    else metrics.modelCost.inc({ model }, cost_usd);
    metrics.stepDuration.observe({ kind: "model" }, duration_ms / 1000);
  } else if (event.type === "model.failed") {
    const { model, retry_in_ms } = event.data;
    metrics.modelCalls.inc({ model, result: retry_in_ms === null ? "failed" : "retry" });
  } else if (event.type === "tool.result") {
    metrics.toolCalls.inc({ tool: event.data.tool_name, result: event.data.status });
    metrics.stepDuration.observe({ kind: "tool" }, event.data.duration_ms / 1000);
  }
}
