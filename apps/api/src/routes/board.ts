/**
 * Bull Board at /admin/queues: what BullMQ holds, for operators. It looks, pauses and resumes, and nothing else. Each job shows
 * its run's status, read from Postgres for the page at hand.
 */
import { createBullBoard } from "@bull-board/api";
import { FastifyAdapter } from "@bull-board/fastify";
import { DroverError, toWireId } from "@drover/protocol";
import type { WakeQueue } from "@drover/queue";
import type { onRequestHookHandler } from "fastify";
import type { App, Context } from "../context.ts";
import { sendProblem } from "../problems.ts";

const boardPath = "/admin/queues";
const changesAllowed = /^\/admin\/queues\/api\/queues\/([^/?]+\/)?(pause|resume)(\?|$)/;

/** Registers the board and returns the function that shows it the queue. */
export async function boardRoutes(
  app: App,
  context: Context,
  authenticate: onRequestHookHandler,
): Promise<(queue: WakeQueue) => void> {
  const { logger } = context;
  const serverAdapter = new FastifyAdapter();
  serverAdapter.setBasePath(boardPath);
  const board = createBullBoard({
    queues: [],
    serverAdapter,
    options: { uiConfig: { boardTitle: "Drover", hideRedisDetails: true } },
  });

  serverAdapter.setErrorHandler((error) => {
    logger.warn({ err: error }, "the board could not be shown");
    const message = "The queue does not answer.";
    return { status: 500, body: { error: message, message } };
  });

  await app.register(async (scope) => {
    scope.addHook("onRoute", (route) => {
      route.config = { ...route.config, permission: "board", basic: true };
      route.schema = { ...route.schema, hide: true };
    });
    // Answers itself: behind it, errors are told as the board's own pages understand them.
    scope.addHook("onRequest", (request, reply, done) =>
      authenticate.call(scope, request, reply, (error) =>
        error ? sendProblem(logger, error, request, reply) : done(),
      ),
    );
    // The board shows every tenant's wake-ups and pauses all of them: it belongs to the installation's own tenant.
    scope.addHook("onRequest", (request, reply, done) => {
      if (request.caller.tenant === "default") return done();
      sendProblem(
        logger,
        new DroverError("forbidden", "The board is for operators of the tenant `default`."),
        request,
        reply,
      );
    });
    scope.addHook("onRequest", (request, reply, done) => {
      if (request.method === "GET" || changesAllowed.test(request.url)) return done();
      const message = "The board only looks, pauses and resumes: change runs through the API.";
      void reply.code(405).header("allow", "GET").send({ error: message, message });
    });
    scope.addHook("preSerialization", async (_request, _reply, payload) => withRunStatus(context, payload));
    await scope.register(serverAdapter.registerPlugin(), { prefix: boardPath });
  });

  return (queue) =>
    board.addQueue(
      queue.board({
        format: ({ runId }) => ({ task_id: toWireId("run", runId) }),
        runUrl: (runId) => ({ href: `/execution/${toWireId("run", runId)}`, displayText: toWireId("run", runId) }),
      }),
    );
}

interface BoardJob {
  data?: { task_id?: string; status?: string };
}

/** Adds each job's run status to what the board is about to show. */
async function withRunStatus(context: Context, payload: unknown): Promise<unknown> {
  const { queues, job } = (payload ?? {}) as { queues?: { jobs?: BoardJob[] }[]; job?: BoardJob };
  const shown = [...(queues ?? []).flatMap((queue) => queue.jobs ?? []), ...(job ? [job] : [])].filter(
    (one) => one.data?.task_id,
  );
  if (shown.length === 0) return payload;
  const ids = shown.map((one) => one.data!.task_id!.replace("run_", ""));
  const { rows } = await context.pool.query<{ id: string; status: string }>(
    "SELECT replace(id::text, '-', '') AS id, status FROM runs WHERE id = ANY($1::uuid[])",
    [ids],
  );
  const statuses = new Map(rows.map((row) => [`run_${row.id}`, row.status]));
  for (const { data } of shown) data!.status = statuses.get(data!.task_id!) ?? "unknown";
  return payload;
}
