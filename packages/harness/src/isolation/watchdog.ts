/**
 * The thread that ends a tool's process, with all it started, when its parent is gone, when its memory is over the limit, or when a call is long
 * over its time and the parent did nothing about it. A thread, since the tool may keep the process's own loop busy.
 */
import { parentPort, workerData } from "node:worker_threads";
import { endSelf } from "./tree.ts";

export interface WatchdogData {
  parentPid: number;
  maxMemoryMb: number;
}

const everyMs = 200;
/** What Node and a few libraries take besides the tool's own heap. */
const baselineMb = 192;
const { parentPid, maxMemoryMb } = workerData as WatchdogData;
let endAt = Number.POSITIVE_INFINITY;
let ending = false;

/** ms until the end; Infinity: none. */
parentPort!.on("message", (limitMs: number) => {
  endAt = performance.now() + limitMs;
});

setInterval(() => {
  const orphaned = process.ppid !== parentPid;
  const tooLarge = process.memoryUsage.rss() > (maxMemoryMb + baselineMb) * 2 ** 20;
  if (ending || !(orphaned || tooLarge || performance.now() > endAt)) return;
  ending = true;
  void endSelf();
}, everyMs);
