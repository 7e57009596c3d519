/**
 * The wake queue: rings at a worker's door, through BullMQ, on Redis or on Postgres. A ring says "look what is due", not what; whoever hears it
 * claims from Postgres, in order. It holds no truth: any ring may vanish, and any may come twice.
 */
import type { BaseAdapter } from "@bull-board/api/baseAdapter";
import { createBatcher } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { type BulkJobOptions, Queue } from "bullmq";
import { type Backend, queueName } from "./backend.ts";
import { type BoardSource, createBoard } from "./board.ts";
import type { QueueConfig } from "./config.ts";
import { type ConsumeOptions, type Consumer, createConsumer, type QueueCounters } from "./consumer.ts";
import { createFaultLog } from "./fault-log.ts";
import { postgresBackend } from "./postgres.ts";
import { redisBackend } from "./redis.ts";

export interface WakeQueue {
  readonly backend: "redis" | "postgres";
  readonly counters: Readonly<QueueCounters>;
  /**
   * So many runs are due: wakes a worker for every `runsPerRing` of them, up to 8, at best effort. Calls made while others are under way share one
   * round trip. What rings already and was not heard yet is not rung again.
   * @throws QueueAwayError after about 1 s when the backend does not answer, at once while that is known or it refuses. Nothing is
   *   kept to be sent later, but what was under way may have arrived.
   */
  wake(runs: number): Promise<void>;
  /** Resolves when a ring would be taken now. @throws QueueAwayError as `wake` does. */
  check(): Promise<void>;
  /** No consumer of any process hears a ring until `resume`. Kept by the backend, over restarts. */
  pause(): Promise<void>;
  resume(): Promise<void>;
  isPaused(): Promise<boolean>;
  /** Adapter to register with Bull Board. Looks, pauses and resumes; everything else is answered with 405. */
  board(source: BoardSource): BaseAdapter;
  /** Start hearing rings in this process. Comes back by itself after every outage. */
  consume(options: ConsumeOptions): Consumer;
  /** Closes the consumers, then the connections. */
  close(): Promise<void>;
}

/** The backend of the queue does not answer. The run is safe in Postgres: a worker with a free slot finds it within a second. */
export class QueueAwayError extends Error {
  override readonly name = "QueueAwayError";
}

/** So many runs one ring is for. Whoever hears it takes no more at once: the next ring may find a worker that holds less. */
export const runsPerRing = 64;
/** Different rings. The same one twice is one; one that a dying worker took is out of order until BullMQ finds it without a lock. */
const bells = 8;
const answerMs = 1000;
/** After a failure, for this long nobody asks again. */
const restMs = 500;

async function within<T>(ms: number, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

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
  const counters: QueueCounters = { stalled: 0, wakesLost: 0 };
  const backend: Backend = config.REDIS_URL ? redisBackend(config, onError) : postgresBackend(options.postgresUrl);
  const { connection, prefix, factory, release } = backend.producer;
  const queue = new Queue(
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
  let lastBell = Math.floor(Math.random() * bells);
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

  function ring() {
    lastBell = (lastBell + 1) % bells;
    const opts: BulkJobOptions = { jobId: `bell-${lastBell}`, attempts: 1, removeOnComplete: true, removeOnFail: true };
    return { name: "ring", data: {}, opts };
  }

  const wake = createBatcher<number, void>({
    // One at a time: what comes meanwhile shares the next.
    key: () => "ring",
    async execute(calls) {
      const runs = calls.reduce((sum, count) => sum + count, 0);
      const rings = Array.from({ length: Math.min(bells, Math.ceil(runs / runsPerRing)) }, ring);
      try {
        // For one job `add` is cheaper: on Postgres `addBulk` makes temporary tables.
        const [one] = rings;
        await ask<unknown>(() =>
          rings.length === 1 ? queue.add(one!.name, one!.data, one!.opts) : queue.addBulk(rings),
        );
      } catch (error) {
        counters.wakesLost += calls.length;
        throw error;
      }
      return calls.map(() => undefined);
    },
  });

  return {
    backend: backend.name,
    counters,
    async wake(runs) {
      if (runs > 0) await wake(runs);
    },
    async check() {
      await ask(() => backend.assertWritable());
    },
    pause: () => ask(() => queue.pause()),
    resume: () => ask(() => queue.resume()),
    isPaused: () => ask(() => queue.isPaused()),
    board: (source) => createBoard(queue, source),
    consume(consumeOptions) {
      const consumer = createConsumer(backend, { ...consumeOptions, logger, counters, onError });
      consumers.add(consumer);
      return { ...consumer, close: () => consumer.close().finally(() => consumers.delete(consumer)) };
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
