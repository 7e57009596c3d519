/**
 * The wake queue: tells workers "look at this run, now" through BullMQ, on Redis or on Postgres. It holds no truth: any
 * wake-up may vanish and any may come twice. Idempotency is SQL's business, elsewhere.
 */
import type { BaseAdapter } from "@bull-board/api/baseAdapter";
import { createBatcher } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { type BulkJobOptions, type JobType, Queue } from "bullmq";
import { type Backend, queueName } from "./backend.ts";
import { type BoardOptions, createBoard } from "./board.ts";
import type { QueueConfig } from "./config.ts";
import { type ConsumeOptions, type Consumer, createConsumer, type QueueCounters } from "./consumer.ts";
import { createFaultLog } from "./fault-log.ts";
import { postgresBackend } from "./postgres.ts";
import { redisBackend } from "./redis.ts";

/** The largest priority BullMQ takes; 0 is served first. */
export const lowestPriority = 2_097_151;

export interface WakeUp {
  /** UUID of the run. */
  runId: string;
  /** Grows with each wake-up of the run: the same number again is the same wake-up, and is ignored. */
  wake: number;
  /** 0..2,097,151, smaller first; what lies outside is taken for the nearest of these. */
  priority: number;
}

export interface QueueDepth {
  waiting: number;
  active: number;
  /** Finished ones that are still kept, for the board. */
  completed: number;
  failed: number;
  paused: boolean;
}

export interface WakeQueue {
  readonly backend: "redis" | "postgres";
  readonly counters: Readonly<QueueCounters>;
  /**
   * Sends wake-ups, at best effort. Calls made while others are under way share one round trip, at most 500 in each.
   * @throws QueueAwayError after about 1 s when the backend does not answer, at once while that is known or it refuses. Nothing is
   *   kept to be sent later, but what was under way may have arrived.
   */
  wake(items: WakeUp[]): Promise<void>;
  /**
   * The run ids among `items` whose wake-up BullMQ still has and has not finished (waiting or active). One round trip for 500.
   * @throws QueueAwayError as `wake` does, also when only writing fails.
   */
  known(items: { runId: string; wake: number }[]): Promise<Set<string>>;
  /** Numbers for health checks. @throws QueueAwayError as `wake` does, also when only writing fails. */
  depth(): Promise<QueueDepth>;
  /** No consumer of any process takes a job until `resume`. Kept by the backend, over restarts. */
  pause(): Promise<void>;
  resume(): Promise<void>;
  isPaused(): Promise<boolean>;
  /** Adapter to register with Bull Board. Looks, pauses and resumes; everything else is answered with 405. */
  board(options?: BoardOptions): BaseAdapter;
  /** Start taking wake-ups in this process. Comes back by itself after every outage. */
  consume(options: ConsumeOptions): Consumer;
  /** Closes the consumers (waiting for their handlers), then the connections. */
  close(): Promise<void>;
}

/** The backend of the queue does not answer. The run is safe in Postgres: the rescuer wakes it when it is due. */
export class QueueAwayError extends Error {
  override readonly name = "QueueAwayError";
}

const chunkSize = 500;
const answerMs = 1000;
/** After a failure, for this long nobody asks again. */
const restMs = 500;

/** While the queue is paused, BullMQ on Postgres counts what waits under this state, which its types do not name. */
const pausedState = "paused" as JobType;

async function within<T>(ms: number, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const jobId = (item: { runId: string; wake: number }) => `run-${item.runId}-${item.wake}`;

/**
 * Opens the queue on `REDIS_URL`, or on Postgres without it. On Redis it returns when it is connected, or after 1 s all the
 * same; on Postgres `migrateQueue` must have run, and it throws when the database cannot be reached.
 *
 * @param options.postgresUrl a direct URL (no transaction pooler); used only without `REDIS_URL`.
 */
export async function openQueue(
  config: QueueConfig,
  options: { logger: Logger; postgresUrl: string },
): Promise<WakeQueue> {
  const { logger } = options;
  const onError = createFaultLog(logger, "trouble with the wake queue");
  const counters: QueueCounters = { stalled: 0, locksLost: 0, handlersThrown: 0, wakesLost: 0 };
  const backend: Backend = config.REDIS_URL ? redisBackend(config, onError) : postgresBackend(options.postgresUrl);
  const { connection, prefix, factory, release } = backend.producer;
  const queue = new Queue<{ runId: string }>(
    queueName,
    { connection, ...(prefix !== undefined && { prefix }), streams: { events: { maxLen: 1000 } } },
    factory as undefined,
  );
  queue.on("error", onError);
  if (backend.name === "postgres") {
    try {
      await queue.waitUntilReady();
    } catch (error) {
      await queue.close().catch(onError);
      throw error;
    }
  } else {
    await within(answerMs, queue.waitUntilReady()).catch(onError);
  }

  let restUntil = 0;
  let closing: Promise<void> | undefined;
  const consumers = new Set<Consumer>();

  /** Asks the backend, for one second at most. */
  async function ask<T>(call: () => Promise<T>): Promise<T> {
    if (closing) throw new QueueAwayError("The queue is closed");
    if (performance.now() < restUntil) throw new QueueAwayError("The queue's backend did not answer a moment ago");
    try {
      backend.assertConnected();
    } catch (error) {
      throw new QueueAwayError((error as Error).message);
    }
    try {
      return await within(answerMs, call());
    } catch (error) {
      restUntil = performance.now() + restMs;
      onError(error as Error);
      throw new QueueAwayError(`The queue's backend does not answer: ${(error as Error).message}`, { cause: error });
    }
  }

  const sendOne = createBatcher<WakeUp, void>({
    key: jobId,
    lanes: 2,
    max: chunkSize,
    async execute(items) {
      const jobs = items.map((item) => {
        const priority = Math.min(Math.max(Math.floor(item.priority), 0), lowestPriority);
        const opts: BulkJobOptions = { jobId: jobId(item), attempts: 1, ...(priority > 0 && { priority }) };
        return { name: "run", data: { runId: item.runId }, opts };
      });
      try {
        // For one job `add` is cheaper: on Postgres `addBulk` makes temporary tables.
        await ask<unknown>(() =>
          jobs.length === 1 ? queue.add("run", jobs[0]!.data, jobs[0]!.opts) : queue.addBulk(jobs),
        );
      } catch (error) {
        counters.wakesLost += items.length;
        throw error;
      }
      return items.map(() => undefined);
    },
  });

  return {
    backend: backend.name,
    counters,
    async wake(items) {
      await Promise.all(items.map(sendOne));
    },
    async known(items) {
      const found = new Set<string>();
      // Whoever asks sends anew what is missing, which would be in vain.
      await ask(() => backend.assertWritable());
      for (let at = 0; at < items.length; at += chunkSize) {
        const chunk = items.slice(at, at + chunkSize);
        const answers = await ask(() => backend.pending(chunk.map(jobId)));
        chunk.forEach((item, index) => {
          if (answers[index]) found.add(item.runId);
        });
      }
      return found;
    },
    async depth() {
      const [counts, paused] = await ask(() =>
        Promise.all([
          queue.getJobCounts("waiting", "prioritized", pausedState, "active", "completed", "failed"),
          queue.isPaused(),
          backend.assertWritable(),
        ]),
      );
      const { waiting = 0, prioritized = 0, paused: held = 0, active = 0, completed = 0, failed = 0 } = counts;
      return { waiting: waiting + prioritized + held, active, completed, failed, paused };
    },
    pause: () => ask(() => queue.pause()),
    resume: () => ask(() => queue.resume()),
    isPaused: () => ask(() => queue.isPaused()),
    board: (boardOptions = {}) => createBoard(queue, boardOptions),
    consume(consumeOptions) {
      const consumer = createConsumer(backend, {
        ...consumeOptions,
        logger,
        counters,
        onError,
        async clean(state, olderThanMs) {
          while ((await queue.clean(olderThanMs, 1000, state)).length === 1000);
        },
      });
      consumers.add(consumer);
      return {
        ...consumer,
        get running() {
          return consumer.running;
        },
        close: () => consumer.close().finally(() => consumers.delete(consumer)),
      };
    },
    close() {
      closing ??= (async () => {
        await Promise.all([...consumers].map((consumer) => consumer.close()));
        await queue.close().catch(onError);
        await release();
      })();
      return closing;
    },
  };
}
