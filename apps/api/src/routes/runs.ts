/** Looking at runs: status (with long polling), result, stored record, lists; and cancelling one. */
import {
  accepted,
  cancelled,
  execution,
  metadataKey,
  metadataValue,
  pageQuery,
  plainText,
  type RunStatus,
  runPage,
  runResult,
  runStatuses,
  runStatus as statusSchema,
  timeInput,
  toWireId,
} from "@drover/protocol";
import {
  cancelRun,
  isFinal,
  listRuns,
  type Run,
  readLog,
  readOutcome,
  readProgress,
  readRun,
  requireContents,
  waitForRun,
} from "@drover/runs";
import { z } from "zod";
import { acceptedAnswer, executionAnswer, resultAnswer, runProblem, statusAnswer, summaryAnswer } from "../answers.ts";
import type { App, Context } from "../context.ts";
import { fromCursor, readPage, toCursor } from "../cursors.ts";
import { invalid, problemContentType } from "../problems.ts";
import { missing, runId } from "../resources.ts";
import { untilClosed } from "../waiting.ts";
import { runProblems } from "./submit.ts";

const longestWaitSeconds = 300;
const retryAfterSeconds = { soon: 1, most: 60 };
const tags = ["follow"];
const params = z.object({ id: z.string().describe("`run_…`") });
const include = z.enum(["tool_calls"]).optional().describe("`tool_calls`: the tool calls with their input and output");
const json = <T extends z.ZodType>(description: string, schema: T) => ({
  description,
  content: { "application/json": { schema } },
});

export function runRoutes(app: App, context: Context): void {
  const { pool, blobs, signals } = context;

  /** The tenant's run. @throws DroverError `not_found` */
  async function readOwn(tenant: string, id: string): Promise<Run> {
    return (await readRun(pool, tenant, runId(id))) ?? missing("run");
  }

  app.route({
    method: "GET",
    url: "/query/status/:id",
    config: {
      scope: "read",
      problems: ["not_found"],
      reads: z.object({ "If-None-Match": z.string().optional().describe("the `ETag` of the answer that is known") }),
      answerHeaders: {
        200: { etag: "version of this answer", "retry-after": "while not final: seconds until asking makes sense" },
        304: { etag: "version of the answer that is known" },
      },
    },
    schema: {
      tags,
      summary: "Status of a query",
      description:
        "With `?wait=N` (long polling) it answers as soon as the status differs from `If-None-Match`, without that header as soon as " +
        "the run is final, and after N seconds in any case.",
      params,
      querystring: z.strictObject({
        wait: z.coerce
          .number()
          .min(0)
          .max(longestWaitSeconds)
          .optional()
          .describe(`seconds, 0 to ${longestWaitSeconds}`),
      }),
      response: {
        200: json("The status; with `result` and `error` once it is final", statusSchema),
        304: z.undefined().describe("Nothing has changed"),
      },
    },
    handler: async (request, reply) => {
      const { tenant } = request.caller;
      const { wait } = request.query;
      const known = knownVersions(request.headers["if-none-match"]);
      let run = await readOwn(tenant, request.params.id);
      const isNews = (seen: { status: RunStatus; lastSeq: number }) =>
        known.length > 0 ? !isKnown(known, seen.lastSeq) : isFinal(seen.status);
      if (wait && !isNews(run) && !isFinal(run.status)) {
        const signal = untilClosed(reply, context);
        await waitForRun({ db: pool, blobs, signals, tenant, runId: run.id, signal, waitMs: wait * 1000 }, isNews);
        run = await readOwn(tenant, request.params.id);
      }
      reply.header("etag", versionOf(run.lastSeq));
      if (!isFinal(run.status)) reply.header("retry-after", retryAfter(run));
      if (isKnown(known, run.lastSeq)) return reply.code(304).send();
      if (isFinal(run.status)) {
        const progress = { lastEvent: `run.${run.status}`, partialOutput: null };
        return reply.send(statusAnswer(run, progress, await readOutcome(pool, blobs, run)));
      }
      return reply.send(statusAnswer(run, await readProgress(pool, blobs, run), null));
    },
  });

  app.route({
    method: "GET",
    url: "/query/result/:id",
    config: {
      scope: "read",
      problems: ["not_found"],
      answerHeaders: { 202: { "retry-after": "seconds until asking makes sense" } },
    },
    schema: {
      tags,
      summary: "Result of a query",
      params,
      querystring: z.strictObject({ include }),
      response: {
        200: json("The result, complete or partial", runResult),
        202: json("Not final yet", accepted),
        ...runProblems({
          409: "`conflict`: the run failed or was cancelled; `error` says why, `result` is what there was",
        }),
      },
    },
    handler: async (request, reply) => {
      const run = await readOwn(request.caller.tenant, request.params.id);
      const toolCalls = request.query.include === "tool_calls";
      const outcome = await readOutcome(pool, blobs, run);
      if (!outcome)
        return reply.code(202).header("retry-after", retryAfter(run)).send(acceptedAnswer(run.id, run.status));
      if (run.status === "completed" || run.status === "partial")
        return reply.code(200).send(resultAnswer(outcome.result, toolCalls));
      return reply
        .code(409)
        .header("content-type", problemContentType)
        .send(runProblem(run, outcome, { code: "conflict", requestId: request.id, toolCalls }));
    },
  });

  app.route({
    method: "GET",
    url: "/execution/:id",
    config: { scope: "read", basic: true, problems: ["not_found", "contents_expired"] },
    schema: {
      tags,
      summary: "The stored record of a query",
      params,
      querystring: z.strictObject({}),
      response: { 200: json("What was asked, what it did, and what came of it", execution) },
    },
    handler: async (request, reply) => {
      const { tenant } = request.caller;
      const run = await readOwn(tenant, request.params.id);
      await requireContents(pool, run);
      const [[first], outcome] = await Promise.all([
        readLog(pool, blobs, { tenant, runId: run.id, limit: 1 }),
        readOutcome(pool, blobs, run),
      ]);
      if (first?.type !== "run.queued") throw new Error(`the log of run ${run.id} does not begin with run.queued`);
      return reply.send(executionAnswer(run, first.data, outcome));
    },
  });

  app.route({
    method: "GET",
    url: "/query",
    config: { scope: "read" },
    schema: {
      tags,
      summary: "List queries, newest first",
      querystring: listQuery,
      response: { 200: json("One page", runPage) },
    },
    handler: async (request, reply) => {
      const { limit, cursor, status, agent, user_id, created_after, created_before, ...rest } = request.query;
      const before = fromCursor("runs", cursor);
      const wanted = Object.entries(rest).map(([key, value]) => [key.slice(metadataPrefix.length), value]);
      const { entries, nextCursor } = await readPage(
        limit,
        (most) =>
          listRuns(pool, request.caller.tenant, {
            ...(status !== undefined && { status: statusesOf(status) }),
            ...(agent !== undefined && { agent }),
            ...(user_id !== undefined && { userId: user_id }),
            ...(wanted.length > 0 && { metadata: Object.fromEntries(wanted) }),
            ...(created_after !== undefined && { createdAfter: new Date(created_after) }),
            ...(created_before !== undefined && { createdBefore: new Date(created_before) }),
            ...(before !== undefined && { before }),
            limit: most,
          }),
        (last) => toCursor("runs", last.id),
      );
      return reply.send({ data: entries.map(summaryAnswer), next_cursor: nextCursor });
    },
  });

  app.route({
    method: "POST",
    url: "/query/:id/cancel",
    config: { scope: "cancel", problems: ["not_found"] },
    schema: {
      tags: ["act"],
      summary: "Cancel a query",
      description: "Harmless when repeated, and when the run is final already: the answer says which status won.",
      params,
      querystring: z.strictObject({}),
      response: {
        200: json("It is final: `cancelled`, or the status that won", cancelled),
        202: json("It is running and its worker has been told", cancelled),
      },
    },
    handler: async (request, reply) => {
      const answer =
        (await cancelRun(pool, request.caller.tenant, runId(request.params.id), request.caller.keyId)) ??
        missing("run");
      signals.news(answer.runId);
      if (answer.status === "cancelled") signals.ring("delivery");
      const body = { task_id: toWireId("run", answer.runId), status: answer.status };
      if (isFinal(answer.status)) return reply.code(200).send(body);
      return reply.code(202).send({ ...body, cancel_requested: true });
    },
  });
}

const metadataPrefix = "metadata.";

const listQuery = z
  .object({
    ...pageQuery,
    status: z
      .union([z.string(), z.array(z.string())])
      .optional()
      .describe(`${runStatuses.join(", ")}; several with commas or repeated`),
    agent: plainText(64).optional(),
    user_id: plainText(255).optional(),
    created_after: timeInput.optional(),
    created_before: timeInput.optional(),
    "metadata.KEY": metadataValue
      .optional()
      .describe("runs whose metadata have this value under KEY; may be given for several keys"),
  })
  .catchall(metadataValue)
  .superRefine((query, check) => {
    for (const key of Object.keys(query)) {
      if (key in listQuery.shape && key !== "metadata.KEY") continue;
      if (!key.startsWith(metadataPrefix)) check.addIssue({ code: "unrecognized_keys", keys: [key], input: query });
      else if (!metadataKey.safeParse(key.slice(metadataPrefix.length)).success)
        check.addIssue({ code: "custom", path: [key], message: "is no key that metadata can have", input: query });
    }
  });

function statusesOf(given: string | string[]): RunStatus[] {
  const names = [given].flat().flatMap((text) => text.split(","));
  for (const name of names)
    if (!(runStatuses as readonly string[]).includes(name))
      throw invalid([{ path: "status", message: `must be of ${runStatuses.join(", ")}` }]);
  return names as RunStatus[];
}

/** Every change of a run appends to its log, so the number of its events is its version. */
const versionOf = (lastSeq: number): string => `W/"${lastSeq}"`;

/** The versions of an `If-None-Match` header, without the marks of weakness. */
function knownVersions(header: string | undefined): string[] {
  return header === undefined ? [] : header.split(",").map((version) => version.trim().replace(/^W\//, ""));
}

const isKnown = (known: string[], lastSeq: number): boolean => known.includes("*") || known.includes(`"${lastSeq}"`);

/** Seconds until asking again makes sense: soon, or when the run is due. */
function retryAfter(run: Run): number {
  if (run.status !== "queued") return retryAfterSeconds.soon;
  const dueInSeconds = Math.ceil((run.availableAt.getTime() - Date.now()) / 1000);
  return Math.min(Math.max(dueInSeconds, retryAfterSeconds.soon), retryAfterSeconds.most);
}
