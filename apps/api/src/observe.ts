/** From what clients have submitted here to what Prometheus counts. */
import type { Observe } from "@drover/runs";
import { metrics } from "@drover/telemetry";

export const countSubmissions: Observe = (told) => {
  if (told.type !== "submitted") return;
  for (const agent of told.agents) metrics.runsSubmitted.inc({ agent, kind: told.kind });
};
