/** The one place where a failure becomes an answer: problem+json with a code of the error table, and never a stack or a SQL text. */
import { DroverError, type FieldError, type Problem, toProblem } from "@drover/protocol";
import { QueueAwayError } from "@drover/queue";
import { faultOf } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { z } from "zod";

export const problemContentType = "application/problem+json; charset=utf-8";
const retryAfterSeconds = 2;
const mostFieldErrors = 100;
export const unknownField = "there is no such field";

/** Answers with the problem that `error` is; logs what is our own fault. */
export function sendProblem(logger: Logger, error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const { problem, retryAfter } = explain(logger, error, request);
  answerProblem(reply, problem, retryAfter);
}

/** The problem that `error` is; logs what is our own fault. */
export function explain(
  logger: Logger,
  error: unknown,
  request: FastifyRequest,
): { problem: Problem; retryAfter?: number } {
  const known = named(toDroverError(error), request);
  const problem = toProblem(known.code, known.message, request.id, known.errors);
  if (problem.status >= 500) {
    const about = {
      request_id: request.id,
      method: request.method,
      route: request.routeOptions.url,
      ...runOf(request),
    };
    if (known.code === "internal_error") logger.error({ err: error, ...about }, "a request failed");
    // One of many in an outage, which is told by whoever notices it: no stack.
    else logger.info({ reason: (error as Error).message, ...about }, "a request was turned away");
  }
  return { problem, ...(known.retryAfterSeconds !== undefined && { retryAfter: known.retryAfterSeconds }) };
}

/** What was asked for, where it is not there. */
function named(error: DroverError, request: FastifyRequest): DroverError {
  const { id } = (request.params ?? {}) as { id?: string };
  if (error.code !== "not_found" || id === undefined || !error.message.startsWith("There is no such")) return error;
  return new DroverError("not_found", `${error.message.slice(0, -1)}: ${id.slice(0, 100)}`);
}

function answerProblem(reply: FastifyReply, problem: Problem, retryAfter?: number): void {
  if (problem.code === "payload_too_large") drain(reply);
  if (problem.code === "auth_failed") reply.header("www-authenticate", challengeOf(reply.request));
  if (retryAfter !== undefined) reply.header("retry-after", retryAfter);
  // Also where a request was refused before any hook ran.
  reply.header("x-request-id", problem.request_id);
  reply.code(problem.status).header("content-type", problemContentType).serializer(JSON.stringify).send(problem);
}

/** Browsers can be asked for Basic credentials only; everybody else sends a bearer token. */
function challengeOf(request: FastifyRequest): string {
  return request.routeOptions.config.basic ? 'Basic realm="drover", charset="UTF-8"' : 'Bearer realm="drover"';
}

/** Reads what is still coming of a refused body and drops it: closing at once would reset the connection under the answer. */
function drain(reply: FastifyReply): void {
  const { raw } = reply.request;
  reply.removeHeader("connection");
  let left = mostDrainedBytes;
  raw.on("data", (chunk: Buffer) => {
    left -= chunk.length;
    if (left < 0) raw.destroy();
  });
  raw.on("error", () => {});
  const timer = setTimeout(() => raw.destroy(), longestDrainMs).unref();
  raw.on("close", () => clearTimeout(timer));
}
const mostDrainedBytes = 64 * 1024 * 1024;
const longestDrainMs = 10_000;

export function runOf(request: FastifyRequest): { task_id?: string } {
  const { id } = (request.params ?? {}) as { id?: string };
  return id?.startsWith("run_") ? { task_id: id } : {};
}

/** What a thrown value means to the client. */
function toDroverError(error: unknown): DroverError {
  if (error instanceof DroverError) {
    if (error.code !== "service_unavailable" || error.retryAfterSeconds !== undefined) return error;
    return new DroverError(error.code, error.message, { retryAfterSeconds });
  }
  const fault = faultOf(error);
  // What the checks of the routes let through, and Postgres does not take.
  if (fault === "data")
    return new DroverError("invalid_input", "The request has text or a number that cannot be kept.", { cause: error });
  if (fault === "unavailable" || fault === "conflict")
    return new DroverError(
      "service_unavailable",
      "The database does not answer. Try again; with an Idempotency-Key a repeated submission is safe.",
      { retryAfterSeconds, cause: error },
    );
  if (error instanceof QueueAwayError)
    return new DroverError("service_unavailable", "The queue does not answer. Try again.", { retryAfterSeconds });
  return fromFastify(error) ?? new DroverError("internal_error", "Something went wrong on our side.", { cause: error });
}

/** Fastify's own refusals of a request. */
function fromFastify(error: unknown): DroverError | null {
  const { code, statusCode, message } = error as { code?: unknown; statusCode?: unknown; message?: unknown };
  switch (code) {
    case "FST_ERR_CTP_BODY_TOO_LARGE":
      return new DroverError("payload_too_large", "The body is too large: at most 1 MiB, for a batch 32 MiB.");
    case "FST_ERR_CTP_INVALID_MEDIA_TYPE":
      return invalid([{ path: "content-type", message: "must be application/json" }]);
    case "FST_ERR_CTP_INVALID_JSON_BODY":
      return invalid([{ path: "", message: "is not valid JSON" }]);
    case "FST_ERR_CTP_INVALID_CONTENT_LENGTH":
      return invalid([{ path: "content-length", message: "does not match the body" }]);
    case "FST_ERR_MAX_PARAM_LENGTH":
      return new DroverError("not_found", "There is nothing of so long a name.");
    case "FST_ERR_BAD_URL":
      return new DroverError("invalid_input", "The path is not a valid URL.");
  }
  if (error instanceof SyntaxError && statusCode === 400)
    return invalid([{ path: "", message: `is not valid JSON: ${message}` }]);
  if (typeof statusCode === "number" && statusCode >= 400 && statusCode < 500)
    return new DroverError("invalid_input", typeof message === "string" ? message : "The request is not valid.");
  return null;
}

/** An `invalid_input` that names its fields. */
export function invalid(errors: FieldError[]): DroverError {
  const [first] = errors;
  const detail =
    errors.length === 1
      ? `${first!.path || "The body"}: ${first!.message}`
      : `${errors.length} fields are not valid, the first is ${first!.path || "the body"}: ${first!.message}`;
  return new DroverError("invalid_input", detail, { errors: errors.slice(0, mostFieldErrors) });
}

type Issue = z.core.$ZodIssue;

/**
 * zod's findings as field errors: unknown fields each by its name, of a union the alternative that comes nearest.
 * @param planned unknown fields that have something better to say than that they are unknown
 */
export function toFieldErrors(
  issues: readonly Issue[],
  planned: Record<string, string> = {},
  at: PropertyKey[] = [],
): FieldError[] {
  return issues.flatMap((issue): FieldError[] => {
    const path = [...at, ...issue.path];
    if (issue.code === "unrecognized_keys")
      return issue.keys.map((key) => ({
        path: pathText([...path, key]),
        message: planned[key] ?? unknownField,
      }));
    if (issue.code === "invalid_union") {
      const nearest = issue.errors.find((option) =>
        option.some((inner) => inner.path.length > 0 || inner.code !== "invalid_type"),
      );
      if (nearest) return toFieldErrors(nearest, planned, path);
      const wanted = issue.errors.flat().flatMap((inner) => (inner.code === "invalid_type" ? [inner.expected] : []));
      return [{ path: pathText(path), message: `must be ${wanted.join(" or ")}` }];
    }
    if (issue.code === "invalid_key" && issue.issues[0])
      return [{ path: pathText(path), message: `has a key that is not valid: ${issue.issues[0].message}` }];
    if (issue.code === "invalid_type" && issue.message.endsWith("received undefined"))
      return [{ path: pathText(path), message: "is required" }];
    return [{ path: pathText(path), message: issue.message }];
  });
}

/** `queries[17].query` */
function pathText(path: readonly PropertyKey[]): string {
  return path.reduce<string>((text, part) => {
    if (typeof part === "number") return `${text}[${part}]`;
    return text === "" ? String(part) : `${text}.${String(part)}`;
  }, "");
}
