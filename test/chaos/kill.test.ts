/** SIGKILL of the worker at every step of a run: what is finished is never done, and never paid for, twice. */
import { readLog, readOutcome, readRun } from "@drover/runs";
import { afterAll, afterEach, beforeAll, beforeEach, expect, inject, test } from "vitest";
import { createBench, input } from "../runs/bench.ts";
import { createGate, type ModelServer, startModelServer } from "../support/model-server.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";
import { startToolEndpoint } from "./tools.ts";

const entry = new URL("./worker-process.ts", import.meta.url);
let bench: Awaited<ReturnType<typeof createBench>>;
let models: ModelServer;
let endpoint: Awaited<ReturnType<typeof startToolEndpoint>>;
const workers: SpawnedNode[] = [];

beforeAll(async () => {
  bench = await createBench();
});
afterAll(() => bench.close());
beforeEach(async () => {
  models = await startModelServer();
  endpoint = await startToolEndpoint();
});
afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.kill("SIGKILL")));
  await Promise.all([models.close(), endpoint.close()]);
});

async function startWorker(more: Record<string, string> = {}): Promise<SpawnedNode> {
  const worker = spawnNode(entry, {
    env: {
      ...models.env(),
      DATABASE_URL: bench.url,
      REDIS_URL: inject("redisUrl"),
      DROVER_QUEUE_PREFIX: `{${new URL(bench.url).pathname.slice(1)}}`,
      DROVER_MODEL: "anthropic/claude-sonnet-4-5",
      TOOL_URL: endpoint.url,
      LEASE_SECONDS: "2",
      PARTIAL_EVERY_SECONDS: "0.05",
      ...more,
    },
  });
  workers.push(worker);
  await worker.waitForLine(/^ready/);
  return worker;
}

async function ended(id: string) {
  await expect
    .poll(async () => (await readRun(bench.pool, "default", id))?.finishedAt ?? null, { timeout: 25_000 })
    .not.toBeNull();
  const run = (await readRun(bench.pool, "default", id))!;
  const log = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: id });
  expect(log.map((event) => event.seq)).toEqual(log.map((_, index) => index + 1));
  return { run, log, outcome: (await readOutcome(bench.pool, bench.blobs, run))! };
}

/** Two tool turns and an answer: model, tool, model, tool, model. */
const fiveSteps = (effects: [string, string]) =>
  models.script((call) => {
    const effect = effects[call.turn];
    if (effect)
      return { text: `turn ${call.turn}`, toolCalls: [{ name: `${effect}_call`, input: { note: `n${call.turn}` } }] };
    return { text: `final: ${call.results.map((result) => JSON.stringify(result)).join(" ")}` };
  });

test.each([1, 2, 3, 4, 5])(
  "killed right after step %i of five is committed: nothing finished is repeated",
  async (step) => {
    fiveSteps(["idempotent", "unsafe"]);
    const id = await bench.submit();
    const victim = await startWorker({ KILL_AFTER: String(step) });
    expect((await victim.exited).signal).toBe("SIGKILL");
    await startWorker();
    const { run, log, outcome } = await ended(id);
    expect(run).toMatchObject({ status: "completed", attempt: 1, iterations: 3, steps: 5 });
    expect(models.count).toBe(3);
    expect(endpoint.calls.map((call) => call.note)).toEqual(["n0", "n1"]);
    expect(log.filter((event) => event.type === "model.call")).toHaveLength(3);
    expect(log.filter((event) => event.type === "tool.result")).toHaveLength(2);
    expect(log.filter((event) => event.type === "run.rescued")).toHaveLength(1);
    expect(outcome.result.tool_calls.map((call) => call.status)).toEqual(["ok", "ok"]);
    expect(outcome.result.output).toContain("final");
  },
);

test("killed in a model stream: only that call is made again, and it sees the same prompt", async () => {
  const gate = createGate();
  let held = false;
  models.script((call) => {
    if (call.turn === 0) return { toolCalls: [{ name: "pure_call", input: { note: "once" } }] };
    if (held) return { text: "whole answer" };
    held = true;
    return { text: "half an answer that is never ended", gate };
  });
  const id = await bench.submit();
  const victim = await startWorker();
  gate.pass(2);
  // The half that streamed is in the log before the worker dies: `model.partial`.
  await expect
    .poll(async () =>
      (await readLog(bench.pool, bench.blobs, { tenant: "default", runId: id })).some(
        (event) => event.type === "model.partial",
      ),
    )
    .toBe(true);
  await victim.kill("SIGKILL");
  await startWorker();
  const { run, outcome } = await ended(id);
  expect(run.status).toBe("completed");
  expect(outcome.result.output).toBe("whole answer");
  expect(models.count).toBe(3);
  expect(endpoint.calls).toHaveLength(1);
  expect(models.calls[2]!.rawBody).toBe(models.calls[1]!.rawBody);
});

test.each(["pure", "idempotent"])(
  "killed inside a call of a(n) %s tool: it runs again, with the same idempotency key",
  async (effect) => {
    fiveSteps([effect, effect]);
    endpoint.hold();
    const id = await bench.submit();
    const victim = await startWorker();
    await endpoint.called(1);
    await victim.kill("SIGKILL");
    endpoint.release();
    await startWorker();
    const { run } = await ended(id);
    expect(run.status).toBe("completed");
    expect(endpoint.calls.map((call) => call.note)).toEqual(["n0", "n0", "n1"]);
    expect(endpoint.calls[1]!.idempotencyKey).toBe(endpoint.calls[0]!.idempotencyKey);
    expect(models.count).toBe(3);
  },
);

test("killed inside a call of an unsafe tool: it never runs again by itself, the run ends as uncertain with what it had", async () => {
  fiveSteps(["unsafe", "unsafe"]);
  endpoint.hold();
  const id = await bench.submit();
  const victim = await startWorker();
  await endpoint.called(1);
  await victim.kill("SIGKILL");
  endpoint.release();
  await startWorker();
  const { run, outcome } = await ended(id);
  expect(run).toMatchObject({ status: "partial", stopReason: "uncertain" });
  expect(outcome.result.output).toBe("turn 0");
  expect(endpoint.calls).toHaveLength(1);
  expect(models.count).toBe(1);
});

test("a run whose worker died at its time limit is settled with the text that had streamed", async () => {
  const gate = createGate();
  models.script(() => ({ text: "something to show and then nothing", gate }));
  const id = await bench.submit({ input: input({ limits: { soft_seconds: 2, hard_seconds: 3 } }) });
  const victim = await startWorker();
  gate.pass(3);
  await expect
    .poll(async () =>
      (await readLog(bench.pool, bench.blobs, { tenant: "default", runId: id })).some(
        (event) => event.type === "model.partial",
      ),
    )
    .toBe(true);
  await victim.kill("SIGKILL");
  await bench.pool.query("UPDATE runs SET hard_at = now(), soft_at = now() WHERE id = $1", [id]);
  await startWorker();
  const { run, outcome } = await ended(id);
  expect(run).toMatchObject({ status: "partial", stopReason: "time_limit" });
  expect(outcome.result.output).toMatch(/^something/);
  expect(models.count).toBe(1);
});

test("SIGTERM in a tool call: the call ends, is recorded, and another worker goes on without an attempt or a crash", async () => {
  fiveSteps(["unsafe", "pure"]);
  endpoint.hold();
  const id = await bench.submit();
  const leaving = await startWorker();
  await endpoint.called(1);
  const gone = leaving.kill("SIGTERM");
  endpoint.release();
  expect((await gone).code).toBe(0);
  await startWorker();
  const { run, log } = await ended(id);
  expect(run).toMatchObject({ status: "completed", attempt: 1 });
  expect(log.map((event) => event.type)).toContain("run.handed_over");
  expect(log.map((event) => event.type)).not.toContain("run.rescued");
  expect(endpoint.calls).toHaveLength(2);
  expect(models.count).toBe(3);
});
