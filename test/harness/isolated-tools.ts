/** Tools that run in a process of their own, and do there what a tool must not: for the tests of isolation, which kill them. */
import { execSync, spawn } from "node:child_process";
import { appendFileSync, writeFileSync } from "node:fs";
import type { AnyTool, ToolContext } from "@drover/harness";
import { z } from "zod";

type Input = { n?: number; file?: string };
const input = z.object({ n: z.number().optional(), file: z.string().optional() });

function isolated(
  name: string,
  execute: (input: Input, context: ToolContext) => unknown,
  more: Partial<AnyTool> = {},
): AnyTool {
  const base = { description: `The tool ${name}.`, input, permission: "write", effect: "idempotent" } as const;
  return { ...base, name, isolation: "process", module: import.meta.url, execute, ...more };
}

/** Resolves never. */
const forever = () => new Promise<never>(() => {});
/** Tells a test who is at work. */
const tell = (file: string | undefined, pid: number | undefined) => file && appendFileSync(file, `${pid}\n`);

let calls = 0;

export const tools: AnyTool[] = [
  isolated("who", ({ n }, { signal, ...context }) => ({
    n,
    pid: process.pid,
    calls: ++calls,
    context,
    aborted: signal.aborted,
  })),
  isolated(
    "spin",
    ({ file }) => {
      tell(file, process.pid);
      for (;;);
    },
    { effect: "pure" },
  ),
  isolated(
    "brief",
    ({ file }) => {
      tell(file, process.pid);
      for (;;);
    },
    { timeoutMs: 1500 },
  ),
  isolated("sleep", ({ file }) => {
    tell(file, process.pid);
    execSync("sleep 1000");
  }),
  isolated("parents", ({ file }) => {
    tell(file, process.pid);
    // One in this group, one in a session of its own whose parent is gone.
    tell(file, spawn("sleep", ["1000"]).pid);
    spawn("sh", ["-c", `sleep 1000 & echo $! >> "${file}"`], { detached: true, stdio: "ignore" });
    return forever();
  }),
  isolated("hang", ({ file }) => {
    tell(file, process.pid);
    return forever();
  }),
  isolated("exit", ({ n }) => process.exit(n ?? 0)),
  isolated("late_exit", () => {
    setTimeout(() => process.exit(3), 10);
    return forever();
  }),
  isolated("disconnect", () => {
    process.disconnect();
    return forever();
  }),
  isolated(
    "leak",
    () => {
      const kept: unknown[] = [];
      for (;;) kept.push(new Array(10_000).fill(kept.length));
    },
    { maxMemoryMb: 64 },
  ),
  isolated(
    "leak_bytes",
    async () => {
      const kept: Buffer[] = [];
      for (;;) {
        kept.push(Buffer.alloc(4 * 2 ** 20, 1));
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
    },
    { maxMemoryMb: 64 },
  ),
  isolated("environment", () => process.env),
  isolated("asked_for", () => process.env, { env: ["DROVER_TEST_TOKEN"] }),
  isolated("function", () => () => 1),
  isolated("bigint", () => 1n),
  isolated("huge", ({ n = 0 }) => Array.from({ length: n }, (_, index) => index)),
  isolated("date", () => new Date(0), { output: z.date() }),
  isolated("wrong_shape", () => ({ id: 7 }), { output: z.object({ id: z.string() }) }),
  isolated("throws", () => {
    throw new Error("the file is gone");
  }),
  isolated("throws_much", () => {
    throw new Error("x".repeat(100_000));
  }),
  isolated("nothing", () => {
    throw Object.assign(new Error("there was no paper"), { name: "NothingDone" });
  }),
  isolated("cleans_up", ({ file }, { signal }) => {
    signal.addEventListener("abort", () => writeFileSync(file!, `cleaned up: ${signal.reason}`));
    return forever();
  }),
  isolated("prints", ({ n }, { runId }) => {
    for (let line = 0; line < (n ?? 1); line++) console.log(`line ${line} of ${runId}`);
    process.stderr.write("an error without an end");
    return "printed";
  }),
  isolated("undoable", ({ n }) => ({ n, pid: process.pid }), {
    compensate: ({ input, output }) => ({ input, output, by: process.pid }),
    effect: "unsafe",
    verify: ({ input, idempotencyKey }) => ({
      done: true,
      output: { pid: process.pid, n: input.n ?? null, idempotencyKey },
    }),
  }),
  isolated("careless", () => 1, {
    compensate: () => undefined,
    effect: "unsafe",
    verify: () => {
      for (;;);
    },
    timeoutMs: 300,
  }),
];
