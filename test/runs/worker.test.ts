/** A worker over real Postgres, both queue backends, and the scripted model server: the ordinary paths and what may go missing. */
import { defaultAgent, type RunInput, ToolRegistry } from "@drover/harness";
import { createModels, modelConfig } from "@drover/llm";
import { openQueue, openSignals, queueConfig, type Signals, type WakeQueue } from "@drover/queue";
import {
  cancelBatch,
  cancelRun,
  createSubmitter,
  followLog,
  type RunWorker,
  readBatch,
  readBatchItems,
  readLog,
  readOutcome,
  readProgress,
  readRun,
  type Submission,
  startWorker,
  waitForRun,
} from "@drover/runs";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, test } from "vitest";
import { endpointTools, startToolEndpoint } from "../chaos/tools.ts";
import { createGate, type ModelServer, startModelServer } from "../support/model-server.ts";
import { createBench, input, logger, submission } from "./bench.ts";

describe.each(["redis", "postgres"] as const)("on %s", (backend) => {
  let bench: Awaited<ReturnType<typeof createBench>>;
  let models: ModelServer;
  let endpoint: Awaited<ReturnType<typeof startToolEndpoint>>;
  let queue: WakeQueue;
  let signals: Signals;
  const workers: RunWorker[] = [];

  beforeAll(async () => {
    bench = await createBench();
    const config = queueConfig.parse({
      ...(backend === "redis" && { REDIS_URL: inject("redisUrl") }),
      DROVER_QUEUE_PREFIX: `{w-${new URL(bench.url).pathname.slice(1)}}`,
    });
    queue = await openQueue(config, { logger, postgresUrl: bench.url });
    signals = await openSignals(config, { logger, directUrl: bench.url });
  });
  afterAll(async () => {
    await Promise.all([queue.close(), signals.close()]);
    await bench.close();
  });
  beforeEach(async () => {
    models = await startModelServer();
    endpoint = await startToolEndpoint();
  });
  afterEach(async () => {
    await Promise.all(workers.splice(0).map((worker) => worker.stop(0)));
    await Promise.all([models.close(), endpoint.close()]);
    await bench.pool.query(
      "UPDATE runs SET status = 'cancelled', waiting_for = NULL, worker = NULL, finished_at = now() WHERE finished_at IS NULL",
    );
  });

  async function start(more: Partial<Parameters<typeof startWorker>[0]> = {}): Promise<RunWorker> {
    const source = createModels(modelConfig.parse({ ...models.env(), DROVER_MODEL: "anthropic/claude-sonnet-4-5" }));
    const worker = await startWorker({
      pool: bench.pool,
      directUrl: bench.url,
      blobs: bench.blobs,
      queue,
      signals,
      logger,
      agents: {
        agent: (name) => (name === "default" ? defaultAgent : undefined),
        model: (id) => source.resolve(id ?? source.default),
        tools: new ToolRegistry(endpointTools(endpoint.url)),
        policies: [],
      },
      slots: 20,
      leaseMs: 2000,
      partialEveryMs: 50,
      workspaces: "unused",
      ...more,
    });
    workers.push(worker);
    return worker;
  }

  const submitter = () => createSubmitter({ pool: bench.pool, blobs: bench.blobs, queue, logger });
  const submit = async (more: Partial<Submission> = {}) => (await submitter().submit(submission(more))).id;
  const withInput = (more: Partial<RunInput>) => ({ input: input(more) });
  const run = async (id: string) => (await readRun(bench.pool, "default", id))!;
  const log = (id: string) => readLog(bench.pool, bench.blobs, { tenant: "default", runId: id });
  const types = async (id: string) => (await log(id)).map((event) => event.type);
  const end = async (id: string) => {
    await waitForRun({
      db: bench.pool,
      blobs: bench.blobs,
      signals,
      tenant: "default",
      runId: id,
      waitMs: 20_000,
      signal: new AbortController().signal,
    });
    const found = await run(id);
    return { run: found, outcome: (await readOutcome(bench.pool, bench.blobs, found))! };
  };
  const until = async (id: string, type: string) => {
    const follow = {
      db: bench.pool,
      blobs: bench.blobs,
      signals,
      tenant: "default",
      runId: id,
      after: 0,
      signal: AbortSignal.timeout(20_000),
    };
    for await (const event of followLog(follow)) if (event.type === type) return event;
    throw new Error(`run ${id} has no ${type}: ${await types(id)}`);
  };

  test("a bad key fails at once with its code", async () => {
    models.script(() => ({ status: 401, message: "invalid x-api-key" }));
    await start();
    const id = await submit();
    const { run, outcome } = await end(id);
    expect(run).toMatchObject({ status: "failed", stopReason: "auth_failed", attempt: 1 });
    expect(outcome.error).toMatchObject({ code: "auth_failed" });
    expect(models.count).toBe(1);
  });

  test.each([
    ["an agent nobody has", { agent: "nobody" }, /no agent "nobody"/],
    ["a model of an unknown provider", { model: "nobody/x" }, /nobody/],
  ])("%s is a clear failure of the run", async (_, more, message) => {
    await start();
    const { run, outcome } = await end(await submit(withInput(more)));
    expect(run).toMatchObject({ status: "failed", stopReason: "invalid_input" });
    expect(outcome.error!.message).toMatch(message);
  });

  test("a long Retry-After gives the slot back: queued, the next attempt and its time show, then it completes", async () => {
    models.script([{ status: 429, headers: { "retry-after": "60" } }, { text: "at last" }]);
    const worker = await start();
    const id = await submit();
    const event = await until(id, "run.retrying");
    expect(event.data).toMatchObject({ attempt: 2, delay_ms: 60_000, error: { code: "model_error" } });
    const waiting = await run(id);
    expect(waiting).toMatchObject({ status: "queued", attempt: 2 });
    expect(waiting.availableAt.getTime() - Date.now()).toBeGreaterThan(50_000);
    await expect.poll(() => worker.active).toBe(0);
    await bench.pool.query("UPDATE runs SET available_at = now() WHERE id = $1", [id]);
    const done = await end(id);
    expect(done.run).toMatchObject({ status: "completed", attempt: 1 });
    expect(models.count).toBe(2);
  });

  test("a step that keeps failing uses up its attempts and fails with what there was", async () => {
    models.script((call) =>
      call.turn === 0 ? { text: "a start", toolCalls: [{ name: "pure_call", input: { note: "x" } }] } : { status: 500 },
    );
    await start();
    const id = await submit(withInput({ retry: { max_attempts: 2, backoff_ms: 1, max_backoff_ms: 5 } }));
    const { run, outcome } = await end(id);
    expect(run).toMatchObject({ status: "partial", stopReason: "model_error", attempt: 2 });
    expect(outcome.result.output).toBe("a start");
    expect((await types(id)).filter((type) => type === "run.retrying")).toHaveLength(1);
    // Each attempt is one call and two retries in place; the finished first turn was not repeated.
    expect(models.count).toBe(1 + 2 * 3);
    expect(endpoint.calls).toHaveLength(1);
  });

  test("a run whose log cannot be read is tried again, a few times, and then fails with its code", async () => {
    const id = await submit({ ...withInput({ query: "x".repeat(50_000) }), delayMs: 3_600_000 });
    await bench.pool.query("DELETE FROM blobs");
    await bench.pool.query("UPDATE runs SET available_at = now(), attempt = 4 WHERE id = $1", [id]);
    await start();
    await expect
      .poll(() => bench.row(id), { timeout: 10_000 })
      .toMatchObject({ status: "queued", attempt: 5, worker: null });
    await bench.pool.query("UPDATE runs SET available_at = now() WHERE id = $1", [id]);
    await expect
      .poll(() => bench.row(id), { timeout: 10_000 })
      .toMatchObject({ status: "failed", stop_reason: "internal_error" });
    expect(models.count).toBe(0);
  });

  test("a delayed run starts when it is due, not before", async () => {
    models.script(() => "hello");
    await start();
    const id = await submit({ delayMs: 3_600_000 });
    const other = await submit();
    await end(other);
    expect((await run(id)).status).toBe("queued");
    await bench.pool.query("UPDATE runs SET available_at = now() WHERE id = $1", [id]);
    expect((await end(id)).run.status).toBe("completed");
  });

  test("cancel reaches a run in a model stream on another connection; the text so far is its result", async () => {
    const gate = createGate();
    models.script(() => ({ text: "one two three four", gate }));
    await start();
    const id = await submit();
    await gate.arrived();
    gate.pass(2);
    await until(id, "model.partial");
    expect(await readProgress(bench.pool, bench.blobs, await run(id))).toMatchObject({
      partialOutput: expect.stringContaining("one"),
    });
    expect(await cancelRun(bench.pool, "default", id, "test")).toMatchObject({
      status: "running",
      cancelRequested: true,
    });
    const { run: ended, outcome } = await end(id);
    expect(ended.status).toBe("cancelled");
    expect(outcome.result.output).toContain("one");
    expect(await models.calls[0]!.closed).toBe(true);
  });

  test("cancel reaches a run in a tool call; queued and delayed ones end at once; a final one stays what it is", async () => {
    models.script(() => ({ toolCalls: [{ name: "unsafe_call", input: { note: "x" } }] }));
    endpoint.hold();
    await start({ slots: 1 });
    const id = await submit();
    await endpoint.called(1);
    const queued = await submit();
    const delayed = await submit({ delayMs: 60_000 });
    expect(await cancelRun(bench.pool, "default", queued, "test")).toMatchObject({
      status: "cancelled",
      cancelRequested: false,
    });
    expect(await cancelRun(bench.pool, "default", delayed, "test")).toMatchObject({ status: "cancelled" });
    await cancelRun(bench.pool, "default", id, "test");
    expect((await end(id)).run.status).toBe("cancelled");
    expect(await cancelRun(bench.pool, "default", id, "test")).toMatchObject({
      status: "cancelled",
      cancelRequested: false,
    });
    expect(await cancelRun(bench.pool, "default", "00000000-0000-7000-8000-000000000000", "test")).toBeNull();
    expect(endpoint.calls).toHaveLength(1);
  });

  test("the soft limit: no new tool, one wrap-up turn without tools, a partial result", async () => {
    const gate = createGate();
    models.script((call) =>
      call.query.includes("time for this task is over")
        ? { text: "what I have: little" }
        : { text: ["looking"], toolCalls: [{ name: "pure_call", input: { note: "late" } }], gate },
    );
    await start();
    const id = await submit(withInput({ limits: { soft_seconds: 0.3, hard_seconds: 6 } }));
    await gate.arrived();
    await bench.pool.query("SELECT pg_sleep(0.5)");
    gate.open();
    const { run, outcome } = await end(id);
    expect(run).toMatchObject({ status: "partial", stopReason: "time_limit" });
    expect(outcome.result).toMatchObject({
      output: "what I have: little",
      tool_calls: [{ tool_name: "pure_call", status: "skipped" }],
    });
    expect(endpoint.calls).toHaveLength(0);
    expect(models.count).toBe(2);
  });

  test("a run whose only model call is cut at the limit keeps its text", async () => {
    models.script((call) =>
      call.query.includes("time for this task is over")
        ? { connection: "hang" }
        : { text: "half of it", stallAfter: 2 },
    );
    await start();
    const { run, outcome } = await end(await submit(withInput({ limits: { soft_seconds: 0.5, hard_seconds: 1.5 } })));
    expect(run).toMatchObject({ status: "partial", stopReason: "time_limit" });
    expect(outcome.result.output).toContain("half");
  });

  test("a deadline that passes in the queue ends the run before it ever starts", async () => {
    const id = await submit(
      withInput({
        limits: { soft_seconds: 20, hard_seconds: 30, deadline: new Date(Date.now() - 1000).toISOString() },
      }),
    );
    await bench.pool.query("UPDATE runs SET available_at = now() + interval '1 hour', woken = false WHERE id = $1", [
      id,
    ]);
    await start();
    const { run } = await end(id);
    expect(run).toMatchObject({ status: "failed", stopReason: "deadline", startedAt: null });
    expect(models.count).toBe(0);
  });

  test("max_cost_usd ends the run partial with what it cost", async () => {
    models.script(() => ({
      text: "dear",
      toolCalls: [{ name: "pure_call", input: { note: "x" } }],
      usage: { input: 1_000_000, output: 10 },
    }));
    await start();
    const { run, outcome } = await end(await submit(withInput({ max_cost_usd: 0.5 })));
    expect(run).toMatchObject({ status: "partial", stopReason: "budget" });
    expect(outcome.result.cost_usd).toBeGreaterThan(0.5);
    expect(models.count).toBe(1);
  });

  test("a wake-up that was lost is made good by an idle slot; one that comes twice runs once", async () => {
    models.script(() => "hello");
    // Its wake-up goes to a queue that this worker does not hear.
    const id = await bench.submit();
    await start();
    expect((await end(id)).run.status).toBe("completed");
    const twice = await submit();
    await queue.wake(500);
    await end(twice);
    expect((await types(twice)).filter((type) => type === "run.started")).toHaveLength(1);
  });

  test("under full load nobody needs to be woken: a slot that comes free takes what is next at once", async () => {
    const gate = createGate();
    models.script(() => ({ text: "held", gate }));
    await start({ slots: 2 });
    const held = [await submit(), await submit()];
    await gate.arrived(2);
    // Their rings go where this worker does not hear them.
    const waiting = [await bench.submit(), await bench.submit({ priority: 9 }), await bench.submit()];
    gate.open();
    for (const id of [...held, ...waiting]) expect((await end(id)).run.status).toBe("completed");
    const order = await Promise.all(waiting.map(async (id) => (await run(id)).startedAt!.getTime()));
    expect(order[1]).toBeLessThanOrEqual(order[0]!);
    expect(order[0]).toBeLessThanOrEqual(order[2]!);
  });

  test("a batch: progress and cost from SQL, items in order, closed when the last is final, cancel for the rest", async () => {
    models.script((call) =>
      call.query === "bad" ? { status: 400 } : { text: call.query, usage: { input: 1000, output: 0 } },
    );
    await start();
    const items = ["a", "bad", "c"].map((query) => submission(withInput({ query })));
    const about = { tenant: "default", callbackUrl: null, callbackEvents: null, metadata: {} };
    const { id } = await submitter().submitBatch({ ...about, items });
    await expect
      .poll(async () => (await readBatch(bench.pool, "default", id))!.status, { timeout: 20_000 })
      .toBe("completed");
    const batch = (await readBatch(bench.pool, "default", id))!;
    expect(batch.counts).toMatchObject({ completed: 2, failed: 1, queued: 0 });
    expect(batch.costUsd).toBeCloseTo(0.006, 9);
    const page = await readBatchItems(bench.pool, bench.blobs, "default", { batchId: id, afterIndex: -1, limit: 2 });
    expect(page.map((item) => [item.query, item.run.status])).toEqual([
      ["a", "completed"],
      ["bad", "failed"],
    ]);
    expect(await readBatch(bench.pool, "other", id)).toBeNull();

    const delayed = ["x", "y"].map((query) => submission({ ...withInput({ query }), delayMs: 60_000 }));
    const second = await submitter().submitBatch({ ...about, items: delayed });
    expect(await cancelBatch(bench.pool, "other", second.id, "test")).toBe(false);
    expect(await cancelBatch(bench.pool, "default", second.id, "test")).toBe(true);
    expect((await readBatch(bench.pool, "default", second.id))!).toMatchObject({
      status: "cancelled",
      counts: { cancelled: 2 },
    });
  });

  test("stopping hands a run in a model stream over; the next worker makes that call again and nothing else", async () => {
    const gate = createGate();
    models.script((call) =>
      call.turn === 0 ? { toolCalls: [{ name: "pure_call", input: { note: "x" } }] } : { text: "the answer", gate },
    );
    const leaving = await start();
    const id = await submit();
    await gate.arrived();
    await leaving.stop(0);
    expect(await run(id)).toMatchObject({ status: "queued", attempt: 1 });
    expect((await types(id)).at(-1)).toBe("run.handed_over");
    expect((await bench.pool.query("SELECT FROM workers WHERE id = $1", [leaving.workerId])).rowCount).toBe(0);
    gate.open();
    await start();
    expect((await end(id)).run).toMatchObject({ status: "completed", attempt: 1, steps: 3 });
    expect(endpoint.calls).toHaveLength(1);
  });

  test("a worker declared dead while away aborts what it held and goes on under another id", async () => {
    const gate = createGate();
    models.script((call) => (call.index === 0 ? { text: "from the grave", gate } : "second life"));
    const worker = await start();
    const before = worker.workerId;
    const id = await submit();
    await gate.arrived();
    await bench.pool.query("DELETE FROM workers WHERE id = $1", [before]);
    await until(id, "run.rescued");
    expect(await models.calls[0]!.closed).toBe(true);
    const { run, outcome } = await end(id);
    expect(run.status).toBe("completed");
    expect(outcome.result.output).toBe("second life");
    expect(worker.workerId).not.toBe(before);
  });

  test("a follower gets every event once and in order, with the text between them as it streams", async () => {
    const gate = createGate();
    models.script(() => ({ text: "alpha beta gamma", gate }));
    const id = await submit();
    const deltas: string[] = [];
    const seen: number[] = [];
    const following = (async () => {
      const options = {
        db: bench.pool,
        blobs: bench.blobs,
        signals,
        tenant: "default",
        runId: id,
        after: 0,
        signal: AbortSignal.timeout(20_000),
      };
      for await (const event of followLog({ ...options, onDelta: (_epoch, text) => deltas.push(text) }))
        seen.push(event.seq);
    })();
    await start();
    await gate.arrived();
    gate.open();
    await following;
    expect(seen).toEqual(seen.map((_, index) => index + 1));
    expect((await types(id)).length).toBe(seen.length);
    expect("alpha beta gamma").toContain(deltas.join(""));
    const late: number[] = [];
    for await (const event of followLog({
      db: bench.pool,
      blobs: bench.blobs,
      signals,
      tenant: "default",
      runId: id,
      after: 1,
      signal: AbortSignal.timeout(5000),
    }))
      late.push(event.seq);
    expect(late).toEqual(seen.slice(1));
  });
});
