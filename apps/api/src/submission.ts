/** From a wire body to a submission: defaults filled in, and everything checked that depends on this installation. */
import { validateUrl } from "@drover/egress";
import { permissions, type RunInput } from "@drover/harness";
import { isKnownModel } from "@drover/llm/known";
import type { FieldError, SubmitBatchBody, SubmitBody } from "@drover/protocol";
import type { BatchSubmission, Submission } from "@drover/runs";
import { checkBounds } from "./bounds.ts";
import type { Context } from "./context.ts";
import { type Caller, may } from "./keys.ts";
import { invalid } from "./problems.ts";

type Installation = Pick<Context, "config" | "agents" | "models" | "bounds">;

const defaults = { agent: "default", iterations: 10, attempts: 3, backoffMs: 1000, maxBackoffMs: 60_000 };

/** @throws DroverError `invalid_input` naming every wrong field */
export function toSubmission(body: SubmitBody, caller: Caller, installation: Installation): Submission {
  const errors: FieldError[] = [];
  const submission = build(body, caller, installation, errors, "");
  if (errors.length > 0) throw invalid(errors);
  return submission;
}

/** Item by item; a wrong one refuses all. @throws DroverError `invalid_input` naming every wrong field of every item */
export function toBatchSubmission(body: SubmitBatchBody, caller: Caller, installation: Installation): BatchSubmission {
  const { queries, ...shared } = body;
  const errors: FieldError[] = [];
  // Wrong defaults are the batch's own mistake, not ten thousand items'.
  const { callback_url } = shared;
  build(
    { ...itemDefaults(shared), ...(callback_url !== undefined && { callback_url }), query: "-" },
    caller,
    installation,
    errors,
    "",
  );
  if (shared.events && shared.callback_url === undefined) errors.push(needsCallback("events"));
  const items = queries.map((item, index) => {
    const own = typeof item === "string" ? { query: item } : item;
    return build({ ...itemDefaults(shared), ...own }, caller, installation, errors, `queries[${index}].`, own);
  });
  if (errors.length > 0) throw invalid(errors);
  return {
    tenant: caller.tenant,
    submittedBy: caller.keyId,
    items,
    callbackUrl: shared.callback_url ?? null,
    callbackEvents: shared.events ?? null,
    metadata: shared.metadata ?? {},
  };
}

/** A batch's defaults as an item takes them. Its callback hears of the items only as far as its `events` name them. */
function itemDefaults(shared: Omit<SubmitBatchBody, "queries">): Omit<SubmitBody, "query"> {
  const { events, callback_url, ...rest } = shared;
  const ofItems = events?.filter((type) => type !== "batch.completed") ?? [];
  if (callback_url === undefined || ofItems.length === 0) return rest;
  return { ...rest, callback_url, events: ofItems };
}

/** `own`: the fields that are the item's own. Only these are blamed on it; wrong defaults were reported once. */
function build(
  body: SubmitBody,
  caller: Caller,
  { config, agents, models, bounds }: Installation,
  errors: FieldError[],
  prefix: string,
  own: Partial<SubmitBody> = body,
): Submission {
  const report = (path: string, message: string) => {
    const field = path.split(".")[0] as keyof SubmitBody;
    if (field in own) errors.push({ path: prefix + path, message });
  };
  const agent = body.agent ?? defaults.agent;
  const definition = Object.hasOwn(agents, agent) ? agents[agent] : undefined;
  if (!definition) report("agent", `there is no agent "${agent}"; agents: ${Object.keys(agents).sort().join(", ")}`);

  if (body.model !== undefined && models && !isKnownModel(models, body.model))
    report("model", `there is no model "${body.model}"; models: ${models.join(", ")}`);
  const ofRole = bounds[caller.role];
  if (ofRole) checkBounds(body, ofRole, `role ${caller.role}`, report);
  if (definition?.submit) checkBounds(body, definition.submit, `agent ${agent}`, report);
  const limits = limitsOf(body, config, report);
  const retry = retryOf(body, report);
  if (body.callback_url !== undefined) {
    const wrong = validateUrl(body.callback_url, config.DROVER_EGRESS_ALLOW);
    if (wrong !== null) report("callback_url", wrong);
  }
  if (body.events && body.callback_url === undefined) report("events", needsCallback("events").message);

  const points = body.budget?.actions ?? definition?.actionBudget;
  const input: RunInput = {
    query: body.query,
    agent,
    ...(body.context && { context: body.context }),
    ...(body.system_prompt !== undefined && { system_prompt: body.system_prompt }),
    ...(body.model !== undefined && { model: body.model }),
    ...(body.temperature !== undefined && { temperature: body.temperature }),
    ...(body.max_tokens !== undefined && { max_tokens: body.max_tokens }),
    max_iterations: body.max_iterations ?? definition?.maxIterations ?? defaults.iterations,
    ...(body.max_cost_usd !== undefined && { max_cost_usd: body.max_cost_usd }),
    ...(points !== undefined && { action_budget: points }),
    ...(body.budget?.at_cap && { on_budget: body.budget.at_cap }),
    limits,
    retry,
    ...(!may(caller.role, "admin_tools") && {
      permissions: permissions.filter((permission) => permission !== "admin"),
    }),
    // Whoever names the callback must not get by its links what its key does not allow.
    ...(body.events?.includes("query.waiting") &&
      may(caller.role, "approve") &&
      config.DROVER_APPROVE_OWN && { callback_decides: true }),
  };
  return {
    tenant: caller.tenant,
    submittedBy: caller.keyId,
    input,
    userId: body.user_id ?? null,
    priority: body.priority ?? 0,
    delayMs: Math.round((body.delay_seconds ?? 0) * 1000),
    callbackUrl: body.callback_url ?? null,
    callbackEvents: body.events ?? null,
    metadata: body.metadata ?? {},
  };
}

const needsCallback = (path: string): FieldError => ({ path, message: "is for a callback: give callback_url too" });

type Report = (path: string, message: string) => void;

function limitsOf(body: SubmitBody, config: Installation["config"], report: Report): RunInput["limits"] {
  const { soft_seconds, hard_seconds, deadline } = body.limits ?? {};
  const hardMs = Math.round((hard_seconds ?? config.HARD_TIME_LIMIT_SECONDS) * 1000);
  const softMs =
    soft_seconds !== undefined
      ? Math.round(soft_seconds * 1000)
      : hard_seconds !== undefined
        ? Math.floor((hardMs * 5) / 6)
        : Math.round(config.SOFT_TIME_LIMIT_SECONDS * 1000);
  if (softMs >= hardMs)
    report(
      "limits.soft_seconds",
      hard_seconds === undefined
        ? `must be less than the hard limit of ${hardMs / 1000}; give limits.hard_seconds to raise it`
        : `must be less than limits.hard_seconds (${hardMs / 1000})`,
    );
  const limits = { soft_seconds: softMs / 1000, hard_seconds: hardMs / 1000 };
  if (deadline === undefined) return limits;
  const at = new Date(deadline);
  if (Number.isNaN(at.getTime())) report("limits.deadline", "is not a time");
  else if (at.getTime() <= Date.now()) report("limits.deadline", "must be in the future");
  else return { ...limits, deadline: at.toISOString() };
  return limits;
}

function retryOf(body: SubmitBody, report: Report): RunInput["retry"] {
  const { max_attempts = defaults.attempts, backoff_ms, max_backoff_ms } = body.retry ?? {};
  if (backoff_ms !== undefined && max_backoff_ms !== undefined && max_backoff_ms < backoff_ms)
    report("retry.max_backoff_ms", `must not be less than retry.backoff_ms (${backoff_ms})`);
  return {
    max_attempts,
    backoff_ms: backoff_ms ?? Math.min(defaults.backoffMs, max_backoff_ms ?? defaults.maxBackoffMs),
    max_backoff_ms: max_backoff_ms ?? Math.max(defaults.maxBackoffMs, backoff_ms ?? 0),
  };
}
