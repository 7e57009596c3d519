/** Isolated tools in a real worker process: what the worker's death, a deploy and a cancel do to them, and what they do to the worker. */

import { existsSync, readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { toWireId } from "@drover/protocol";
import { cancelRun } from "@drover/runs";
import { afterAll, afterEach, beforeAll, expect, inject, test } from "vitest";
import { input } from "../runs/bench.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";
import { chaos, dataOf } from "./world.ts";

const world = chaos();
const entry = new URL("../../apps/worker/src/main.ts", import.meta.url);
const patience = { timeout: 25_000, interval: 25 };
const workers: SpawnedNode[] = [];
let folder: string;
let files = 0;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "drover-isolated-"));
});
afterAll(() => rm(folder, { recursive: true }));
afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.kill("SIGKILL")));
});

/** The worker as it is deployed. */
async function start(more: Record<string, string> = {}): Promise<SpawnedNode> {
  const { bench, models } = world;
  const worker = spawnNode(entry, {
    env: {
      ...models.env(),
      DATABASE_URL: bench.url,
      REDIS_URL: inject("redisUrl"),
      DROVER_QUEUE_PREFIX: `{${new URL(bench.url).pathname.slice(1)}}`,
      DROVER_MODEL: "anthropic/claude-sonnet-4-5",
      DROVER_CONFIG: new URL("./isolation/drover.config.ts", import.meta.url).pathname,
      DROVER_WORKSPACES: folder,
      LEASE_SECONDS: "2",
      TOOL_PROCESSES: "4",
      SHUTDOWN_GRACE_SECONDS: "1",
      ...more,
    },
  });
  workers.push(worker);
  await worker.waitForLine("worker ready");
  return worker;
}

/** A run with one call of this tool, and the file in which the tool says who is at work. */
async function call(name: string): Promise<{ id: string; file: string }> {
  const file = join(folder, `file-${++files}`);
  const id = await world.bench.submit({
    input: input({ query: `${name} ${file}`, limits: { soft_seconds: 100, hard_seconds: 120 } }),
  });
  return { id, file };
}

/** Every run's model calls the tool that its query names, then tells what it was told. */
function scriptCalls(): void {
  world.models.script(({ query, turn, results }) => {
    const [name, file] = query.split(" ");
    if (turn === 0) return { toolCalls: [{ name: name!, input: { file } }] };
    return { text: `told: ${results.map(({ content }) => content).join(" ")}` };
  });
}

const noted = (file: string): { pid: number; key: string }[] =>
  existsSync(file)
    ? readFileSync(file, "utf8")
        .split("\n")
        .flatMap((line) => (line ? [JSON.parse(line)] : []))
    : [];
const atWork = (file: string, count: number) => expect.poll(() => noted(file).length, patience).toBe(count);
/** Resolves when the two that were at work first are gone: a later call's process may be kept for the next one. */
const allGone = (file: string) => expect.poll(() => noted(file).slice(0, 2).filter(isLiving), patience).toEqual([]);
function isLiving({ pid }: { pid: number }): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    return false;
  }
}

test("the worker is killed inside them: nothing survives it, and the door decides as for any tool", async () => {
  scriptCalls();
  const victim = await start();
  const unsafe = await call("unsafe_work");
  const verified = await call("verified_work");
  const again = await call("again");
  for (const { file } of [unsafe, verified, again]) await atWork(file, 2);
  // An unsafe call is in doubt for as long as it may take.
  await start({ TOOL_TIMEOUT_MS: "5000" });
  await victim.kill("SIGKILL");
  for (const { file } of [unsafe, verified, again]) await allGone(file);

  const redone = await world.ended(again.id);
  expect(redone.run.status).toBe("completed");
  const keys = new Set(noted(again.file).map(({ key }) => key));
  expect([...keys]).toEqual(dataOf(redone.log, "tool.intent").map(({ idempotency_key }) => idempotency_key));
  expect(noted(again.file)).toHaveLength(3);

  const found = await world.ended(verified.id);
  const [result] = dataOf(found.log, "tool.result");
  const { asked, ...known } = result!.output as { asked: number };
  expect(known).toEqual({ idempotencyKey: noted(verified.file)[0]!.key, file: verified.file });
  expect([...workers.map(({ pid }) => pid), process.pid]).not.toContain(asked);

  const doubted = await world.waiting(unsafe.id);
  expect(dataOf(doubted.log, "approval.requested")).toMatchObject([{ subject: "uncertain", tool_name: "unsafe_work" }]);
  for (const { file } of [unsafe, verified]) expect(noted(file)).toHaveLength(2);
});

test("an endless loop in one costs its own call only: the worker lives, and its other runs go on", async () => {
  scriptCalls();
  const worker = await start();
  const stuck = await call("spin");
  await atWork(stuck.file, 1);
  // Longer than a blocked event loop would be suffered, if it were the worker's own.
  for (let n = 0; n < 3; n++) expect((await world.ended((await call("quick")).id)).run.status).toBe("completed");
  const { run, log } = await world.ended(stuck.id);
  expect(run).toMatchObject({ status: "completed", attempt: 1 });
  expect(dataOf(log, "tool.result")).toMatchObject([{ status: "error", output: "The tool was timed out after 5 s." }]);
  expect(dataOf(log, "run.rescued")).toEqual([]);
  await allGone(stuck.file);

  // What it prints is a line of the log with its run, and its environment has none of the worker's secrets.
  const lines = worker.lines.map((line) => JSON.parse(line) as { task_id?: string; tool?: string; msg: string });
  expect(lines.filter(({ tool }) => tool === "spin")).toMatchObject([
    { task_id: toWireId("run", stuck.id), msg: "spinning beside " },
  ]);
  expect(await worker.kill("SIGTERM")).toEqual({ code: 0, signal: null });
});

test("gigabytes from a tool in the worker itself are cut, kept up to a bound, and cost nobody else anything", async () => {
  scriptCalls();
  const worker = await start();
  const huge = await call("huge");
  const beside = await call("quick");
  const { run, log, outcome } = await world.ended(huge.id);
  expect(run).toMatchObject({ status: "completed", attempt: 1 });
  const [result] = dataOf(log, "tool.result");
  const { id, bytes } = result!.artifact!;
  expect(result).toMatchObject({ status: "ok", truncated: true, artifact: { type: "text/plain", cut: true } });
  expect(outcome.result.output).toContain(`kept as artifact ${id}]`);
  const kept = (await world.bench.blobs.get("default", [id])).get(id)!;
  expect([kept.length, kept.slice(0, 11)]).toEqual([bytes, "[null,null,"]);
  expect((await world.ended(beside.id)).run).toMatchObject({ status: "completed", attempt: 1 });
  expect(await worker.kill("SIGTERM")).toEqual({ code: 0, signal: null });
});

test("a cancel kills it, a stop of the worker leaves nothing behind", async () => {
  scriptCalls();
  const worker = await start();
  const one = await call("unsafe_work");
  await atWork(one.file, 2);
  await cancelRun(world.bench.pool, "default", one.id, "key");
  expect((await world.ended(one.id)).run.status).toBe("cancelled");
  await allGone(one.file);
  const other = await call("spin");
  await atWork(other.file, 1);
  await worker.kill("SIGTERM");
  await allGone(other.file);
});
