/** Submitting: 202 after the commit, never before. `POST /agent/query` waits for the end and answers with the result. */
import {
  accepted,
  batchAccepted,
  hashJson,
  runProblem as runProblemSchema,
  runResult,
  type SubmitBody,
  submitBatchBody,
  submitBody,
  submitWithCallbackBody,
  toWireId,
} from "@drover/protocol";
import { type Accepted, type Idempotency, isFinal, readOutcome, readReplay, readRun, waitForRun } from "@drover/runs";
import type { FastifyRequest } from "fastify";
import { z } from "zod";
import { acceptedAnswer, resultAnswer, runProblem } from "../answers.ts";
import type { App, Context } from "../context.ts";
import { invalid, problemContentType } from "../problems.ts";
import { toBatchSubmission, toSubmission } from "../submission.ts";
import { untilClosed } from "../waiting.ts";

const batchBodyLimit = 32 * 1024 * 1024;
const syncWaitSeconds = { default: 25, most: 300 };
const retryAfterSeconds = 1;

export const idempotencyKey = z
  .string()
  .min(1)
  .max(255)
  .optional()
  .describe("The same key and body within 24 hours gives the same answer, and makes nothing new.");
export const acceptedHeaders = {
  location: "where the status is",
  "retry-after": "seconds until asking makes sense",
  "idempotent-replayed": "`true`: the `Idempotency-Key` was used before, and this is what it made",
};
const answers = {
  202: { description: "Accepted: it is stored and will run", content: { "application/json": { schema: accepted } } },
};

export function submitRoutes(app: App, context: Context): void {
  const config = {
    scope: "submit",
    problems: ["payload_too_large", "idempotency_mismatch"],
    reads: z.object({ "Idempotency-Key": idempotencyKey }),
    answerHeaders: { 202: acceptedHeaders },
  } as const;
  const tags = ["submit"];

  const routes = [
    { url: "/query", body: submitBody, summary: "Submit a query" },
    { url: "/query/async", body: submitBody, summary: "Submit a query (the same as `POST /query`)" },
    { url: "/query/with-callback", body: submitWithCallbackBody, summary: "Submit a query whose end is told to a URL" },
  ];
  for (const { url, body, summary } of routes) {
    app.route({
      method: "POST",
      url,
      config,
      schema: { tags, summary, body, response: answers },
      handler: async (request, reply) => {
        const made = await submit(request, request.body);
        return reply.code(202).headers(acceptedHeadersOf(made)).send(acceptedAnswer(made.id));
      },
    });
  }

  app.route({
    method: "POST",
    url: "/agent/query",
    config: {
      ...config,
      reads: config.reads.extend({
        Prefer: z
          .string()
          .optional()
          .describe(
            `\`wait=N\`: how long to wait, 0 to ${syncWaitSeconds.most} seconds (default ${syncWaitSeconds.default})`,
          ),
      }),
      answerHeaders: { 202: { ...acceptedHeaders, "preference-applied": "the wait that was granted" } },
    },
    schema: {
      tags,
      summary: "Submit a query and wait for its result",
      description:
        "Answers when the run ends, or with 202 when the wait is over: the run goes on either way, also when the client hangs up. " +
        "A run that failed or was cancelled answers as `GET /query/result/{id}` does, but for two codes of its own: " +
        "`loop_limit_exceeded` and `tool_error`.",
      body: submitBody,
      response: {
        200: { description: "The run ended with a result", content: { "application/json": { schema: runResult } } },
        ...answers,
        ...runProblems({
          400: "`loop_limit_exceeded`: all iterations used up with nothing to show; or `invalid_input`",
          409: "`conflict`: the run failed or was cancelled; `error` says why",
          422: "`tool_error`: a tool ended the run; or `idempotency_mismatch`",
        }),
      },
    },
    handler: async (request, reply) => {
      const { tenant } = request.caller;
      const preferred = preferredWait(request);
      const made = await submit(request, request.body);
      const { pool, blobs, signals } = context;
      const gone = untilClosed(reply, context);
      await waitForRun({
        db: pool,
        blobs,
        signals,
        tenant,
        runId: made.id,
        signal: gone,
        waitMs: (preferred ?? syncWaitSeconds.default) * 1000,
      });
      reply.headers(acceptedHeadersOf(made));
      if (preferred !== undefined) reply.header("preference-applied", `wait=${preferred}`);
      const run = await readRun(pool, tenant, made.id);
      if (!run || !isFinal(run.status)) return reply.code(202).send(acceptedAnswer(made.id, run?.status));
      reply.removeHeader("retry-after");
      const outcome = (await readOutcome(pool, blobs, run))!;
      if (run.status === "completed" || run.status === "partial")
        return reply.code(200).send(resultAnswer(outcome.result));
      const { code, status } = syncFailure(outcome.error?.code);
      return reply
        .code(status)
        .header("content-type", problemContentType)
        .send(runProblem(run, outcome, { code, requestId: request.id }));
    },
  });

  app.route({
    method: "POST",
    url: "/query/batch",
    bodyLimit: batchBodyLimit,
    config,
    schema: {
      tags,
      summary: "Submit up to 10,000 queries as one batch",
      description: "All items are accepted or none is; an error names its item, as in `queries[17].query`.",
      body: submitBatchBody,
      response: {
        202: { description: "Accepted, all of it", content: { "application/json": { schema: batchAccepted } } },
      },
    },
    handler: async (request, reply) => {
      const idempotency = idempotencyOf(request);
      const made = await judged(
        context,
        request,
        idempotency,
        () => toBatchSubmission(request.body, request.caller, context),
        (batch) => context.services().submitter.submitBatch(batch, idempotency),
      );
      const batchId = toWireId("batch", made.id);
      const checkUrl = `/query/batch/${batchId}`;
      request.about = { batch_id: batchId, ...(made.replayed && { replayed: true }) };
      return reply
        .code(202)
        .headers({ ...acceptedHeadersOf(made), location: checkUrl })
        .send({ batch_id: batchId, status: "running", total: request.body.queries.length, check_url: checkUrl });
    },
  });

  async function submit(request: FastifyRequest, body: SubmitBody): Promise<Accepted> {
    const idempotency = idempotencyOf(request);
    const made = await judged(
      context,
      request,
      idempotency,
      () => toSubmission(body, request.caller, context),
      (submission) => context.services().submitter.submit(submission, idempotency),
    );
    request.about = { task_id: toWireId("run", made.id), ...(made.replayed && { replayed: true }) };
    return made;
  }
}

/** Judges a request and does it. One that was accepted before, under this key, is not judged again: a deadline passes, an agent goes with a deploy. */
export async function judged<T>(
  { pool }: Context,
  request: FastifyRequest,
  idempotency: Idempotency | undefined,
  judge: () => T,
  act: (submission: T) => Promise<Accepted>,
): Promise<Accepted> {
  let submission: T;
  try {
    submission = judge();
  } catch (error) {
    const before = idempotency && (await readReplay(pool, request.caller.tenant, idempotency));
    const id = before?.runId ?? before?.batchId;
    if (!id) throw error;
    return { id, replayed: true };
  }
  return await act(submission);
}

/** Failures that a synchronous call tells apart; all others answer as the result's own URL does. */
function syncFailure(code: string | undefined) {
  if (code === "iteration_limit") return { code: "loop_limit_exceeded", status: 400 } as const;
  if (code === "tool_error") return { code: "tool_error", status: 422 } as const;
  return { code: "conflict", status: 409 } as const;
}

/** Answers that carry the run's own error and what it had. */
export function runProblems<S extends number>(descriptions: Record<S, string>) {
  return Object.fromEntries(
    Object.entries<string>(descriptions).map(([status, description]) => [
      status,
      { description, content: { "application/problem+json": { schema: runProblemSchema } } },
    ]),
  ) as Record<S, { description: string; content: { "application/problem+json": { schema: typeof runProblemSchema } } }>;
}

export function acceptedHeadersOf(made: Accepted): Record<string, string | number> {
  return {
    location: `/query/status/${toWireId("run", made.id)}`,
    "retry-after": retryAfterSeconds,
    ...(made.replayed && { "idempotent-replayed": "true" }),
  };
}

/** `POST /query/async` is `POST /query` by another name, for keys too. */
const sameRoute: Record<string, string> = { "/query/async": "/query" };

/** `about`: what is asked of, where the route's pattern does not say it. */
export function idempotencyOf(request: FastifyRequest, about?: string): Idempotency | undefined {
  const key = request.headers["idempotency-key"];
  if (key === undefined) return undefined;
  if (typeof key !== "string" || key.length < 1 || key.length > 255)
    throw invalid([{ path: "Idempotency-Key", message: "must have 1 to 255 characters" }]);
  const route = request.routeOptions.url ?? "";
  return { key, bodyHash: hashJson([about ?? sameRoute[route] ?? route, request.body ?? {}]) };
}

/** `Prefer: wait=N` (RFC 7240), at most what we grant; a preference that makes no sense is none. */
function preferredWait(request: FastifyRequest): number | undefined {
  const { prefer } = request.headers;
  const text = Array.isArray(prefer) ? prefer.join(",") : prefer;
  const seconds = /(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?:[,;]|$)/i.exec(text ?? "")?.[1];
  return seconds === undefined ? undefined : Math.min(Number(seconds), syncWaitSeconds.most);
}
