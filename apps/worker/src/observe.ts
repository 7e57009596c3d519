/** From what happens to runs to what Prometheus counts. */
import { isFinal, type Moved, type Observation, type Observe } from "@drover/runs";
import { metrics } from "@drover/telemetry";

/** Names as the configuration has them. Others come from clients and models, and would make a new series each. */
export interface ConfiguredNames {
  agents: ReadonlySet<string>;
  models: ReadonlySet<string>;
  tools: ReadonlySet<string>;
}

export const runCounter =
  (names: ConfiguredNames): Observe =>
  (told) => {
    const agentOf = (agent: string) => (names.agents.has(agent) ? agent : other);
    switch (told.type) {
      case "claimed": {
        const { epoch, agent, waitedMs } = told.run;
        (epoch === 1 ? metrics.runsStarted : metrics.runsResumed).inc({ agent: agentOf(agent) });
        metrics.pickupLatency.observe(Math.max(0, waitedMs) / 1000);
        break;
      }
      case "logged":
        countStep(told.event, names);
        break;
      case "left": {
        const { run, moved, ownedMs } = told;
        if (isFinal(moved.status)) {
          finished(moved, agentOf(moved.agent));
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
        finished(told.moved, agentOf(told.moved.agent));
        break;
      case "condemned":
        metrics.workersCondemned.inc({ cause: told.cause });
        break;
      case "rescued":
        metrics.runsRequeued.inc({ reason: "rescue" }, told.runs.length);
        break;
    }
  };

const other = "other";

function finished({ status, stopReason }: Moved, agent: string): void {
  metrics.runsFinished.inc({ agent, status, stop_reason: stopReason ?? "none" });
}

function countStep(event: Extract<Observation, { type: "logged" }>["event"], names: ConfiguredNames): void {
  if (event.type === "model.call") {
    const { usage, cost_usd, duration_ms } = event.data;
    const model = modelOf(event.data.model, names);
    metrics.modelCalls.inc({ model, result: "ok" });
    countCost(model, usage, cost_usd);
    metrics.stepDuration.observe({ kind: "model" }, duration_ms / 1000);
  } else if (event.type === "model.failed") {
    const { retry_in_ms, usage, cost_usd } = event.data;
    const model = modelOf(event.data.model, names);
    metrics.modelCalls.inc({ model, result: retry_in_ms === null ? "failed" : "retry" });
    if (usage && cost_usd !== undefined) countCost(model, usage, cost_usd);
  } else if (event.type === "tool.result") {
    const { tool_name } = event.data;
    metrics.toolCalls.inc({ tool: names.tools.has(tool_name) ? tool_name : other, result: event.data.status });
    metrics.stepDuration.observe({ kind: "tool" }, event.data.duration_ms / 1000);
  }
}

/** A provider's name is configured, also where the model's is not. */
function modelOf(model: string, { models }: ConfiguredNames): string {
  if (models.has(model)) return model;
  const provider = `${model.slice(0, model.indexOf("/"))}/`;
  for (const known of models) if (known.startsWith(provider)) return `${provider}${other}`;
  return other;
}

function countCost(model: string, usage: Record<"input" | "output" | "cached", number>, costUsd: number | null): void {
  for (const kind of ["input", "output", "cached"] as const) metrics.modelTokens.inc({ model, kind }, usage[kind]);
  if (costUsd === null) metrics.modelCostUnknown.inc({ model });
  else metrics.modelCost.inc({ model }, costUsd);
}
