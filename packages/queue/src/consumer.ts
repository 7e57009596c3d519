/**
 * Takes wake-ups from BullMQ and hands over run ids. BullMQ's lock decides nothing here: a job may come twice, and losing a
 * lock is a number and a log line, never an abort; the claim in Postgres is what keeps a run with one owner.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "@drover/telemetry";
import { type Job, UnrecoverableError, WaitingError, Worker } from "bullmq";
import { type Backend, queueName } from "./backend.ts";

/**
 * `done`: nothing more to do for this wake-up, whatever became of the run. `failed`: the run failed (and is settled), which
 * Bull Board shows. `postgres_away`: nothing could be claimed; the job goes back and the consumer stops taking jobs until
 * `resumeTaking`.
 */
export type HandleResult = "done" | "failed" | "postgres_away";

export interface ConsumeOptions {
  /** Wake-ups handled at once, at least 1. */
  concurrency: number;
  /** Called with the run's id, and nothing else is known. Should it throw, the job fails on the board and the error is logged. */
  handle(runId: string): Promise<HandleResult>;
  /** Shown by Bull Board as the worker's name. */
  name?: string;
  /** How long BullMQ takes a job for owned without a renewal, ms (default 30,000). Tests shorten it. */
  lockDurationMs?: number;
  /** How often lost jobs are looked for, ms (default 10,000). Tests shorten it. */
  stalledIntervalMs?: number;
}

export interface Consumer {
  /** Handlers running at this moment. */
  readonly running: number;
  /** From now on at most `n` (at least 1) at once; running ones go on. */
  setConcurrency(n: number): void;
  /** Take no further job; resolves at once, running handlers go on. A job already under way to us is given back unhandled. */
  pauseTaking(): Promise<void>;
  resumeTaking(): void;
  /** Take no further job; resolves when all running handlers have returned, also while the server is away. */
  close(): Promise<void>;
}

/** What happened in this process so far; for metrics. */
export interface QueueCounters {
  /** Jobs that BullMQ found without a lock and handed out again (of any worker). */
  stalled: number;
  /** Locks of running handlers that could not be renewed. */
  locksLost: number;
  /** Handlers that threw, which they should not. */
  handlersThrown: number;
  /** Wake-ups not sent because the backend was away. */
  wakesLost: number;
}

/** How long a worker may take to say goodbye to its server before the connections are cut, ms. */
const goodbyeMs = 3000;
/** On Postgres: what is finished for longer than this is removed every minute. */
const keepMs = { completed: 15 * 60_000, failed: 24 * 3_600_000 };
const cleanEveryMs = 60_000;
/** Between two tries to take a job from a server that answers with an error. */
const refusedPauseMs = 1000;

/**
 * BullMQ waits for a server that is away, and asks one that answers with an error (read-only, without its replicas, a Cluster that is down)
 * again at once: thousands of times a second. Here it pauses first.
 */
class PacedWorker extends Worker<{ runId: string }, void> {
  protected override async moveToActive(...args: Parameters<Worker<{ runId: string }, void>["moveToActive"]>) {
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
  options: ConsumeOptions & {
    logger: Logger;
    counters: QueueCounters;
    onError(error: Error): void;
    clean(state: "completed" | "failed", olderThanMs: number): Promise<void>;
  },
): Consumer {
  const { logger, counters } = options;
  const connected = backend.worker();
  let taking = true;
  let closing: Promise<void> | undefined;
  let running = 0;
  let allReturned: (() => void) | undefined;

  // Two parameters only: with a third, BullMQ would hand over an abort signal.
  const processor = async (job: Job<{ runId: string }>, token?: string): Promise<void> => {
    if (!taking || closing) return giveBack(job, token);
    running++;
    let result: HandleResult;
    try {
      result = await options.handle(job.data.runId);
    } catch (error) {
      counters.handlersThrown++;
      logger.error({ err: error, run_id: job.data.runId, job_id: job.id }, "the handler of a wake-up threw");
      throw new UnrecoverableError(error instanceof Error ? error.message : String(error));
    } finally {
      running--;
      if (running === 0) allReturned?.();
    }
    if (result === "failed") throw withoutStack(new UnrecoverableError("The run failed: see its log."));
    if (result === "postgres_away") {
      await consumer.pauseTaking();
      return giveBack(job, token);
    }
  };

  /** Back to wait, without using up an attempt. Should that fail, the job is found without a lock later. */
  async function giveBack(job: Job, token: string | undefined): Promise<never> {
    await job.moveToWait(token).catch(options.onError);
    throw new WaitingError();
  }

  const worker = new PacedWorker(
    queueName,
    processor,
    {
      connection: connected.connection,
      ...(connected.prefix !== undefined && { prefix: connected.prefix }),
      ...(options.name !== undefined && { name: options.name }),
      concurrency: options.concurrency,
      lockDuration: options.lockDurationMs ?? 30_000,
      stalledInterval: options.stalledIntervalMs ?? 10_000,
      // The default, 1, fails a job at its second crash.
      maxStalledCount: 5,
      runRetryDelay: 1000,
      ...(backend.keep && { removeOnComplete: backend.keep.completed, removeOnFail: backend.keep.failed }),
    },
    connected.factory as undefined,
  );
  worker.on("error", options.onError);
  worker.on("stalled", (jobId) => {
    counters.stalled++;
    logger.warn({ job_id: jobId }, "a wake-up lost its lock and is handed out again");
  });
  worker.on("lockRenewalFailed", (jobIds) => {
    counters.locksLost += jobIds.length;
    logger.warn(
      { job_ids: jobIds.slice(0, 20), count: jobIds.length },
      "locks of running wake-ups could not be renewed",
    );
  });

  const cleaner = backend.keep ? undefined : setInterval(clean, cleanEveryMs * (0.75 + Math.random() / 2));
  cleaner?.unref();
  async function clean(): Promise<void> {
    for (const state of ["completed", "failed"] as const)
      await options.clean(state, keepMs[state]).catch(options.onError);
  }

  const consumer: Consumer = {
    get running() {
      return running;
    },
    setConcurrency(n) {
      const raised = n > worker.concurrency;
      worker.concurrency = Math.max(1, n);
      // The worker looks at its number when a job ends; being resumed makes it look now.
      if (raised && taking && !closing)
        void worker.pause(true).then(() => (taking && !closing ? worker.resume() : undefined));
    },
    async pauseTaking() {
      taking = false;
      await worker.pause(true);
    },
    resumeTaking() {
      if (taking || closing) return;
      taking = true;
      void worker.resume();
    },
    close() {
      closing ??= (async () => {
        clearInterval(cleaner);
        const closed = worker.close().catch(options.onError);
        while (running > 0) {
          await new Promise<void>((resolve) => {
            allReturned = resolve;
          });
        }
        let timer: NodeJS.Timeout | undefined;
        const patience = new Promise<void>((resolve) => {
          timer = setTimeout(resolve, goodbyeMs);
        });
        await Promise.race([closed, patience]);
        clearTimeout(timer);
        await connected.release();
      })();
      return closing;
    },
  };
  return consumer;
}

/** BullMQ keeps a failed job's stack and the board shows it: where our code lies is nobody's business, and says nothing here. */
function withoutStack(error: Error): Error {
  error.stack = error.message;
  return error;
}
