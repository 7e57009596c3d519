/** Bull Board's view of the queue: everything to see, and only pausing and resuming to do. Runs are changed through Drover's API. */
import type { BaseAdapter } from "@bull-board/api/baseAdapter";
import { BullMQAdapter } from "@bull-board/api/bullMQAdapter";
import type { Job, Queue } from "bullmq";

export interface BoardOptions {
  /** What the board shows of a job's data; gets `{ runId }`. Default: as it is. */
  format?(data: { runId: string }): unknown;
  /** Job's page in Drover's own dashboard. */
  runUrl?(runId: string): { href: string; displayText: string };
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

const jobChanges = new Set<PropertyKey>([
  "remove",
  "retry",
  "promote",
  "update",
  "updateData",
  "changeDelay",
  "changePriority",
  "removeUnprocessedChildren",
  "discard",
]);
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

function lookOnly<J extends Job>(job: J): J {
  return new Proxy(job, {
    get: (target, property) => {
      if (jobChanges.has(property)) return refuse;
      const value = Reflect.get(target, property, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

class RunsAdapter extends BullMQAdapter {
  override async getJob(id: string): Promise<Job | undefined> {
    const job = await super.getJob(id);
    return job && lookOnly(job);
  }
  override async getJobs(...args: Parameters<BullMQAdapter["getJobs"]>): Promise<Job[]> {
    return (await super.getJobs(...args)).map(lookOnly);
  }
}

export function createBoard(queue: Queue, options: BoardOptions): BaseAdapter {
  const adapter = new RunsAdapter(queue, {
    allowRetries: false,
    description: "One job per wake-up of a run. The truth about runs is in Postgres.",
    ...(options.runUrl && { externalJobUrl: (job) => options.runUrl!((job.data as { runId: string }).runId) }),
  });
  for (const change of queueChanges) Object.defineProperty(adapter, change, { value: refuse });
  if (options.format) adapter.setFormatter("data", options.format);
  return adapter;
}
