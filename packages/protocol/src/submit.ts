/** What clients submit: one query, or a batch of them. Bounds are here; what depends on configuration is checked by the API. */
import { z } from "zod";
import { metadataInput, plainText, shallow, timeInput, wireId } from "./fields.ts";
import { batchStatuses, runStatuses } from "./statuses.ts";

/** Fields of the contract whose feature is not built yet: refused by name. */
export const plannedFields: Record<string, string> = {
  session_id: "sessions are not available yet: leave it out, each query starts afresh",
  session_usd: "sessions are not available yet, and so is their cap: leave it out",
};

/** The ends of a query: what a callback that names no events gets. */
const finalMessageTypes = ["query.completed", "query.partial", "query.failed", "query.cancelled"] as const;
const queryMessageTypes = [...finalMessageTypes, "query.waiting"] as const;
const batchMessageTypes = [...queryMessageTypes, "batch.completed"] as const;
/** What an endpoint can subscribe to, and what the feed has. */
export const messageTypes = [...batchMessageTypes, "endpoint.disabled"] as const;
/** What a callback of a query or a batch gets when it names no events. */
export const defaultMessageTypes = [...finalMessageTypes, "batch.completed"] as const;
export type MessageType = (typeof messageTypes)[number];

const maxBatchItems = 10_000;
const seconds = z.number().min(0.01).max(604_800);

export const queryText = z
  .string()
  .max(100_000)
  .refine((text) => text.trim() !== "", "must not be empty or blank")
  .meta({ minLength: 1 });

const eventsOf = <T extends readonly [string, ...string[]]>(types: T) =>
  z
    .array(z.enum(types, { error: `must be one of ${types.join(", ")}` }))
    .min(1)
    .max(types.length);

const settings = {
  agent: z
    .string()
    .min(1)
    .max(64)
    .refine((name) => name !== "auto", "`auto` is not available yet: name an agent")
    .optional()
    .describe("which agent runs it (default `default`)"),
  context: shallow(z.record(z.string(), z.unknown())).optional().describe("data for the agent, any JSON object"),
  user_id: plainText(255).min(1).optional().describe("whom the query is for; returned everywhere, filterable"),
  system_prompt: z.string().min(1).max(100_000).optional().describe("in place of the agent's"),
  model: z
    .string()
    .max(200)
    .regex(/^[^/\s]+\/\S+$/, "must be provider/model, such as anthropic/claude-sonnet-5")
    .optional()
    .describe("`provider/model`, in place of the agent's"),
  temperature: z.number().min(0).max(2).optional(),
  max_tokens: z.int().min(1).max(1_000_000).optional().describe("of one model reply"),
  max_iterations: z.int().min(1).max(50).optional().describe("model turns (default 10, or the agent's)"),
  limits: z
    .strictObject({
      soft_seconds: seconds
        .optional()
        .describe(
          "active time after which the agent wraps up; less than `hard_seconds` (default: the process's, or 5/6 of `hard_seconds`)",
        ),
      hard_seconds: seconds.optional().describe("active time after which the run is ended"),
      deadline: timeInput.optional().describe("absolute, counts in the queue too"),
    })
    .optional(),
  max_cost_usd: z
    .number()
    .positive()
    .max(1_000_000)
    .optional()
    .describe(
      "what its model calls may cost: the worst case of each is set aside before it; at the cap the agent wraps up, or waits (`budget.at_cap`)",
    ),
  budget: z
    .strictObject({
      actions: z
        .number()
        .min(0)
        .max(1_000_000_000)
        .optional()
        .describe("points its tool calls may take together (default: the agent's)"),
      at_cap: z
        .enum(["stop", "pause"])
        .optional()
        .describe(
          "`stop`: wrap up and end; `pause`: wait until `POST /query/{id}/budget` raises it (default: the agent's, else `stop`)",
        ),
    })
    .optional(),
  priority: z.int().min(0).max(9).optional().describe("9 is the most urgent (default 0)"),
  delay_seconds: z.number().min(0).max(2_592_000).optional().describe("start this much later, up to 30 days"),
  retry: z
    .strictObject({
      max_attempts: z.int().min(1).max(10).optional().describe("tries of one step (default 3)"),
      backoff_ms: z
        .int()
        .min(0)
        .max(3_600_000)
        .optional()
        .describe("before the second try (default 1,000); doubles, jittered"),
      max_backoff_ms: z.int().min(0).max(86_400_000).optional().describe("at most so long (default 60,000)"),
    })
    .optional(),
  callback_url: z
    .string()
    .min(1)
    .max(2048)
    .optional()
    .describe("http(s) URL that gets a signed webhook when the run ends"),
  metadata: metadataInput.optional(),
};

const example = { query: "What is 17 * 23?", user_id: "u-42", metadata: { project: "apollo" } };

export const submitBody = z
  .strictObject({
    query: queryText.describe("what the agent is to do"),
    ...settings,
    events: eventsOf(queryMessageTypes)
      .optional()
      .describe("what the callback hears of (default: every end; not `query.waiting`)"),
  })
  .meta({ id: "Submit", examples: [example] });
export type SubmitBody = z.infer<typeof submitBody>;

export const submitWithCallbackBody = submitBody
  .extend({ callback_url: settings.callback_url.unwrap() })
  .meta({ id: "SubmitWithCallback", examples: [{ ...example, callback_url: "https://example.com/hooks/drover" }] });

export const submitBatchBody = z
  .strictObject({
    queries: z
      .array(z.union([queryText, submitBody]))
      .min(1)
      .max(maxBatchItems)
      .describe("strings, or bodies of `POST /query`"),
    ...settings,
    events: eventsOf(batchMessageTypes)
      .optional()
      .describe(
        "what the callback hears of (default: `batch.completed` alone; name the items' ends to hear of these too)",
      ),
  })
  .describe("All fields but `queries` are defaults for the items; an item's own field replaces the default as a whole.")
  .meta({
    id: "SubmitBatch",
    examples: [
      { queries: ["What is 2 + 2?", { query: "What is 17 * 23?", priority: 5 }], metadata: { project: "apollo" } },
    ],
  });
export type SubmitBatchBody = z.infer<typeof submitBatchBody>;

export const retryBody = submitBody
  .pick({ limits: true, max_iterations: true, max_cost_usd: true, model: true })
  .describe("What is to be different from the query that is retried; `limits` as a whole.")
  .meta({ id: "Retry", examples: [{ max_iterations: 20 }] })
  .nullish();
export type RetryBody = z.infer<typeof retryBody>;

const taskId = wireId("run");

/** Where a query that is not final yet can be followed. */
export const accepted = z
  .object({
    task_id: taskId,
    status: z.enum(runStatuses),
    check_url: z.string(),
    result_url: z.string(),
    events_url: z.string(),
  })
  .meta({
    id: "Accepted",
    examples: [
      {
        task_id: "run_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
        status: "queued",
        check_url: "/query/status/run_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
        result_url: "/query/result/run_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
        events_url: "/query/run_01936f3e7c5a7d418a3e5b0f9c2d1e4a/events",
      },
    ],
  });
export type AcceptedAnswer = z.infer<typeof accepted>;

export const batchAccepted = z
  .object({ batch_id: wireId("batch"), status: z.enum(batchStatuses), total: z.int(), check_url: z.string() })
  .meta({ id: "BatchAccepted" });
export type BatchAcceptedAnswer = z.infer<typeof batchAccepted>;
