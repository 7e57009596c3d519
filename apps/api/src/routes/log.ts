/**
 * A run's log: JSON pages, or a live stream (server-sent events). A stream sends every event after the last one the client has,
 * each once and in order, and ends after the final one. Text that streams from the model is shown in between, at best effort.
 */
import { once } from "node:events";
import { eventPage, pageQuery } from "@drover/protocol";
import { followLog, isFinal, type Run, readLog, readRun, requireContents } from "@drover/runs";
import { throughOutages } from "@drover/storage";
import { metrics } from "@drover/telemetry";
import type { FastifyReply } from "fastify";
import { z } from "zod";
import { eventAnswer } from "../answers.ts";
import type { App, Context } from "../context.ts";
import { fromCursor, readPage, toCursor } from "../cursors.ts";
import { mayDecideOf } from "../deciding.ts";
import { invalid } from "../problems.ts";
import { missing, runId } from "../resources.ts";
import { untilClosed } from "../waiting.ts";

const reconnectMs = 1000;
/** How long a client has to take what was sent before the process stops. */
const goodbyeMs = 500;

export function logRoutes(app: App, context: Context): void {
  const { pool, blobs, config } = context;

  app.route({
    method: "GET",
    url: "/query/:id/events",
    config: {
      scope: "read",
      problems: ["not_found", "contents_expired"],
      reads: z.object({
        Accept: z.string().optional().describe("`text/event-stream` for the live stream"),
        "Last-Event-ID": z.string().optional().describe("stream: the last `id` that was seen; goes before `after`"),
      }),
    },
    schema: {
      tags: ["follow"],
      summary: "The log of a query",
      description:
        "As JSON: pages, oldest first. As `text/event-stream`: every event with its `seq` as `id` and its `type` as `event`, as it " +
        "happens, until the final one; between them `delta` events without an id, `{ task_id, epoch, iteration, offset, text }`, with the model's text " +
        "as it streams: `offset` characters (UTF-16) into the reply of this `iteration`; a call that is made again begins at 0 again, and a new `epoch` begins anew. Comments every 15 s keep the connection alive.",
      params: z.object({ id: z.string().describe("`run_…`") }),
      querystring: z.strictObject({
        ...pageQuery,
        after: z.coerce.number().int().min(0).max(999_999_999).optional().describe("events after this seq"),
      }),
      response: {
        200: {
          description: "One page, or the stream",
          content: {
            "application/json": { schema: eventPage },
            "text/event-stream": { schema: z.string() },
          },
        },
        204: z
          .undefined()
          .describe(
            "Stream only: the run is final and `Last-Event-ID` is its last event; a browser stops reconnecting",
          ),
      },
    },
    handler: async (request, reply) => {
      const { tenant } = request.caller;
      const { limit, cursor, after } = request.query;
      const run = (await readRun(pool, tenant, runId(request.params.id))) ?? missing("run");
      await requireContents(pool, run);
      if (request.method !== "HEAD" && wantsStream(request.headers.accept)) {
        if (limit !== undefined || cursor !== undefined)
          throw invalid([
            { path: limit === undefined ? "cursor" : "limit", message: "is for JSON pages, not for a stream" },
          ]);
        return stream(reply, run, seenBefore(request.headers["last-event-id"], after, run));
      }
      if (cursor !== undefined && after !== undefined)
        throw invalid([{ path: "after", message: "cannot be combined with cursor" }]);
      const { entries, nextCursor } = await readPage(
        limit,
        (most) =>
          readLog(pool, blobs, {
            tenant,
            runId: run.id,
            after: fromCursor("events", cursor) ?? after ?? 0,
            limit: most,
          }),
        (last) => toCursor("events", last.seq),
      );
      const mayDecide = mayDecideOf(request.caller, run, config);
      return reply.send({ data: entries.map((event) => eventAnswer(event, mayDecide)), next_cursor: nextCursor });
    },
  });

  async function stream(reply: FastifyReply, run: Run, after: number): Promise<FastifyReply> {
    if (isFinal(run.status) && after === run.lastSeq) return reply.code(204).send();
    const { raw } = reply;
    const taskId = reply.request.params as { id: string };
    const gone = untilClosed(reply, context);
    raw.on("error", () => {});
    reply.hijack();
    raw.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache, no-transform",
      "x-accel-buffering": "no",
      "x-request-id": reply.request.id,
    });
    raw.write(`retry: ${reconnectMs}\n\n`);
    // What is only nice to have is left out for a client that does not keep up.
    const offer = (text: string) => {
      if (!raw.writableNeedDrain && !raw.writableEnded) raw.write(text);
    };
    const heartbeat = setInterval(() => offer(": heartbeat\n\n"), context.heartbeatMs);
    metrics.streamsOpen.inc();
    let seen = after;
    const mayDecide = mayDecideOf(reply.request.caller, run, config);
    try {
      // A browser takes a 503 for the end of its stream, so the open one outlives an outage of the database.
      await throughOutages(async () => {
        const events = followLog({
          db: pool,
          blobs,
          signals: context.signals,
          tenant: run.tenant,
          runId: run.id,
          after: seen,
          signal: gone,
          onDelta: (epoch, text, at) =>
            offer(`event: delta\ndata: ${JSON.stringify({ task_id: taskId.id, epoch, ...at, text })}\n\n`),
        });
        for await (const event of events) {
          const data = JSON.stringify(eventAnswer(event, mayDecide));
          const taken = raw.write(`event: ${event.type}\nid: ${event.seq}\ndata: ${data}\n\n`);
          seen = event.seq;
          if (!taken) await once(raw, "drain", { signal: gone });
          if (gone.aborted) break;
        }
      }, gone);
    } catch (error) {
      // The client reconnects with its Last-Event-ID and hears then what is wrong.
      if (!gone.aborted)
        context.logger.warn({ err: error, request_id: reply.request.id, task_id: taskId.id }, "a stream broke off");
    } finally {
      clearInterval(heartbeat);
      metrics.streamsOpen.dec();
      raw.end();
      // Whoever does not read must not keep the process from stopping.
      if (context.stopping.aborted) setTimeout(() => raw.destroy(), goodbyeMs);
    }
    return reply;
  }
}

/** Only who names the type gets a stream; a wildcard means JSON. */
const wantsStream = (accept: string | undefined): boolean => /\btext\/event-stream\b/i.test(accept ?? "");

/** The last seq the client has. @throws DroverError `invalid_input` when the run cannot have had it */
function seenBefore(lastEventId: string | string[] | undefined, after: number | undefined, run: Run): number {
  if (lastEventId === undefined || lastEventId === "") return atMost(run, after ?? 0, "after");
  if (typeof lastEventId !== "string" || !/^\d{1,9}$/.test(lastEventId))
    throw invalid([{ path: "Last-Event-ID", message: "must be the id of an event of this stream" }]);
  return atMost(run, Number(lastEventId), "Last-Event-ID");
}

function atMost(run: Run, seq: number, path: string): number {
  if (seq <= run.lastSeq) return seq;
  throw invalid([{ path, message: `the log has ${run.lastSeq} events` }]);
}
