/** Drover over HTTP, as the client commands and the demo need it. What the service refuses becomes a `CliError`. */
import type { LogEvent } from "@drover/harness";
import type {
  AcceptedAnswer,
  ApprovalAnswer,
  BatchAcceptedAnswer,
  BatchAnswer,
  BudgetAnswer,
  DecidedAnswer,
  DeliveryAnswer,
  EndpointAnswer,
  Problem,
  RaisedAnswer,
  ResultAnswer,
  RunProblem,
  RunSummary,
  StatusAnswer,
} from "@drover/protocol";
import { CliError, exitCodes, fieldLines } from "../exit.ts";

export interface Target {
  /** Base URL without a slash at its end. */
  url: string;
  key: string | undefined;
}

/** What a run has come to: its result, the error it ended with, or not the end yet. */
export type Outcome =
  | { final: true; result: ResultAnswer }
  | { final: true; result: ResultAnswer; problem: RunProblem }
  | { final: false };

interface Call {
  method?: "GET" | "POST" | "PUT" | "PATCH" | "DELETE";
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  /** Statuses over 299 that are an answer. */
  accept?: number[];
  timeoutMs?: number;
  /** The time limit is for the answer's beginning only. */
  stream?: true;
}

/** How long an answer may take, on top of what the request itself asks the service to wait. */
const answerMs = 30_000;

export class DroverClient {
  readonly #target: Target;

  constructor(target: Target) {
    this.#target = target;
  }

  get url(): string {
    return this.#target.url;
  }

  async submit(body: unknown, idempotencyKey?: string): Promise<AcceptedAnswer> {
    const headers = { ...(idempotencyKey !== undefined && { "idempotency-key": idempotencyKey }) };
    return await json(await this.request("/query", { method: "POST", body, headers }));
  }

  /** The status now, or with `waitSeconds` when the run is final, at the latest after so long. */
  async status(id: string, waitSeconds = 0, signal?: AbortSignal): Promise<StatusAnswer> {
    const path = `/query/status/${encodeURIComponent(id)}${waitSeconds > 0 ? `?wait=${waitSeconds}` : ""}`;
    return await json(
      await this.request(path, { ...(signal && { signal }), timeoutMs: answerMs + waitSeconds * 1000 }),
    );
  }

  async result(id: string, options: { toolCalls?: boolean } = {}): Promise<Outcome> {
    const path = `/query/result/${encodeURIComponent(id)}${options.toolCalls ? "?include=tool_calls" : ""}`;
    const response = await this.request(path, { accept: [409] });
    if (response.status === 202) return { final: false };
    if (response.status !== 409) return { final: true, result: await json(response) };
    const problem = await json<RunProblem>(response);
    return { final: true, result: problem.result, problem };
  }

  async cancel(id: string): Promise<{ task_id: string; status: string; cancel_requested?: true }> {
    return await json(await this.request(`/query/${encodeURIComponent(id)}/cancel`, { method: "POST" }));
  }

  async list(query: URLSearchParams): Promise<{ data: RunSummary[]; next_cursor: string | null }> {
    return await json(await this.request(`/query?${query}`));
  }

  /** One page of the log after `after`, oldest first. */
  async events(id: string, after: number): Promise<{ data: LogEvent[]; next_cursor: string | null }> {
    return await json(await this.request(`/query/${encodeURIComponent(id)}/events?after=${after}&limit=200`));
  }

  async rollBack(id: string): Promise<AcceptedAnswer> {
    return await json(await this.request(`/query/${encodeURIComponent(id)}/rollback`, { method: "POST" }));
  }

  async retry(id: string, body: unknown, idempotencyKey?: string): Promise<AcceptedAnswer> {
    const headers = { ...(idempotencyKey !== undefined && { "idempotency-key": idempotencyKey }) };
    return await json(await this.request(`/query/${encodeURIComponent(id)}/retry`, { method: "POST", body, headers }));
  }

  /** What people are or were asked; about one run, or all. */
  async approvals(
    runId: string | undefined,
    query: URLSearchParams,
  ): Promise<{ data: ApprovalAnswer[]; next_cursor: string | null }> {
    const path = runId === undefined ? "/approvals" : `/query/${encodeURIComponent(runId)}/approvals`;
    return await json(await this.request(`${path}?${query}`));
  }

  async approval(id: string): Promise<ApprovalAnswer> {
    return await json(await this.request(`/approvals/${encodeURIComponent(id)}`));
  }

  async decide(id: string, body: unknown): Promise<DecidedAnswer> {
    return await json(await this.request(`/approvals/${encodeURIComponent(id)}`, { method: "POST", body }));
  }

  async budget(): Promise<BudgetAnswer> {
    return await json(await this.request("/budget"));
  }

  async setBudget(body: unknown): Promise<BudgetAnswer> {
    return await json(await this.request("/budget", { method: "PUT", body }));
  }

  async raiseBudget(id: string, body: unknown): Promise<RaisedAnswer> {
    return await json(await this.request(`/query/${encodeURIComponent(id)}/budget`, { method: "POST", body }));
  }

  async submitBatch(body: unknown, idempotencyKey?: string): Promise<BatchAcceptedAnswer> {
    const headers = { ...(idempotencyKey !== undefined && { "idempotency-key": idempotencyKey }) };
    return await json(await this.request("/query/batch", { method: "POST", body, headers }));
  }

  async batch(id: string, query: URLSearchParams, signal?: AbortSignal): Promise<BatchAnswer> {
    return await json(
      await this.request(`/query/batch/${encodeURIComponent(id)}?${query}`, { ...(signal && { signal }) }),
    );
  }

  async cancelBatch(id: string): Promise<BatchAnswer> {
    return await json(await this.request(`/query/batch/${encodeURIComponent(id)}/cancel`, { method: "POST" }));
  }

  async endpoints(query: URLSearchParams): Promise<{ data: EndpointAnswer[]; next_cursor: string | null }> {
    return await json(await this.request(`/webhooks?${query}`));
  }

  async endpoint(id: string): Promise<EndpointAnswer> {
    return await json(await this.request(`/webhooks/${encodeURIComponent(id)}`));
  }

  async createEndpoint(body: unknown): Promise<EndpointAnswer & { secret: string }> {
    return await json(await this.request("/webhooks", { method: "POST", body }));
  }

  async updateEndpoint(id: string, body: unknown): Promise<EndpointAnswer> {
    return await json(await this.request(`/webhooks/${encodeURIComponent(id)}`, { method: "PATCH", body }));
  }

  async deleteEndpoint(id: string): Promise<void> {
    await this.request(`/webhooks/${encodeURIComponent(id)}`, { method: "DELETE" });
  }

  async rotateSecret(id: string, overlapSeconds?: number): Promise<{ secret: string }> {
    const body = overlapSeconds === undefined ? undefined : { overlap_seconds: overlapSeconds };
    return await json(
      await this.request(`/webhooks/${encodeURIComponent(id)}/rotate-secret`, { method: "POST", body }),
    );
  }

  async testEndpoint(id: string): Promise<DeliveryAnswer> {
    return await json(await this.request(`/webhooks/${encodeURIComponent(id)}/test`, { method: "POST" }));
  }

  async deliveries(
    runId: string,
    query: URLSearchParams,
  ): Promise<{ data: DeliveryAnswer[]; next_cursor: string | null }> {
    return await json(await this.request(`/query/${encodeURIComponent(runId)}/deliveries?${query}`));
  }

  async redeliver(id: string): Promise<DeliveryAnswer> {
    return await json(await this.request(`/deliveries/${encodeURIComponent(id)}/redeliver`, { method: "POST" }));
  }

  async webhookSecret(): Promise<string> {
    return (await json<{ secret: string }>(await this.request("/webhooks/secret"))).secret;
  }

  /** @throws CliError for anything but an answer below 300 or one of `accept`; exit code 3 when there is no answer at all. */
  async request(path: string, call: Call = {}): Promise<Response> {
    const { method = "GET", body, headers = {}, accept = [], timeoutMs = answerMs } = call;
    const { url, key } = this.#target;
    const timeout = new AbortController();
    const timer = setTimeout(() => timeout.abort(), timeoutMs).unref();
    let response: Response;
    try {
      response = await fetch(url + path, {
        method,
        headers: {
          ...(key !== undefined && { authorization: `Bearer ${key}` }),
          ...(body !== undefined && { "content-type": "application/json" }),
          ...headers,
        },
        ...(body !== undefined && { body: JSON.stringify(body) }),
        redirect: "manual",
        signal: call.signal ? AbortSignal.any([call.signal, timeout.signal]) : timeout.signal,
      });
    } catch (error) {
      if (call.signal?.aborted) throw error;
      const why = timeout.signal.aborted ? `no answer within ${timeoutMs / 1000} s` : reasonOf(error);
      throw new CliError(exitCodes.unreachable, `cannot reach the service at ${url} (${why})`, [
        "start it with `npm start` (`drover dev`), or say where it is with --url or DROVER_URL",
      ]);
    }
    if (call.stream) clearTimeout(timer);
    if (response.status < 300 || accept.includes(response.status)) return response;
    throw await this.#refusal(response);
  }

  async #refusal(response: Response): Promise<CliError> {
    const problem = (await response.json().catch(() => undefined)) as Partial<Problem> | undefined;
    const { status } = response;
    if (problem?.code === undefined)
      return new CliError(
        exitCodes.unreachable,
        `${this.#target.url} answered with HTTP ${status}, but not as Drover does; is it another service?`,
      );
    const more = fieldLines(problem.errors);
    if (status === 401 && this.#target.key === undefined)
      more.push("give an API key with --key or DROVER_API_KEY; `drover keys create` makes one");
    const after = response.headers.get("retry-after");
    if (after && (status === 429 || status === 503)) more.push(`try again in ${after} s`);
    if (status >= 500 && problem.request_id) more.push(`request id: ${problem.request_id}`);
    // With one wrong field the detail says the same as its line.
    const detail = more.length > 0 && problem.errors?.length ? (problem.title ?? "refused") : problem.detail;
    return new CliError(exitCodeOf(status), `${problem.code}: ${detail}`, more);
  }
}

function exitCodeOf(status: number) {
  if (status === 401 || status === 403) return exitCodes.refused;
  if (status === 404) return exitCodes.notFound;
  return status >= 500 ? exitCodes.unreachable : exitCodes.rejected;
}

async function json<T>(response: Response): Promise<T> {
  try {
    return (await response.json()) as T;
  } catch (error) {
    throw new CliError(exitCodes.unreachable, `the answer of ${response.url} is not JSON (${reasonOf(error)})`);
  }
}

/** `fetch` hides why behind "fetch failed". */
export function reasonOf(error: unknown): string {
  const cause = (error as { cause?: unknown }).cause ?? error;
  if (cause instanceof AggregateError && cause.errors.length > 0) return reasonOf(cause.errors[0]);
  const { code, message } = cause as { code?: string; message?: string };
  if (code === "ECONNREFUSED") return "connection refused";
  if (code === "ENOTFOUND") return "no such host";
  return message || code || String(cause);
}
