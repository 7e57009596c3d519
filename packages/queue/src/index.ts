export { type BoardJob, type BoardSource, type BoardState, boardStates } from "./board.ts";
export { type QueueConfig, queueConfig } from "./config.ts";
export type { ConsumeOptions, Consumer, QueueCounters } from "./consumer.ts";
export { migrateQueue } from "./postgres.ts";
export { type Follower, inMemorySignals, openSignals, type Signals, type TextPlace } from "./signals.ts";
export { openQueue, QueueAwayError, runsPerRing, type WakeQueue } from "./wake-queue.ts";
