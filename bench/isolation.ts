/** What it costs to run a tool in a process of its own: a warm call, a process that must be started first, and its memory. */
import { readFileSync } from "node:fs";
import { type AnyTool, type ToolContext, ToolRegistry } from "@drover/harness";
import { Isolation, type IsolationOptions } from "@drover/harness/worker";
import { nothing } from "./isolated-tools.ts";
import { percentiles } from "./load.ts";

interface Spread {
  p50: number;
  p99: number;
}

export interface IsolationCosts {
  /** ms of a call, one at a time: without isolation, and with it. */
  direct: Spread;
  warm: Spread;
  /** Calls a second with one process for each core. */
  perSecond: number;
  /** ms of a call for which a process must be started: of a module that imports nothing, and of one that imports the harness and zod. */
  coldBare: Spread;
  cold: Spread;
  /** Of an idle process, MB: resident, and its share where pages are shared. */
  rss: number;
  pss: number;
}

const text = "x".repeat(200);
const context: ToolContext = {
  runId: "r",
  tenant: "t",
  callId: "c",
  idempotencyKey: "k",
  workspace: "/",
  signal: new AbortController().signal,
};

/** Measures `calls` warm calls, and a hundredth as many cold ones. */
export async function isolationCosts(calls: number, processes: number): Promise<IsolationCosts> {
  const { isolation: _, ...plain } = nothing;
  const bare = { ...nothing, module: new URL("./isolated-bare.ts", import.meta.url).href };
  const cold: IsolationOptions = { warm: 0, callsPerProcess: 1 };
  const few = Math.max(10, Math.round(calls / 100));
  const direct = await inPool(plain, {}, (call) => timed(call, calls));
  const warm = await inPool(nothing, {}, async (call) => {
    await timed(call, Math.min(500, calls));
    const { pid } = await call();
    return { ...(await timed(call, calls)), ...memoryOf(pid) };
  });
  const perSecond = await inPool(nothing, { processes }, async (call) => {
    await Promise.all(Array.from({ length: processes }, () => timed(call, 200)));
    const startedAt = performance.now();
    await Promise.all(Array.from({ length: processes }, () => timed(call, calls)));
    return (calls * processes * 1000) / (performance.now() - startedAt);
  });
  return {
    direct,
    warm,
    perSecond,
    coldBare: await inPool(bare, cold, (call) => timed(call, few)),
    cold: await inPool(nothing, cold, (call) => timed(call, few)),
    rss: warm.rss,
    pss: warm.pss,
  };
}

type Call = () => Promise<{ pid: number }>;

async function inPool<T>(tool: AnyTool, options: IsolationOptions, measure: (call: Call) => Promise<T>): Promise<T> {
  const isolation = new Isolation({ callsPerProcess: Number.POSITIVE_INFINITY, ...options });
  const registered = new ToolRegistry([tool], isolation).get(tool.name)!;
  try {
    return await measure(async () => (await registered.execute({ text }, context)) as { pid: number });
  } finally {
    await isolation.close();
  }
}

async function timed(call: Call, times: number): Promise<Spread> {
  const took: number[] = [];
  for (let n = 0; n < times; n++) {
    const at = performance.now();
    await call();
    took.push(performance.now() - at);
  }
  return percentiles(took);
}

function memoryOf(pid: number): { rss: number; pss: number } {
  const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
  const mb = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(rollup)?.[1]) / 1024;
  return { rss: mb("Rss"), pss: mb("Pss") };
}
