/** A run as clients see it while it goes on and after: status, result, log, stored record. */
import { z } from "zod";
import { stopReasons } from "./errors.ts";
import { costUsd, metadata, page, timestamp, tokensUsed, wireId } from "./fields.ts";
import { problem } from "./problem.ts";
import { runStatuses } from "./statuses.ts";

const taskId = wireId("run");
const stopReason = z.enum(stopReasons);

export const runError = z
  .object({
    code: z.enum([...stopReasons, "cancelled"]).describe("why; `cancelled` only for cancelled runs"),
    message: z.string(),
  })
  .meta({ id: "RunError", examples: [{ code: "time_limit", message: "The run reached its time limit of 1800 s." }] });

export const toolCall = z
  .object({
    tool_name: z.string(),
    input: z.unknown().describe("what ran"),
    requested_input: z.unknown().optional().describe("what the model had asked for, where a person changed it"),
    output: z.unknown(),
    duration_ms: z.number(),
    status: z
      .enum(["ok", "error", "skipped", "denied", "rejected", "uncertain"])
      .describe(
        "`denied`: a permission or a policy said no; `rejected`: a person did, or nobody answered; `uncertain`: it may have taken effect",
      ),
  })
  .meta({ id: "ToolCall" });

const resultFields = {
  task_id: taskId,
  status: z.enum(["success", "partial", "error"]),
  output: z.string().nullable(),
  stop_reason: stopReason.nullable(),
  cost_usd: costUsd,
  tokens_used: tokensUsed,
  iterations: z.int(),
  duration_seconds: z.number().describe("active time"),
  tools_called: z.array(z.string()).describe("names, each once, in the order of their first call"),
  contents_expired: z
    .literal(true)
    .optional()
    .describe("it ended longer ago than contents are kept: output and calls are gone, the totals are not"),
  metadata,
};

export const runResult = z
  .object({ ...resultFields, tool_calls: z.array(toolCall).optional().describe("with `?include=tool_calls`") })
  .meta({
    id: "Result",
    examples: [
      {
        task_id: "run_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
        status: "success",
        output: "17 * 23 = 391",
        stop_reason: null,
        cost_usd: 0.0021,
        tokens_used: { input: 612, output: 41, cached: 0, total: 653 },
        iterations: 2,
        duration_seconds: 1.84,
        tools_called: ["calculate"],
        metadata: { project: "apollo" },
      },
    ],
  });
export type ResultAnswer = z.infer<typeof runResult>;

const summaryFields = {
  task_id: taskId,
  kind: z.enum(["query", "rollback"]).describe("`rollback`: it undoes what another run did"),
  of_run: taskId.optional().describe("of a rollback: the run it undoes"),
  retry_of: taskId
    .optional()
    .describe("of a retry: the run it takes up again, with whose finished steps its log begins"),
  status: z.enum(runStatuses),
  waiting_for: z.string().optional().describe("what a waiting run waits for: `approval` or `budget`"),
  waiting_level: z
    .enum(["actions", "run", "session", "tenant_day", "tenant_month"])
    .optional()
    .describe("of a run that waits for its budget: the cap it stands at"),
  stop_reason: stopReason.optional().describe("why a run ended early"),
  reason: z
    .object({
      code: z.enum(["no_worker"]),
      text: z.string().describe("a sentence for people"),
      since: timestamp,
    })
    .optional()
    .describe(
      "why a run does not move: `no_worker`, no worker that is alive knows its agent, or the model it asks for",
    ),
  agent: z.string(),
  batch_id: wireId("batch").optional(),
  user_id: z.string().optional(),
  attempt: z.int().describe("try of the current step, from 1"),
  cost_usd: costUsd,
  tokens_used: tokensUsed,
  next_attempt_at: timestamp.optional().describe("while queued: when it is due, in the future"),
  cancel_requested: z.literal(true).optional(),
  metadata,
  created_at: timestamp,
  started_at: timestamp.nullable(),
  finished_at: timestamp.nullable(),
};

const counts = { iterations: z.int(), steps: z.int().describe("finished model and tool calls") };

export const runSummary = z.object({ ...summaryFields, progress: z.object(counts) }).meta({ id: "Summary" });
export type RunSummary = z.infer<typeof runSummary>;
export const runPage = page(runSummary).meta({ id: "SummaryPage" });

export const runStatus = z
  .object({
    ...summaryFields,
    progress: z.object({
      ...counts,
      last_event: z.string().nullable(),
      partial_output: z.string().nullable().describe("the text so far, while it runs"),
    }),
    result: runResult.optional().describe("once final"),
    error: runError.optional().describe("once failed or cancelled; or why it is partial"),
  })
  .meta({ id: "Status" });
export type StatusAnswer = z.infer<typeof runStatus>;

/** The stored record of a run: what was asked, what it did, what came of it. */
export const execution = z
  .object({
    ...summaryFields,
    progress: z.object(counts),
    query: z.string(),
    context: z.record(z.string(), z.unknown()).optional(),
    settings: z
      .object({
        system_prompt: z.string().optional(),
        model: z.string().optional(),
        temperature: z.number().optional(),
        max_tokens: z.int().optional(),
        max_iterations: z.int(),
        max_cost_usd: z.number().optional(),
        budget: z.object({ actions: z.number().optional(), at_cap: z.enum(["stop", "pause"]).optional() }).optional(),
        priority: z.int(),
        limits: z.object({ soft_seconds: z.number(), hard_seconds: z.number(), deadline: timestamp.optional() }),
        retry: z.object({ max_attempts: z.int(), backoff_ms: z.int(), max_backoff_ms: z.int() }),
      })
      .describe("as they hold for the run, defaults filled in"),
    duration_seconds: z.number().describe("active time; the current owner's share counts when it leaves"),
    last_seq: z.int().describe("events in the log"),
    result: z
      .object({ ...resultFields, tool_calls: z.array(toolCall) })
      .nullable()
      .describe("null until final"),
    error: runError.nullable(),
  })
  .meta({ id: "Execution" });
export type ExecutionAnswer = z.infer<typeof execution>;

export const eventTypes = [
  "run.queued",
  "run.started",
  "steps.copied",
  "agent.changed",
  "action.called",
  "model.call",
  "model.partial",
  "model.failed",
  "tool.intent",
  "tool.verified",
  "tool.held",
  "tool.result",
  "policy.applied",
  "approval.requested",
  "approval.decided",
  "budget.raised",
  "run.waiting",
  "run.resumed",
  "run.retrying",
  "run.handed_over",
  "run.rescued",
  "run.cancel_requested",
  "run.completed",
  "run.partial",
  "run.failed",
  "run.cancelled",
] as const;

export const logEvent = z
  .object({
    seq: z.int().describe("from 1, without gaps"),
    type: z.enum(eventTypes),
    at: timestamp,
    data: z.record(z.string(), z.unknown()),
  })
  .meta({
    id: "Event",
    examples: [
      {
        seq: 2,
        type: "run.started",
        at: "2026-11-21T09:30:00.004Z",
        data: { epoch: 1, attempt: 1, worker: "01936f3e-7c5a-7d41-8a3e-5b0f9c2d1e4a" },
      },
    ],
  });
export const eventPage = page(logEvent).meta({ id: "EventPage" });

/** The answer where a run ended with nothing that can be called a result; `result` holds what there was. */
export const runProblem = problem
  .extend({ task_id: taskId, error: runError, result: runResult })
  .meta({ id: "RunProblem", examples: undefined });
export type RunProblem = z.infer<typeof runProblem>;

export const cancelled = z
  .object({
    task_id: taskId,
    status: z.enum(runStatuses),
    cancel_requested: z.literal(true).optional().describe("it is running: its worker has been told"),
  })
  .meta({ id: "Cancelled", examples: [{ task_id: "run_01936f3e7c5a7d418a3e5b0f9c2d1e4a", status: "cancelled" }] });
