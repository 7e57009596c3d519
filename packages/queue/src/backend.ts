/** What the wake queue needs of a place where BullMQ keeps its jobs. `redis.ts` and `postgres.ts` are the two. */
import type { BackendFactory, ConnectionOptions, IQueueBackend, KeepJobs } from "bullmq";

/** All jobs of Drover are in this one BullMQ queue. */
export const queueName = "runs";

export interface Connected {
  connection: ConnectionOptions;
  prefix?: string;
  factory: BackendFactory<IQueueBackend> | undefined;
  /** Close what BullMQ does not close itself. */
  release(): Promise<void>;
}

export interface Backend {
  readonly name: "redis" | "postgres";
  /** For adding and looking: fails fast, never waits for a server that is away. */
  readonly producer: Connected;
  /** A new set of connections for one worker: waits and reconnects without end. */
  worker(): Connected;
  /** Throws when it is known without asking that the server cannot be reached. */
  assertConnected(): void;
  /** Rejects when the server answers but would not take a job: read-only, out of memory, without its replicas. */
  assertWritable(): Promise<void>;
  /** For each job id whether BullMQ has it and it is not finished. One round trip. */
  pending(jobIds: string[]): Promise<boolean[]>;
  /** How long BullMQ keeps finished jobs by itself; undefined: until `clean`. */
  readonly keep: { completed: KeepJobs; failed: KeepJobs } | undefined;
}
