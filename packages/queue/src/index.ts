export type { BoardOptions } from "./board.ts";
export { type QueueConfig, queueConfig } from "./config.ts";
export type { ConsumeOptions, Consumer, HandleResult, QueueCounters } from "./consumer.ts";
export { migrateQueue } from "./postgres.ts";
export { type Follower, inMemorySignals, openSignals, type Signals } from "./signals.ts";
export {
  lowestPriority,
  openQueue,
  QueueAwayError,
  type QueueDepth,
  type WakeQueue,
  type WakeUp,
} from "./wake-queue.ts";
