/**
 * Bull Board at /admin/queues, for operators: every run as a job, read from Postgres for the page at hand. It looks, pauses and resumes, and
 * nothing else.
 */
import { createBullBoard } from "@bull-board/api";
import { FastifyAdapter } from "@bull-board/fastify";
import { DroverError, toWireId } from "@drover/protocol";
import { type BoardJob, type BoardSource, type BoardState, boardStates, type WakeQueue } from "@drover/queue";
import type { Pool } from "@drover/storage";
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
      route.config = { ...route.config, scope: "board", basic: true };
      route.schema = { ...route.schema, hide: true };
    });
    // Answers itself: behind it, errors are told as the board's own pages understand them.
    scope.addHook("onRequest", (request, reply, done) =>
      authenticate.call(scope, request, reply, (error) =>
        error ? sendProblem(logger, error, request, reply) : done(),
      ),
    );
    // The board shows every tenant's runs and pauses all of them: it belongs to the installation's own tenant.
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
      if (request.method === "GET" || request.method === "HEAD" || changesAllowed.test(request.url)) return done();
      const message = "The board only looks, pauses and resumes: change runs through the API.";
      void reply.code(405).header("allow", "GET").send({ error: message, message });
    });
    await scope.register(serverAdapter.registerPlugin(), { prefix: boardPath });
  });

  return (queue) => board.addQueue(queue.board(runsOf(context.pool)));
}

/** Nothing is counted or listed beyond so many: the moving ones by their index, what is over among the runs submitted last. */
const most = 10_000;
const lately = `(SELECT * FROM runs ORDER BY id DESC LIMIT ${most})`;
const moving = (condition: string) => `(SELECT * FROM runs WHERE ${condition} LIMIT ${most})`;

const sources: Record<BoardState, string> = {
  active: moving("status = 'running'"),
  waiting: `(${moving("status = 'queued' AND woken")} UNION ALL ${moving("status = 'queued' AND set_aside_at IS NOT NULL")})`,
  delayed: moving("status = 'queued' AND NOT woken AND set_aside_at IS NULL"),
  completed: `(SELECT * FROM ${lately} l WHERE status IN ('completed', 'partial', 'cancelled'))`,
  failed: `(SELECT * FROM ${lately} l WHERE status = 'failed')`,
};

interface JobRow {
  id: string;
  wake: number;
  status: string;
  woken: boolean;
  set_aside: boolean;
  priority: number;
  attempt: number;
  created_at: Date;
  started_at: Date | null;
  finished_at: Date | null;
  worker: string | null;
  stop_reason: string | null;
}

const columns =
  "id, wake, status, woken, set_aside_at IS NOT NULL AS set_aside, priority, attempt, created_at, started_at, finished_at, worker, stop_reason";

/** The runs of all tenants as jobs of the board. */
function runsOf(pool: Pool): BoardSource {
  return {
    async counts() {
      const { rows } = await pool.query<Record<BoardState, number>>(
        `SELECT ${boardStates.map((state) => `(SELECT count(*) FROM ${sources[state]} s) AS ${state}`).join(", ")}`,
      );
      return rows[0]!;
    },
    async list(states, start, end) {
      const lists = await Promise.all(
        states.map((state) =>
          pool.query<JobRow>(`SELECT ${columns} FROM ${sources[state]} s ORDER BY id DESC OFFSET $1 LIMIT $2`, [
            start,
            end - start + 1,
          ]),
        ),
      );
      return lists.flatMap(({ rows }) => rows.map(toJob));
    },
    async get(id) {
      const [, runId] = /^run-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-\d+$/.exec(id) ?? [];
      if (runId === undefined) return;
      const { rows } = await pool.query<JobRow>(`SELECT ${columns} FROM runs WHERE id = $1`, [runId]);
      return rows[0] && toJob(rows[0]);
    },
  };
}

function toJob(row: JobRow): BoardJob {
  const id = toWireId("run", row.id);
  return {
    id: `run-${row.id}-${row.wake}`,
    state: stateOf(row),
    data: { task_id: id, status: row.status },
    priority: row.priority,
    attempt: row.attempt,
    createdAt: row.created_at.getTime(),
    startedAt: row.started_at?.getTime() ?? null,
    finishedAt: row.finished_at?.getTime() ?? null,
    worker: row.worker,
    failedReason: row.status === "failed" ? `The run failed (${row.stop_reason}): see its log.` : null,
    link: { href: `/execution/${id}`, displayText: id },
  };
}

/** A run that waits for a person or for money is not on the board's lists. */
function stateOf({ status, woken, set_aside }: JobRow): BoardState {
  if (status === "running") return "active";
  if (status === "queued") return woken || set_aside ? "waiting" : "delayed";
  if (status === "waiting") return "delayed";
  return status === "failed" ? "failed" : "completed";
}
