/**
 * Answers rings. A ring is gone from BullMQ before anybody looks for what it rang for, so one that comes meanwhile is a new one; BullMQ's lock
 * decides nothing.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "@drover/telemetry";
import { type Job, WaitingError, Worker } from "bullmq";
import { type Backend, queueName } from "./backend.ts";

export interface ConsumeOptions {
  /**
   * Somebody rang: from now on this process looks for what is due. `false`: it cannot now; the ring goes back, for another process or for later,
   * and no more is taken until `resumeTaking`. Must not throw.
   */
  hear(): boolean;
  /** Shown by Bull Board as the worker's name. */
  name?: string;
  /** How long BullMQ takes a ring for answered without a renewal, ms (default 10,000). Tests shorten it. */
  lockDurationMs?: number;
  /** How often lost rings are looked for, ms (default 5,000). Tests shorten it. */
  stalledIntervalMs?: number;
}

export interface Consumer {
  /** Take no further ring, at once. One already under way to us is given back unheard. */
  pauseTaking(): void;
  resumeTaking(): void;
  /** Take no further ring, also while the server is away. */
  close(): Promise<void>;
}

/** What happened in this process so far; for metrics. */
export interface QueueCounters {
  /** Rings that BullMQ found without a lock and handed out again (of any worker). */
  stalled: number;
  /** Wake-ups not sent because the backend was away. */
  wakesLost: number;
}

/** How long a worker may take to say goodbye to its server before the connections are cut, ms. */
const goodbyeMs = 3000;
/** Between two tries to take a ring from a server that answers with an error. */
const refusedPauseMs = 1000;

/**
 * BullMQ waits for a server that is away, and asks one that answers with an error (read-only, without its replicas, a Cluster that is down)
 * again at once: thousands of times a second. Here it pauses first.
 */
class PacedWorker extends Worker<object, void> {
  protected override async moveToActive(...args: Parameters<Worker<object, void>["moveToActive"]>) {
    try {
      return await super.moveToActive(...args);
    } catch (error) {
      if (!this.closing) await delay(refusedPauseMs);
      throw error;
    }
  }
}

export function createConsumer(
  backend: Backend,
  options: ConsumeOptions & { logger: Logger; counters: QueueCounters; onError(error: Error): void },
): Consumer {
  const connected = backend.worker();
  let taking = true;
  let closing: Promise<void> | undefined;

  // Two parameters only: with a third, BullMQ would hand over an abort signal.
  const processor = async (job: Job, token?: string): Promise<void> => {
    if (taking && !closing && options.hear()) return;
    consumer.pauseTaking();
    // Without using up an attempt. Should that fail, it is found without a lock later.
    await job.moveToWait(token).catch(options.onError);
    throw new WaitingError();
  };

  const worker = new PacedWorker(
    queueName,
    processor,
    {
      connection: connected.connection,
      ...(connected.prefix !== undefined && { prefix: connected.prefix }),
      ...(options.name !== undefined && { name: options.name }),
      concurrency: 1,
      // A ring that was taken and whose answer got lost is handed out again after its lock and two looks.
      lockDuration: options.lockDurationMs ?? 10_000,
      stalledInterval: options.stalledIntervalMs ?? 5000,
      // The default, 1, fails a job at its second crash.
      maxStalledCount: 5,
      runRetryDelay: 1000,
    },
    connected.factory as undefined,
  );
  worker.on("error", options.onError);
  worker.on("stalled", (jobId) => {
    options.counters.stalled++;
    options.logger.warn({ job_id: jobId }, "a ring lost its lock and is handed out again");
  });

  const consumer: Consumer = {
    pauseTaking() {
      taking = false;
      void worker.pause(true);
    },
    resumeTaking() {
      if (taking || closing) return;
      taking = true;
      void worker.resume();
    },
    close() {
      closing ??= (async () => {
        const closed = worker.close().catch(options.onError);
        await Promise.race([closed, delay(goodbyeMs, undefined, { ref: false })]);
        await connected.release();
      })();
      return closing;
    },
  };
  return consumer;
}
