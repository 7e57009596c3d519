/**
 * All metrics of Drover in one place: whoever does the work imports the metric and counts. One registry per process; durations
 * are seconds, money is USD. No label holds an id, a tenant or a text of a user.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";

const registry = new Registry();
export const metricsContentType = registry.contentType;

const registers = [registry];
/** From a wake-up on an idle system to a backlog of hours. */
const waitBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800];
/** From a no-op to a run at its hard limit. */
const workBuckets = [0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600];

export const metrics = {
  /** API: after the commit. */
  runsSubmitted: new Counter({
    name: "drover_runs_submitted_total",
    help: "Runs accepted, by agent and by how they came (single, batch, retry)",
    labelNames: ["agent", "kind"] as const,
    registers,
  }),
  /** Worker: first claims only; later ones are `drover_runs_resumed_total`. */
  runsStarted: new Counter({
    name: "drover_runs_started_total",
    help: "Runs claimed for the first time",
    labelNames: ["agent"] as const,
    registers,
  }),
  runsResumed: new Counter({
    name: "drover_runs_resumed_total",
    help: "Claims of runs that had started before",
    labelNames: ["agent"] as const,
    registers,
  }),
  /** `stop_reason` is `none` for completed and cancelled runs. */
  runsFinished: new Counter({
    name: "drover_runs_finished_total",
    help: "Runs that became final, by status and stop reason",
    labelNames: ["agent", "status", "stop_reason"] as const,
    registers,
  }),
  runsRequeued: new Counter({
    name: "drover_runs_requeued_total",
    help: "Runs that gave their slot back (handover, retry, waiting), or were taken over from a dead worker (rescue)",
    labelNames: ["reason"] as const,
    registers,
  }),
  workersCondemned: new Counter({
    name: "drover_workers_condemned_total",
    help: "Other workers that this one declared dead: crashed (the lock was gone) or silent (no heartbeat for a lease)",
    labelNames: ["cause"] as const,
    registers,
  }),
  /** `what`: settle, tool, model. */
  lateResultsDropped: new Counter({
    name: "drover_late_results_dropped_total",
    help: "Writes of a worker that no longer owned the run, refused by the fence",
    labelNames: ["what"] as const,
    registers,
  }),
  pickupLatency: new Histogram({
    name: "drover_pickup_latency_seconds",
    help: "From due to claimed",
    buckets: waitBuckets,
    registers,
  }),
  runDuration: new Histogram({
    name: "drover_run_duration_seconds",
    help: "From accepted to final, by final status",
    labelNames: ["status"] as const,
    buckets: workBuckets,
    registers,
  }),
  /** `kind`: model, tool. */
  stepDuration: new Histogram({
    name: "drover_step_duration_seconds",
    help: "Finished model and tool calls",
    labelNames: ["kind"] as const,
    buckets: workBuckets,
    registers,
  }),
  /** `result`: ok, retry, failed. */
  modelCalls: new Counter({
    name: "drover_model_calls_total",
    help: "Model calls by model and result",
    labelNames: ["model", "result"] as const,
    registers,
  }),
  /** `kind`: input (cached ones included), output, cached. */
  modelTokens: new Counter({
    name: "drover_model_tokens_total",
    help: "Tokens by model and kind; input includes cached",
    labelNames: ["model", "kind"] as const,
    registers,
  }),
  modelCost: new Counter({
    name: "drover_model_cost_usd_total",
    help: "Cost of model calls whose price is known, USD",
    labelNames: ["model"] as const,
    registers,
  }),
  modelCostUnknown: new Counter({
    name: "drover_model_calls_unpriced_total",
    help: "Model calls whose price is not known",
    labelNames: ["model"] as const,
    registers,
  }),
  /** `result`: ok, error, skipped. */
  toolCalls: new Counter({
    name: "drover_tool_calls_total",
    help: "Tool calls by tool and result",
    labelNames: ["tool", "result"] as const,
    registers,
  }),
  /** `result`: delivered, retry, failed, disabled. */
  deliveryAttempts: new Counter({
    name: "drover_delivery_attempts_total",
    help: "Attempts to deliver a webhook, by what came of them",
    labelNames: ["result"] as const,
    registers,
  }),
  deliveryDuration: new Histogram({
    name: "drover_delivery_duration_seconds",
    help: "One attempt to deliver a webhook",
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15],
    registers,
  }),
  slotsActive: new Gauge({ name: "drover_slots_active", help: "Slots of this worker that hold a run", registers }),
  slots: new Gauge({ name: "drover_slots", help: "Slots of this worker", registers }),
  /** Without a gap, from next month on. 0: make them (`drover migrate`). */
  partitionsAhead: new Gauge({
    name: "drover_partitions_ahead",
    help: "Coming months whose partition of run_events exists",
    registers: [registry],
  }),
  /** `event`: stalled, wake_lost. */
  queueTrouble: new Counter({
    name: "drover_queue_trouble_total",
    help: "What went wrong with wake-ups; none of it loses a run",
    labelNames: ["event"] as const,
    registers,
  }),
  /** API, at scrape. `state`: due, delayed, running. */
  queueDepth: new Gauge({
    name: "drover_queue_depth",
    help: "Runs that are due, delayed or backing off, running, and waiting; of the whole installation",
    labelNames: ["state"] as const,
    registers,
  }),
  queueOldestAge: new Gauge({
    name: "drover_queue_oldest_age_seconds",
    help: "How long the oldest due run has been waiting; 0 when none is",
    registers,
  }),
  deliveriesPending: new Gauge({
    name: "drover_deliveries_pending",
    help: "Deliveries owed, of the whole installation",
    registers,
  }),
  approvalsPending: new Gauge({
    name: "drover_approvals_pending",
    help: "Questions to people that nobody has decided",
    registers,
  }),
  auditUnchained: new Gauge({
    name: "drover_audit_unchained",
    help: "Entries of the audit trail that the sequencer has not chained yet",
    registers,
  }),
  runsUnclaimable: new Gauge({
    name: "drover_runs_unclaimable",
    help: "Queued runs that no worker has taken because none it met knows their agent or model",
    labelNames: ["agent"] as const,
    registers,
  }),
  workersLive: new Gauge({
    name: "drover_workers_live",
    help: "Workers whose heartbeat is younger than their lease",
    registers,
  }),
  streamsOpen: new Gauge({ name: "drover_streams_open", help: "Live streams this process serves", registers }),
  httpDuration: new Histogram({
    name: "drover_http_request_duration_seconds",
    help: "Requests answered, by route and status; long polls count in full, live streams not at all",
    labelNames: ["method", "route", "status"] as const,
    buckets: waitBuckets,
    registers,
  }),
};

let collecting = false;

/** Adds the process's own figures (memory, event loop, garbage collection). Call it once a process serves `/metrics`. */
export function collectProcessMetrics(): void {
  if (!collecting) collectDefaultMetrics({ register: registry });
  collecting = true;
}

/** Everything in Prometheus' text format. */
export const metricsText = (): Promise<string> => registry.metrics();
