/**
 * Bull Board's view of the queue: one job a run, as the database has it, so that what the board shows is the truth at any load. Everything is
 * to see, and only pausing and resuming to do: runs are changed through Drover's API.
 */
import type { BaseAdapter } from "@bull-board/api/baseAdapter";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import type { Queue } from "bullmq";

/** BullMQ's words for where a job is. */
export const boardStates = ["active", "waiting", "delayed", "completed", "failed"] as const;
export type BoardState = (typeof boardStates)[number];

/** A run as a job of the board. Times in ms since 1970. */
export interface BoardJob {
  id: string;
  state: BoardState;
  data: object;
  priority: number;
  attempt: number;
  createdAt: number;
  startedAt: number | null;
  finishedAt: number | null;
  worker: string | null;
  failedReason: string | null;
  link: { href: string; displayText: string };
}

/** Where the board's jobs come from. */
export interface BoardSource {
  /** May stop counting somewhere: the board shows pages, not totals. */
  counts(): Promise<Record<BoardState, number>>;
  /** The newest of these states, by state in the order given, from `start` to `end` of each. */
  list(states: BoardState[], start: number, end: number): Promise<BoardJob[]>;
  get(id: string): Promise<BoardJob | undefined>;
}

class NotHere extends Error {
  readonly statusCode = 405;
  constructor() {
    super("The board only looks: change runs through Drover's API.");
  }
}
const refuse = async (): Promise<never> => {
  throw new NotHere();
};

const queueChanges = [
  "addJob",
  "clean",
  "empty",
  "obliterate",
  "promoteAll",
  "removeJobScheduler",
  "runJobSchedulerNow",
  "updateJobScheduler",
  "setGlobalConcurrency",
  "setConfiguredRateLimit",
  "removeConfiguredRateLimit",
  "releaseActiveRateLimit",
] as const satisfies (keyof BullMQAdapter)[];

type QueueJob = NonNullable<Awaited<ReturnType<BaseAdapter["getJob"]>>>;

function toQueueJob(job: BoardJob): QueueJob {
  const opts = { priority: job.priority };
  return {
    opts: {},
    promote: refuse,
    remove: refuse,
    retry: refuse,
    getState: async () => job.state,
    toJSON: () => ({
      id: job.id,
      name: "run",
      data: { ...job.data, link: job.link },
      opts,
      progress: 0,
      attemptsMade: job.attempt,
      timestamp: job.createdAt,
      processedOn: job.startedAt,
      processedBy: job.worker,
      finishedOn: job.finishedAt,
      failedReason: job.failedReason ?? "",
      stacktrace: [],
      returnvalue: null,
    }),
  };
}

/** What the board takes for a job's data, without what it is told beside. */
const ownData = ({ link: _, ...data }: { link?: unknown }) => data;

class RunsAdapter extends BullMQAdapter {
  readonly #source: BoardSource;

  constructor(queue: Queue, source: BoardSource) {
    super(queue, {
      allowRetries: false,
      displayName: "runs",
      description: "One job a run, as Postgres has it. BullMQ carries only the rings that wake workers.",
      externalJobUrl: ({ data }) => (data as { link: BoardJob["link"] }).link,
    });
    this.#source = source;
    this.setFormatter("data", ownData);
  }

  override getName(): string {
    return "runs";
  }
  override getJobStatuses(): ReturnType<BullMQAdapter["getJobStatuses"]> {
    return [...boardStates];
  }
  override getJobCounts(): ReturnType<BullMQAdapter["getJobCounts"]> {
    return this.#source.counts() as never;
  }
  override async getJobs(states: string[], start = 0, end = 9): Promise<never[]> {
    const wanted = boardStates.filter((state) => states.includes(state));
    return (await this.#source.list(wanted, start, end)).map(toQueueJob) as never[];
  }
  override async getJob(id: string): Promise<never> {
    const job = await this.#source.get(id);
    return (job && toQueueJob(job)) as never;
  }
  override async getJobLogs(): Promise<string[]> {
    return [];
  }
}

export function createBoard(queue: Queue, source: BoardSource): BaseAdapter {
  const adapter = new RunsAdapter(queue, source);
  for (const change of queueChanges) Object.defineProperty(adapter, change, { value: refuse });
  return adapter;
}
