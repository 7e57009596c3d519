/** Tools in processes of their own, for tests that kill the worker around them. Each writes who is at work, and with which key, into the file it is given. */
import { spawn } from "node:child_process";
import { appendFileSync, existsSync } from "node:fs";
import { type AnyTool, defineConfig, type ToolContext } from "@drover/harness";
import { z } from "zod";

const note = (file: string, about: object) => appendFileSync(file, `${JSON.stringify(about)}\n`);
/** Read by the worker: its limits hold. */
const timeoutMs = Number(process.env.TOOL_TIMEOUT_MS ?? 60_000);
const forever = () => new Promise<never>(() => {});

function isolated(
  name: string,
  execute: (input: { file: string }, context: ToolContext) => unknown,
  more: Partial<AnyTool> = {},
): AnyTool {
  const input = z.object({ file: z.string() });
  const base = { description: `The tool ${name}.`, input, permission: "write", effect: "unsafe" } as const;
  return { ...base, name, isolation: "process", timeoutMs, execute, ...more };
}

/** Works with a process of its own beside it, and does not end. */
function work(file: string, key: string) {
  note(file, { pid: process.pid, key });
  note(file, { pid: spawn("sleep", ["1000"], { detached: true }).pid, key });
  return forever();
}

export default defineConfig({
  tools: [
    isolated("unsafe_work", ({ file }, { idempotencyKey }) => work(file, idempotencyKey)),
    isolated("verified_work", ({ file }, { idempotencyKey }) => work(file, idempotencyKey), {
      verify: ({ input, idempotencyKey }) => ({ done: true, output: { asked: process.pid, idempotencyKey, ...input } }),
    }),
    isolated(
      "again",
      ({ file }, { idempotencyKey }) => {
        if (!existsSync(file)) return work(file, idempotencyKey);
        note(file, { pid: process.pid, key: idempotencyKey });
        return "done";
      },
      { effect: "idempotent" },
    ),
    isolated(
      "spin",
      ({ file }, { idempotencyKey }) => {
        note(file, { pid: process.pid, key: idempotencyKey });
        console.log(`spinning beside ${Object.keys(process.env).filter((name) => /URL|KEY/.test(name))}`);
        for (;;);
      },
      { effect: "pure", timeoutMs: 5000 },
    ),
    isolated("quick", () => "quick", { effect: "pure" }),
    // Gigabytes as JSON, in the worker itself.
    { ...isolated("huge", () => new Array(4_000_000_000), { effect: "pure" }), isolation: undefined },
  ],
});
