/** What the wake queue needs of a place where BullMQ keeps its jobs. `redis.ts` and `postgres.ts` are the two. */
import type { BackendFactory, ConnectionOptions, IQueueBackend } from "bullmq";

/** All rings of Drover are in this one BullMQ queue. */
export const queueName = "doorbell";

export interface Connected {
  connection: ConnectionOptions;
  prefix?: string;
  factory: BackendFactory<IQueueBackend> | undefined;
  /** Close what BullMQ does not close itself. */
  release(): Promise<void>;
}

export interface Backend {
  readonly name: "redis" | "postgres";
  /** For ringing and looking: fails fast, never waits for a server that is away. */
  readonly producer: Connected;
  /** A new set of connections for one worker: waits and reconnects without end. */
  worker(): Connected;
  /** Throws when it is known without asking that the server cannot be reached. */
  assertConnected(): void;
  /** Rejects when the server answers but would not take a job: read-only, out of memory, without its replicas. */
  assertWritable(): Promise<void>;
}
