/**
 * Tools in processes of their own: whatever they do there ends in time, with all they started, and the parent goes on. Over 500 lines because
 * all of it needs the same pool and the same tools.
 */
import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { AgentHarness, type AnyTool, ConfigError, type RunLog, ToolRegistry } from "@drover/harness";
import { Isolation, type IsolationOptions, loadConfigFile, type ToolLine } from "@drover/harness/worker";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type ModelServer, type ScriptedReply, startModelServer } from "../support/model-server.ts";
import { spawnNode } from "../support/process.ts";
import { tools } from "./isolated-tools.ts";
import { eventsOf, harnessOn, logFrom, openLog, tool } from "./scripted.ts";

let server: ModelServer;
let folder: string;
let isolation: Isolation;
let lines: ToolLine[];

beforeAll(async () => {
  server = await startModelServer();
  folder = await mkdtemp(join(tmpdir(), "drover-isolation-"));
  open();
});
afterAll(async () => {
  await isolation.close();
  await server.close();
  await rm(folder, { recursive: true });
});
afterEach(() => server.reset());

function open(options: IsolationOptions = {}): void {
  lines = [];
  isolation = new Isolation({ processes: 4, log: (line) => lines.push(line), ...options });
}

/** Another pool for one test. */
async function withPool<T>(options: IsolationOptions, run: () => Promise<T>): Promise<T> {
  const before = isolation;
  open(options);
  try {
    return await run();
  } finally {
    await isolation.close();
    isolation = before;
  }
}

const named = (name: string, more: Partial<AnyTool> = {}): AnyTool => ({
  ...tools.find((one) => one.name === name)!,
  ...more,
});
let files = 0;
const newFile = () => join(folder, `file-${++files}`);
const pidsIn = (file: string) =>
  existsSync(file)
    ? readFileSync(file, "utf8")
        .split("\n")
        .flatMap((line) => (line ? [Number(line)] : []))
    : [];

/** Processes that still run; one that nobody has buried yet does not. */
const living = (pids: number[]) =>
  pids.filter((pid) => {
    try {
      return !/^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
    } catch {
      return false;
    }
  });
const patience = { timeout: 15_000, interval: 20 };
const gone = (pids: number[]) => expect.poll(() => living(pids), patience).toEqual([]);
/** Resolves when so many processes of a tool are at work. */
const begun = (file: string, count = 1) => expect.poll(() => pidsIn(file).length, patience).toBe(count);

async function turn(own: AnyTool[], toolCalls: ScriptedReply["toolCalls"], log = openLog(), signal?: AbortSignal) {
  server.script([{ toolCalls }, "Done."]);
  const harness = harnessOn(server, { tools: own, isolation });
  const result = await harness.run("Do it.", { log, ...(signal && { signal }) });
  return { result, calls: result.tool_calls, results: eventsOf(log.events, "tool.result"), events: log.events };
}

/** One call of one tool; the run goes on after it, whatever it does. */
async function one(own: AnyTool, input: Record<string, unknown> = {}, log = openLog()) {
  const { result, calls, results, events } = await turn([own], [{ name: own.name, input }], log);
  expect(result).toMatchObject({ status: "success", output: "Done." });
  return { call: calls[0]!, event: results[0]!, events };
}

describe("a call", () => {
  it("runs elsewhere, with its arguments, its context and the recorded idempotency key", async () => {
    const log = openLog();
    const { call, events } = await one(named("who"), { n: 7 }, log);
    const [intent] = eventsOf(events, "tool.intent");
    expect(call).toMatchObject({ status: "ok", output: { n: 7, aborted: false } });
    const { pid, context } = call.output as { pid: number; context: Record<string, string> };
    expect(pid).not.toBe(process.pid);
    expect(context).toMatchObject({
      callId: "call_0_0",
      idempotencyKey: intent!.idempotency_key,
      runId: log.runId,
      tenant: "default",
    });
    expect(context.workspace).toMatch(/^\//);
  });

  it("is served by a process that is there already, one call at a time", async () => {
    await withPool({ processes: 1 }, async () => {
      const { calls } = await turn(
        [named("who")],
        [0, 1, 2].map((n) => ({ name: "who", input: { n } })),
      );
      const served = calls.map(({ output }) => output as { n: number; pid: number; calls: number });
      expect(served.map(({ n, calls }) => [n, calls])).toEqual([
        [0, 1],
        [1, 2],
        [2, 3],
      ]);
      expect(new Set(served.map(({ pid }) => pid)).size).toBe(1);
    });
  });

  it("fifty at once share four processes", async () => {
    const { calls } = await turn(
      [named("who")],
      Array.from({ length: 50 }, (_, n) => ({ name: "who", input: { n } })),
    );
    expect(calls.map(({ output }) => (output as { n: number }).n)).toEqual(Array.from({ length: 50 }, (_, n) => n));
    expect(new Set(calls.map(({ output }) => (output as { pid: number }).pid)).size).toBeLessThanOrEqual(4);
    expect(isolation.size).toBeLessThanOrEqual(4);
  });

  it.each<[string, unknown]>([
    ["throws", "the file is gone"],
    ["throws_much", "x".repeat(4000)],
    ["function", "The tool's output is not JSON."],
    ["bigint", expect.stringMatching(/not JSON: .*BigInt/)],
    ["wrong_shape", expect.stringMatching(/something else than it declares\. id: /)],
  ])("%s: the model sees the same as of any tool", async (name, told) => {
    const { call } = await one(named(name));
    expect(call).toMatchObject({ status: "error", output: told });
    const { isolation: _, ...here } = named(name);
    expect((await one(here)).call.output).toBe(call.output);
  });

  it("a result is held against the schema before it is made JSON", async () => {
    expect((await one(named("date"))).call).toMatchObject({ status: "ok", output: "1970-01-01T00:00:00.000Z" });
  });

  it("that says it did nothing is not charged", async () => {
    const { event } = await one(named("nothing", { budgetCost: 3 }));
    expect(event).toMatchObject({ status: "error", output: "there was no paper", problem: "nothing_done" });
    expect(event.points).toBeUndefined();
  });

  it("a huge result is cut where it is made", async () => {
    const { event } = await one(named("huge"), { n: 4_000_000 });
    expect(event).toMatchObject({ status: "ok", truncated: true });
    expect(event.output).toMatch(/^\[0,1,2,3,[\s\S]*\n\[cut: more than 167772\d\d bytes, the first 65536 are shown\]$/);
  });

  it("arguments that cannot be copied are an error", async () => {
    const { input } = named("who");
    const { call } = await one(named("who", { input: input.transform(() => ({ n: () => 1 })) as never }));
    expect(call).toMatchObject({ status: "error", output: expect.stringMatching(/could not be cloned/) });
  });
});

describe("a call that does not end", () => {
  it.each(["spin", "sleep"])("%s: killed at its time, while this process goes on", async (name) => {
    const file = newFile();
    let ticks = 0;
    const ticking = setInterval(() => ticks++, 5);
    const { call, event } = await one(named(name, { timeoutMs: 1500 }), { file });
    clearInterval(ticking);
    expect(ticks).toBeGreaterThan(10);
    const doubt = named(name).effect === "pure" ? "" : " It may have taken effect all the same.";
    expect(call).toMatchObject({ status: "error", output: `The tool was timed out after 1.5 s.${doubt}` });
    expect(event.problem).toBe("tool");
    expect(pidsIn(file)).toHaveLength(1);
    await gone(pidsIn(file));
  });

  it("is killed with all it started, in its group and out of it", async () => {
    const file = newFile();
    await one(named("parents", { timeoutMs: 3000 }), { file });
    const pids = pidsIn(file);
    expect(pids).toHaveLength(3);
    await gone(pids);
  });

  it("may clean up when its signal aborts", async () => {
    await withPool({ graceMs: 5000 }, async () => {
      const file = newFile();
      const { call } = await one(named("cleans_up", { timeoutMs: 1000 }), { file });
      expect(call.output).toMatch(/timed out after 1 s/);
      await expect
        .poll(() => existsSync(file) && readFileSync(file, "utf8"), patience)
        .toBe("cleaned up: timed out after 1 s");
    });
  });

  it("is killed when the run is cancelled", async () => {
    const file = newFile();
    const cancelled = new AbortController();
    const done = turn([named("spin")], [{ name: "spin", input: { file } }], openLog(), cancelled.signal);
    await begun(file);
    cancelled.abort();
    expect((await done).result.error).toMatchObject({ code: "cancelled" });
    await gone(pidsIn(file));
  });

  it("is killed at the run's limit", async () => {
    const file = newFile();
    const log = openLog();
    // So that a process is there when the clock begins to run.
    await one(named("who"));
    server.script([{ toolCalls: [{ name: "hang", input: { file } }] }, "Wrapped up."]);
    const harness = harnessOn(server, { tools: [named("hang")], isolation });
    const result = await harness.run("Do it.", { log, limits: { softSeconds: 1, hardSeconds: 3 } });
    expect(result).toMatchObject({ status: "partial", stop_reason: "time_limit", output: "Wrapped up." });
    expect(eventsOf(log.events, "tool.result")[0]!.output).toMatch(
      /stopped, the run is at its time limit.*taken effect/,
    );
    await gone(pidsIn(file));
  });

  it("gives its place to the next one", async () => {
    await withPool({ processes: 1 }, async () => {
      const stuck = named("spin", { timeoutMs: 300 });
      const { calls } = await turn([stuck, named("who")], [{ name: "spin" }, { name: "who" }, { name: "spin" }]);
      expect(calls.map(({ status }) => status)).toEqual(["error", "ok", "error"]);
    });
  });
});

describe("a call that waits for its process", () => {
  it("does not use up its own time", async () => {
    await withPool({ processes: 1 }, async () => {
      const slow = named("spin", { timeoutMs: 2500 });
      const quick = named("who", { timeoutMs: 2000 });
      const { calls } = await turn([slow, quick], [{ name: "spin" }, { name: "who" }]);
      expect(calls.map(({ status }) => status)).toEqual(["error", "ok"]);
    });
  });

  it("is not started any more when the run is cancelled, and leaves no gap in the queue", async () => {
    await withPool({ processes: 1 }, async () => {
      const file = newFile();
      const busy = turn([named("spin", { timeoutMs: 2000 })], [{ name: "spin", input: { file } }]);
      await begun(file);
      const registry = new ToolRegistry(tools, isolation);
      const context = { runId: "r", tenant: "t", callId: "c", idempotencyKey: "k", workspace: "/" };
      const second = newFile();
      const gaveUp = new AbortController();
      const waiting = registry.get("hang")!.execute({ file: second }, { ...context, signal: gaveUp.signal });
      const after = registry.get("who")!.execute({}, { ...context, signal: new AbortController().signal });
      gaveUp.abort("cancelled");
      await expect(waiting).rejects.toBe("cancelled");
      await busy;
      await expect(after).resolves.toMatchObject({ calls: 1 });
      expect(existsSync(second)).toBe(false);
    });
  });

  it("is said not to have been started when the run's time is up", async () => {
    await withPool({ processes: 1 }, async () => {
      await one(named("who"));
      const own = { tools: [named("hang", { budgetCost: 1 }), named("who", { budgetCost: 5 })], isolation };
      server.script([{ toolCalls: [{ name: "hang" }, { name: "who" }] }, "Wrapped up."]);
      const log = openLog();
      await harnessOn(server, own).run("Do it.", { log, limits: { softSeconds: 1, hardSeconds: 3 } });
      const [hung, waited] = eventsOf(log.events, "tool.result").sort((a, b) => a.index - b.index);
      expect(hung).toMatchObject({ status: "error", points: 1 });
      expect(waited).toMatchObject({
        status: "skipped",
        problem: "time",
        output: expect.stringMatching(/^Not started/),
      });
      expect(waited!.points).toBeUndefined();
    });
  });
});

describe("a process that ends under a call", () => {
  it.each<[string, Record<string, unknown>, RegExp]>([
    ["exit", { n: 0 }, /^The tool's process ended by itself \(exit code 0\)\. It may have taken effect/],
    ["exit", { n: 7 }, /exit code 7/],
    ["late_exit", {}, /exit code 3/],
    ["disconnect", {}, /^The tool's process /],
    ["leak", {}, /^The tool's process was killed \(SIG(ABRT|KILL|TRAP)\).*it may take 64 MiB/],
    ["leak_bytes", {}, /^The tool's process was killed \(SIGKILL\).*it may take 64 MiB/],
  ])("%s %o is an error the model sees", async (name, input, told) => {
    const { event } = await one(named(name), input);
    expect(event).toMatchObject({ status: "error", problem: "tool", output: expect.stringMatching(told) });
    expect((await one(named("who"))).call.status).toBe("ok");
  });

  it("takes nobody along: each call has its own", async () => {
    const { calls } = await turn([named("exit"), named("who")], [{ name: "exit" }, { name: "who" }, { name: "exit" }]);
    expect(calls.map(({ status }) => status)).toEqual(["error", "ok", "error"]);
  });
});

describe("a module that", () => {
  const tiny = (body: string) => `export const it = { name: "it", execute: () => 1 };\n${body}\n`;
  async function from(text: string): Promise<AnyTool> {
    const file = `${newFile()}.mjs`;
    await writeFile(file, text);
    const { isolation: _, ...plain } = tool("it", () => "not in this process");
    return { ...plain, isolation: "process", module: pathToFileURL(file).href };
  }

  it.each<[string, string, RegExp]>([
    ["throws when it is imported", tiny("throw new Error('no key');"), /could not be started: no key/],
    ["is no JavaScript", "export const = 1", /could not be started: /],
    ["ends its process", tiny("process.exit(5);"), /could not be started: its process ended by itself \(exit code 5\)/],
    ["exports another tool", tiny("").replace('"it"', '"other"'), /does not export a tool named "it"; export it there/],
  ])("%s: an error the model sees, and no process is left", async (_what, text, told) => {
    await withPool({}, async () => {
      const { event } = await one(await from(text));
      expect(event).toMatchObject({ status: "error", output: expect.stringMatching(told) });
      if (!/could not be started/.test(String(event.output))) return;
      expect(event.problem).toBe("nothing_done");
      expect(isolation.size).toBe(0);
    });
  });

  it.each(["for (;;);", "await new Promise(() => {});"])("never ends its import (%s) is given up", async (text) => {
    await withPool({ startTimeoutMs: 1500 }, async () => {
      const { call } = await one(await from(tiny(text)));
      expect(call.output).toBe("The tool's process could not be started: its module was not imported within 1.5 s.");
      expect(isolation.size).toBe(0);
    });
  });
});

describe("what a process gets and gives", () => {
  it("nothing of the environment but what is harmless, and what the tool asks for", async () => {
    const secrets = {
      DATABASE_URL: "postgres://u:p@127.0.0.1/db",
      ANTHROPIC_API_KEY: "sk-ant-secret",
      DROVER_WEBHOOK_SECRET: "whsec_secret",
      NODE_OPTIONS: "--no-warnings",
      DROVER_TEST_TOKEN: "only for one",
    };
    const before = { ...process.env };
    Object.assign(process.env, secrets);
    try {
      const bare = (await one(named("environment"))).call.output as Record<string, string>;
      expect(Object.keys(bare)).toContain("PATH");
      for (const name of Object.keys(secrets)) expect(bare).not.toHaveProperty(name);
      const more = (await one(named("asked_for"))).call.output as Record<string, string>;
      expect(more.DROVER_TEST_TOKEN).toBe("only for one");
      expect(more).not.toHaveProperty("DATABASE_URL");
    } finally {
      for (const name of Object.keys(secrets)) delete process.env[name];
      Object.assign(process.env, before);
    }
  });

  it("its lines, each with the run it belongs to, a hundred of a call at most", async () => {
    await withPool({ processes: 1 }, async () => {
      const runs = [openLog(), openLog()];
      await one(named("prints"), { n: 500 }, runs[0]);
      await one(named("prints"), { n: 2 }, runs[1]);
      // The two streams are read side by side.
      await expect.poll(() => lines.length, patience).toBe(102 + 3);
      const of = (run: { runId?: string }) =>
        lines
          .filter(({ runId }) => runId === run.runId)
          .toSorted((a, b) => Number(a.stream === "stderr") - Number(b.stream === "stderr"));
      const [first, second] = runs.map(of);
      expect(first!.map(({ text }) => text)).toEqual([
        ...Array.from({ length: 100 }, (_, line) => `line ${line} of ${runs[0]!.runId}`),
        "(more lines of this call are left out)",
        "an error without an end",
      ]);
      expect(second!.map(({ text, stream }) => [stream, text])).toEqual([
        ["stdout", `line 0 of ${runs[1]!.runId}`],
        ["stdout", `line 1 of ${runs[1]!.runId}`],
        ["stderr", "an error without an end"],
      ]);
      expect(lines.every((line) => line.tool === "prints")).toBe(true);
    });
  });
});

describe("verify and compensate", () => {
  it("run where the tool runs", async () => {
    const registry = new ToolRegistry([named("undoable"), named("careless")], isolation);
    const context = { runId: "r", tenant: "t", callId: "c", idempotencyKey: "k", workspace: "/" };
    const { signal } = new AbortController();
    const undo = registry.get("undoable")!;
    const undone = await undo.compensate!({ input: { n: 1 }, output: { n: 2 } }, { ...context, signal });
    expect(undone).toMatchObject({ input: { n: 1 }, output: { n: 2 } });
    expect((undone as { by: number }).by).not.toBe(process.pid);
    const nothing = registry.get("careless")!.compensate!({ input: {}, output: 1 }, { ...context, signal });
    await expect(nothing).resolves.toBeUndefined();
  });

  /** A run whose log says that its owner died inside the call. */
  async function crashedIn(name: string, more: Partial<AnyTool>): Promise<RunLog & { events: never[] }> {
    const { events } = await turn([named(name, more)], [{ name, input: { n: 4 } }]);
    const kept = events.slice(0, events.findIndex((event) => event.type === "tool.intent") + 1);
    return logFrom(kept) as never;
  }

  it("a call in doubt is verified there, and what it finds out is the result", async () => {
    const more = { timeoutMs: 5000 };
    const log = await crashedIn("undoable", more);
    server.script(["Done."]);
    const result = await harnessOn(server, { tools: [named("undoable", more)], isolation }).run("", { log });
    expect(result.tool_calls[0]).toMatchObject({ status: "ok", output: { n: 4 } });
    const { pid, idempotencyKey } = result.tool_calls[0]!.output as { pid: number; idempotencyKey: string };
    expect(pid).not.toBe(process.pid);
    expect(idempotencyKey).toBe(eventsOf(log.events, "tool.intent")[0]!.idempotency_key);
  });

  it("a verify that never ends is killed in its time, and a person is asked", async () => {
    const log = await crashedIn("careless", {});
    const result = await harnessOn(server, { tools: [named("careless")], isolation }).run("", { log });
    expect(result.status).toBe("waiting");
    expect(eventsOf(log.events, "tool.verified")).toMatchObject([{ answer: "unknown" }]);
  });
});

describe("the processes", () => {
  it("are there before the first call when they are asked for, and are replaced when they are killed", async () => {
    await withPool({ warm: 2 }, async () => {
      new ToolRegistry(
        tools.filter(({ maxMemoryMb, env }) => !maxMemoryMb && !env),
        isolation,
      );
      isolation.warmUp();
      expect(isolation.size).toBe(2);
      await one(named("exit"));
      await expect.poll(() => isolation.size, patience).toBe(2);
      await one(named("who"));
      expect(isolation.size).toBe(2);
    });
  });

  it("are replaced after so many calls", async () => {
    await withPool({ processes: 1, callsPerProcess: 2 }, async () => {
      const pids: number[] = [];
      for (let n = 0; n < 4; n++) pids.push(((await one(named("who"))).call.output as { pid: number }).pid);
      expect([pids[0] === pids[1], pids[1] === pids[2], pids[2] === pids[3]]).toEqual([true, false, true]);
      await gone(pids.slice(0, 2));
    });
  });

  it("end when they are idle, but for those kept warm", async () => {
    await withPool({ warm: 1, idleMs: 50 }, async () => {
      await turn(
        [named("who")],
        Array.from({ length: 4 }, () => ({ name: "who" })),
      );
      await expect.poll(() => isolation.size, patience).toBe(1);
      expect((await one(named("who"))).call.status).toBe("ok");
    });
  });

  it("make room for those of other tools", async () => {
    await withPool({ processes: 1 }, async () => {
      for (const name of ["who", "asked_for", "who"]) expect((await one(named(name))).call.status).toBe("ok");
      expect(isolation.size).toBe(1);
    });
  });

  it("are gone once the pool is closed, busy ones too, and nobody gets another", async () => {
    const file = newFile();
    await withPool({ processes: 1 }, async () => {
      const ended = turn([named("parents"), named("who")], [{ name: "parents", input: { file } }, { name: "who" }]);
      await begun(file, 3);
      await isolation.close();
      // All were told; the kernel may take a moment for the children's children.
      await gone(pidsIn(file));
      const { calls } = await ended;
      expect(calls[0]!.output).toMatch(/process was killed/);
      expect(calls[1]!.output).toMatch(/this process is stopping/);
    });
  });

  it("do not keep a program from ending", async () => {
    const parent = spawnNode(new URL("./isolated-parent-process.ts", import.meta.url), { args: ["call"] });
    expect(await parent.exited).toMatchObject({ code: 0 });
    const { n, pid } = JSON.parse(parent.lines[0]!);
    expect(n).toBe(1);
    await gone([pid]);
  });

  it.each([
    ["spin", 1],
    ["parents", 3],
  ] as const)("do not outlive their parent's SIGKILL while they %s", async (name, count) => {
    const file = newFile();
    const parent = spawnNode(new URL("./isolated-parent-process.ts", import.meta.url), { args: [name, file] });
    await parent.waitForLine("started");
    await begun(file, count);
    expect(living(pidsIn(file))).toHaveLength(count);
    await parent.kill("SIGKILL");
    await gone(pidsIn(file));
  });

  it("end by themselves when their parent is stopped and cannot end them", async () => {
    const file = newFile();
    const parent = spawnNode(new URL("./isolated-parent-process.ts", import.meta.url), { args: ["brief", file] });
    await parent.waitForLine("started");
    await begun(file);
    process.kill(parent.pid, "SIGSTOP");
    await gone(pidsIn(file));
    await parent.kill("SIGKILL");
  });
});

describe("a configuration", () => {
  const isolated = { ...tool("it", () => 1), isolation: "process" } as const;

  it("without the module is refused, with the fix", () => {
    const make = () => new AgentHarness({ tools: [isolated], env: {} });
    expect(make).toThrow(ConfigError);
    expect(make).toThrow(/the tool "it".*\n.*needs `module: import\.meta\.url`/);
    const wrong = () => new AgentHarness({ tools: [{ ...isolated, module: "./tools.ts" }], env: {} });
    expect(wrong).toThrow(/`module` must be a file:\/\/ URL/);
  });

  async function configWith(body: string): Promise<string> {
    const file = `${newFile()}.mjs`;
    const zod = import.meta.resolve("zod");
    const head = `import { z } from ${JSON.stringify(zod)};
const it = { name: "it", description: "It.", input: z.object({}), permission: "read", effect: "pure", isolation: "process", execute: () => process.pid };`;
    await writeFile(file, `${head}\n${body}\n`);
    return file;
  }

  it("file is the module of its own tools", async () => {
    const file = await configWith("export default { tools: [it] };");
    const { tools: loaded } = await loadConfigFile(file, []);
    expect(loaded![0]!.module).toBe(pathToFileURL(file).href);
    const { call } = await one(loaded![0]!);
    expect(call.status).toBe("ok");
    expect(call.output).not.toBe(process.pid);
  });

  it("whose tool's module does not export it is refused, with the fix", async () => {
    const elsewhere = JSON.stringify(new URL("./scripted.ts", import.meta.url).href);
    const file = await configWith(`export default { tools: [{ ...it, module: ${elsewhere} }] };`);
    await expect(loadConfigFile(file, [])).rejects.toThrow(
      /tools\.0 \(it\): its module does not export a tool named "it"; export it there/,
    );
  });
});
