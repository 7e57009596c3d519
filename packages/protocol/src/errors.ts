/**
 * The one table of errors. HTTP answers, `error.code` of a run, the OpenAPI document and `docs/errors.md` all come from it;
 * a test holds them together. Codes are stable: clients branch on them.
 */

export interface ErrorRow {
  /** HTTP status of a request that ends so; null where the code only appears inside a run. */
  status: number | null;
  title: string;
  /** Whether the same request, or a retry of the run, may succeed later without a change. */
  retryable: boolean;
  meaning: string;
}

export const errorTable = {
  invalid_input: {
    status: 400,
    title: "Invalid input",
    retryable: false,
    meaning: "The request, or what the run gave to its model, is not valid; `errors` names every wrong field.",
  },
  loop_limit_exceeded: {
    status: 400,
    title: "Loop limit exceeded",
    retryable: false,
    meaning:
      "A synchronous call reached `max_iterations` with nothing to show. Raise `max_iterations` or narrow the query.",
  },
  auth_failed: {
    status: 401,
    title: "Authentication failed",
    retryable: false,
    meaning: "The API key is missing, unknown or revoked; on a run: the model provider refused its key.",
  },
  forbidden: {
    status: 403,
    title: "Forbidden",
    retryable: false,
    meaning: "The API key's role does not allow this.",
  },
  not_found: {
    status: 404,
    title: "Not found",
    retryable: false,
    meaning: "There is no such resource for this tenant.",
  },
  conflict: {
    status: 409,
    title: "Conflict",
    retryable: false,
    meaning: "The resource is not in a state that allows this; for a result: the run failed or was cancelled.",
  },
  contents_expired: {
    status: 410,
    title: "Contents expired",
    retryable: false,
    meaning:
      "The run ended longer ago than its contents are kept (`RETENTION_CONTENTS_DAYS`): its log, input and output are gone; status, times, tokens and cost are not.",
  },
  payload_too_large: {
    status: 413,
    title: "Payload too large",
    retryable: false,
    meaning: "The body is over 1 MiB (a batch: 32 MiB).",
  },
  idempotency_mismatch: {
    status: 422,
    title: "Idempotency key reused",
    retryable: false,
    meaning: "The same `Idempotency-Key` came with another body within 24 hours.",
  },
  tool_error: {
    status: 422,
    title: "Tool error",
    retryable: false,
    meaning: "A tool failed in a way the run could not go on from.",
  },
  rate_limit_exceeded: {
    status: 429,
    title: "Rate limit exceeded",
    retryable: true,
    meaning: "Too many requests; `Retry-After` says when to come back.",
  },
  quota_exceeded: {
    status: 429,
    title: "Quota exceeded",
    retryable: true,
    meaning: "The tenant's quota is used up.",
  },
  internal_error: {
    status: 500,
    title: "Internal error",
    retryable: true,
    meaning: "A bug of ours; `request_id` finds it in the logs.",
  },
  service_unavailable: {
    status: 503,
    title: "Service unavailable",
    retryable: true,
    meaning:
      "The database is away or the process is stopping; `Retry-After` says when to come back. Nothing was accepted, unless the database went away in the moment of the commit: repeat with the same `Idempotency-Key`.",
  },
  time_limit: {
    status: null,
    title: "Time limit",
    retryable: true,
    meaning: "The run reached its soft or hard time limit.",
  },
  deadline: {
    status: null,
    title: "Deadline",
    retryable: false,
    meaning: "The run's absolute deadline passed, running or still queued.",
  },
  iteration_limit: {
    status: null,
    title: "Iteration limit",
    retryable: false,
    meaning: "The run used up `max_iterations` turns.",
  },
  budget: {
    status: null,
    title: "Budget",
    retryable: false,
    meaning:
      "The run stood at a cap: its `max_cost_usd`, its points for actions, or what its session or tenant may spend. Raise it, or wait for the next day or month.",
  },
  price_unknown: {
    status: null,
    title: "Price unknown",
    retryable: false,
    meaning:
      "The run has a cap of money, and its model has no known price: set it in `MODEL_PRICES` or `models.prices`, or submit without the cap.",
  },
  policy_blocked: {
    status: null,
    title: "Blocked by a policy",
    retryable: false,
    meaning: "A policy, or a person it asked, did not let the input or the answer pass; the log says which and why.",
  },
  approval_expired: {
    status: null,
    title: "Approval expired",
    retryable: false,
    meaning: "Nobody decided in time, and the agent's policy is to fail then.",
  },
  output_limit: {
    status: null,
    title: "Output limit",
    retryable: false,
    meaning:
      "The model's reply was cut at its greatest length (`max_tokens`, or the model's own); what it had said is there. Raise it, or let the agent go on (`onLength: \"continue\"`).",
  },
  model_refused: {
    status: null,
    title: "Model refused",
    retryable: false,
    meaning: "The model, or its provider's content filter, did not want to answer this; the output is what it said.",
  },
  model_error: {
    status: null,
    title: "Model error",
    retryable: true,
    meaning: "The model provider kept failing until `retry.max_attempts` was used up, or answered something unusable.",
  },
  uncertain: {
    status: null,
    title: "Uncertain effect",
    retryable: false,
    meaning: "A worker died inside a tool that must not run twice; whether its effect took place is not known.",
  },
  crash_loop: {
    status: null,
    title: "Crash loop",
    retryable: false,
    meaning: "The run took its worker down again and again.",
  },
  no_worker: {
    status: null,
    title: "No worker",
    retryable: true,
    meaning:
      "No living worker knew the run's agent, or the provider of the model it asks for, for as long as `NO_WORKER_SECONDS` says: add it to the workers' configuration, then retry the run.",
  },
  agent_changed: {
    status: null,
    title: "Agent changed",
    retryable: false,
    meaning: "The agent's definition changed while the run was under way and its policy is `strict`.",
  },
} as const satisfies Record<string, ErrorRow>;

export type ErrorCode = keyof typeof errorTable;
export const errorCodes = Object.keys(errorTable) as ErrorCode[];

/** Why a run ended early; also `error.code` of a failed run. */
export const stopReasons = [
  "time_limit",
  "deadline",
  "iteration_limit",
  "budget",
  "price_unknown",
  "policy_blocked",
  "approval_expired",
  "output_limit",
  "model_refused",
  "auth_failed",
  "invalid_input",
  "model_error",
  "tool_error",
  "uncertain",
  "crash_loop",
  "no_worker",
  "agent_changed",
  "internal_error",
] as const satisfies readonly ErrorCode[];
export type StopReason = (typeof stopReasons)[number];

/** `internal_error` and the like on the wire: `errors` names fields of a validation. */
export interface FieldError {
  path: string;
  message: string;
}

/** An error with a code of the table: what a route throws and the error handler turns into problem+json. */
export class DroverError extends Error {
  readonly code: ErrorCode;
  readonly errors: FieldError[] | undefined;
  readonly retryAfterSeconds: number | undefined;
  constructor(
    code: ErrorCode,
    detail: string,
    more: { errors?: FieldError[]; retryAfterSeconds?: number; cause?: unknown } = {},
  ) {
    super(detail, more.cause === undefined ? undefined : { cause: more.cause });
    this.name = "DroverError";
    this.code = code;
    this.errors = more.errors;
    this.retryAfterSeconds = more.retryAfterSeconds;
  }
}
