/**
 * A tool's process: imports the module once, then carries out one call at a time. It ends, with all it started, when its parent ends it or is
 * gone.
 */

import { flushCompileCache } from "node:module";
import { Worker } from "node:worker_threads";
import { asThrown, messageOf } from "@drover/telemetry";
import { shape } from "../door/output.ts";
import type { AnyTool } from "../library/tool.ts";
import { howToExport, toolsOf } from "./exports.ts";
import { type Answer, endOfCall, type ToChild, type ToParent } from "./messages.ts";
import { endSelf } from "./tree.ts";
import type { WatchdogData } from "./watchdog.ts";

type Call = Extract<ToChild, { type: "call" }>;

const [module, parentPid, maxMemoryMb] = process.argv.slice(2);
const send = process.send!.bind(process);
/** A parent that is gone is noticed otherwise. */
const tell = (message: ToParent) => send(message, undefined, undefined, () => {});
const watched: WatchdogData = { parentPid: Number(parentPid), maxMemoryMb: Number(maxMemoryMb) };
const watchdog = new Worker(new URL("./watchdog.ts", import.meta.url), { workerData: watched });
watchdog.unref();
const longestMessage = 10_000;
let running: AbortController | undefined;

process.on("disconnect", () => void endSelf());
// A tool that ends this process in the moment after its parent's death must not leave anything behind.
process.on("exit", () => {
  if (process.ppid !== watched.parentPid) process.kill(-process.pid, "SIGKILL");
});
for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {});

try {
  const tools = toolsOf((await import(module!)) as Record<string, unknown>);
  process.on("message", (message: ToChild) => {
    if (message.type === "abort") running?.abort(message.reason);
    else void carryOut(message, tools.get(message.tool));
  });
  tell({ type: "ready" });
  // With NODE_COMPILE_CACHE: it is written at a process's orderly end, which this one does not have.
  flushCompileCache();
} catch (error) {
  tell({ type: "broken", message: messageOf(error).slice(0, longestMessage) });
}

async function carryOut(call: Call, tool: AnyTool | undefined): Promise<void> {
  running = new AbortController();
  watchdog.postMessage(call.limitMs);
  const answer = await answerOf(call, tool, running.signal);
  watchdog.postMessage(Number.POSITIVE_INFINITY);
  for (const stream of [process.stdout, process.stderr]) stream.write(`\n${endOfCall}\n`);
  tell(answer);
}

async function answerOf(
  { tool: name, entry, args, context }: Call,
  tool: AnyTool | undefined,
  signal: AbortSignal,
): Promise<Answer> {
  try {
    const run = tool?.[entry] as ((...args: unknown[]) => unknown) | undefined;
    if (!tool || !run) throw new Error(howToExport(name));
    const output = await run.call(tool, ...args, { ...context, signal });
    const written = await shape(entry === "execute" ? tool : {}, output);
    return { type: "returned", written, nothing: output === undefined };
  } catch (error) {
    return {
      type: "threw",
      name: nameOf(error),
      message: messageOf(error).slice(0, longestMessage),
    };
  }
}

function nameOf(thrown: unknown): string {
  const error = asThrown(thrown);
  return error instanceof Error ? error.name : "";
}
