/**
 * The configuration of the fleet's worker processes: tools that block the event loop, kill the process, keep memory or ignore their signal,
 * beside those that call the test's endpoint. `once_<tool>` misbehaves the first time only, over crashes too.
 */
import { execFileSync, execSync } from "node:child_process";
import { pbkdf2Sync } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setImmediate as nextTurn } from "node:timers/promises";
import { type AnyTool, defineConfig, defineTool, type ToolContext } from "@drover/harness";
import { z } from "zod";
import { endpointTools } from "./tools.ts";

type Behaviour = (context: ToolContext, note: string) => unknown;

const kept: unknown[] = [];
const never = () => new Promise(() => {});
const tell = (path: string, note: string, key: string) =>
  fetch(`${process.env.TOOL_URL}/${path}`, { method: "POST", body: JSON.stringify({ note, idempotencyKey: key }) });

const blocks: Record<string, Behaviour> = {
  spin() {
    for (;;);
  },
  backtrack: () => /^(a+)+$/.test(`${"a".repeat(64)}!`),
  // Longer than any test waits; short enough that the orphan is soon gone.
  exec_sync: () => execSync("sleep 30"),
  read_fifo({ workspace }) {
    const path = join(workspace, "fifo");
    execFileSync("sh", ["-c", 'mkfifo "$0"', path]);
    return readFileSync(path);
  },
  derive: () => pbkdf2Sync("secret", "salt", 2 ** 31 - 1, 64, "sha512"),
};

const triggered = Promise.withResolvers<void>();

const behaviours: Record<string, Behaviour> = {
  ...blocks,
  /** Blocks once another run has called `trigger`: by then that one is the tool entered last. */
  async spin_later(_context, note) {
    await tell("spin_later", note, "");
    await triggered.promise;
    for (;;);
  },
  async derive_later(_context, note) {
    await tell("derive_later", note, "");
    await triggered.promise;
    return pbkdf2Sync("secret", "salt", 2 ** 31 - 1, 64, "sha512");
  },
  async trigger() {
    setTimeout(triggered.resolve, 100);
    await never();
  },
  /** Ends the process, without a word, once the endpoint answers. */
  async die(_context, note) {
    await tell("die", note, "");
    process.kill(process.pid, "SIGKILL");
    await never();
  },
  /** Busy for long, in bursts of 500 ms of the processor's time that let the event loop come round. */
  async bursts(_context, note) {
    await tell("bursts", note, "");
    const until = performance.now() + Number(process.env.BURSTS_MS);
    while (performance.now() < until) {
      const before = process.threadCpuUsage();
      for (let used = 0; used < 500_000; ) {
        const { user, system } = process.threadCpuUsage(before);
        used = user + system;
      }
      await nextTurn();
    }
    return "busy";
  },
  /** Keeps memory that the heap does not count. */
  hoard() {
    for (let mb = 0; mb < Number(process.env.HOARD_MB); mb += 16) kept.push(Buffer.alloc(16 * 2 ** 20, 1));
    return "hoarded";
  },
  /** Fills the heap until V8 ends the process. */
  async explode() {
    for (;;) {
      kept.push(Array.from({ length: 100_000 }, (_, index) => ({ index })));
      await nextTurn();
    }
  },
  /** Nothing: a step that is over at once. */
  calm: () => "calm",
  never,
  /** Hears its signal, and goes on until the endpoint answers. */
  async deaf(_context, note) {
    await tell("deaf", note, "");
    return "late";
  },
};

function firstTime({ workspace, callId }: ToolContext): boolean {
  mkdirSync(workspace, { recursive: true });
  try {
    writeFileSync(join(workspace, callId), "", { flag: "wx" });
    return true;
  } catch {
    return false;
  }
}

const tools = Object.entries(behaviours).flatMap(([name, behave]): AnyTool[] => {
  const always = defineTool({
    name,
    description: `Behaves like this: ${name}.`,
    input: z.object({ note: z.string() }),
    permission: "read",
    effect: "pure",
    execute: ({ note }, context) => {
      mkdirSync(context.workspace, { recursive: true });
      return behave(context, note);
    },
  }) as AnyTool;
  const once: AnyTool = {
    ...always,
    name: `once_${name}`,
    execute: (input, context) => (firstTime(context) ? always.execute(input, context) : "behaved"),
  };
  return [always, once];
});

const timeoutMs = process.env.TOOL_TIMEOUT_MS;
const systemPrompt = process.env.AGENT_PROMPT ?? "first version";
export default defineConfig({
  tools: [...tools, ...endpointTools(process.env.TOOL_URL!, timeoutMs ? { timeoutMs: Number(timeoutMs) } : {})],
  agents: {
    default: {},
    changing: { systemPrompt },
    strict: { systemPrompt, onChange: "strict" },
    ...(process.env.NEW_AGENT && { [process.env.NEW_AGENT]: {} }),
  },
});
