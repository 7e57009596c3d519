import { fromWireId } from "@drover/protocol";
import { afterAll, beforeAll, expect, test } from "vitest";
import { paths, startWorld, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld({ env: { DROVER_EGRESS_ALLOW: "127.0.0.0/8" } });
});
afterAll(() => world.close());

const count = async (table: string) =>
  (await world.pool.query(`SELECT count(*) AS n FROM ${table}`)).rows[0].n as number;
const itemsOf = async (batchId: string) =>
  (
    await world.pool.query("SELECT * FROM runs WHERE batch_id = $1 ORDER BY batch_index", [
      fromWireId("batch", batchId),
    ])
  ).rows;
const batchOf = async (batchId: string) =>
  (await world.pool.query("SELECT * FROM batches WHERE id = $1", [fromWireId("batch", batchId)])).rows[0];

test.each([
  ["no queries", {}, ["queries"]],
  ["an empty list", { queries: [] }, ["queries"]],
  ["10,001 of them", { queries: Array(10_001).fill("x") }, ["queries"]],
  ["an empty string", { queries: ["a", ""] }, ["queries[1]"]],
  ["a number", { queries: ["a", 7] }, ["queries[1]"]],
  ["an item without query", { queries: ["a", { priority: 1 }] }, ["queries[1].query"]],
  ["an unknown field of an item", { queries: [{ query: "a", nope: 1 }] }, ["queries[0].nope"]],
  ["a session of an item", { queries: [{ query: "a", session_id: "s" }] }, ["queries[0].session_id"]],
  ["an item's agent", { queries: ["a", { query: "b", agent: "nobody" }] }, ["queries[1].agent"]],
  [
    "an item's limits",
    { queries: [{ query: "a", limits: { soft_seconds: 9, hard_seconds: 3 } }] },
    ["queries[0].limits.soft_seconds"],
  ],
  ["an item's callback", { queries: [{ query: "a", callback_url: "http://10.1.1.1" }] }, ["queries[0].callback_url"]],
  ["an item's metadata", { queries: [{ query: "a", metadata: { k: 1 } }] }, ["queries[0].metadata.k"]],
  [
    "several items",
    { queries: [{ priority: 11, query: "a" }, "b", { query: 1 }] },
    ["queries[0].priority", "queries[2].query"],
  ],
  ["wrong defaults, once and not for every item", { queries: ["a", "b", { query: "c" }], agent: "nobody" }, ["agent"]],
  ["default events without a callback", { queries: ["a"], events: ["batch.completed"] }, ["events"]],
  ["an unknown field", { queries: ["a"], querys: 1 }, ["querys"]],
])("a batch with %s is refused, and nothing is accepted", async (_name, body, wrong) => {
  const before = [await count("runs"), await count("batches")];
  const { status, body: problem } = await world.post("/query/batch", body);
  expect(status).toBe(400);
  expect(paths(problem).sort()).toEqual(wrong);
  expect([await count("runs"), await count("batches")]).toEqual(before);
});

test("thousands of wrong items name the first hundred", async () => {
  const { body } = await world.post("/query/batch", { queries: Array(5000).fill({ nope: 1 }) });
  expect(body.errors).toHaveLength(100);
  expect(body.detail).toContain("10000 fields");
});

test("over 32 MiB is 413; over 1 MiB is not", async () => {
  const large = { queries: [{ query: "x", context: { blob: "y".repeat(2 * 2 ** 20) } }] };
  expect((await world.post("/query/batch", large)).status).toBe(202);
  const tooLarge = Array.from({ length: 33 }, () => ({ query: "x", context: { blob: "y".repeat(2 ** 20) } }));
  const { status, body } = await world.post("/query/batch", { queries: tooLarge });
  expect(status).toBe(413);
  expect(body.code).toBe("payload_too_large");
});

test("strings and bodies are accepted in order, defaults go to all, an item's own field wins", async () => {
  const { status, headers, body } = await world.post("/query/batch", {
    queries: ["one", { query: "two", priority: 7, metadata: { own: "yes" } }, { query: "three", agent: "default" }],
    agent: "researcher",
    priority: 2,
    user_id: "u-batch",
    metadata: { all: "yes" },
  });
  expect(status).toBe(202);
  expect(body).toEqual({
    batch_id: expect.stringMatching(/^bat_[0-9a-f]{32}$/),
    status: "running",
    total: 3,
    check_url: `/query/batch/${body.batch_id}`,
  });
  expect(headers.get("location")).toBe(body.check_url);
  const items = await itemsOf(body.batch_id);
  expect(items.map(({ agent, priority, user_id, metadata }) => ({ agent, priority, user_id, metadata }))).toEqual([
    { agent: "researcher", priority: 2, user_id: "u-batch", metadata: { all: "yes" } },
    { agent: "researcher", priority: 7, user_id: "u-batch", metadata: { own: "yes" } },
    { agent: "default", priority: 2, user_id: "u-batch", metadata: { all: "yes" } },
  ]);
  const { body: seen } = await world.get(body.check_url);
  expect(seen.data.map((item: { query: string }) => item.query)).toEqual(["one", "two", "three"]);
  expect(seen.metadata).toEqual({ all: "yes" });
});

test("the callback hears of the batch, and of items as far as its events name them", async () => {
  const callback_url = "http://127.0.0.1:9/hook";
  const all = (await world.post("/query/batch", { queries: ["a"], callback_url })).body.batch_id;
  expect(await batchOf(all)).toMatchObject({ callback_url, callback_events: null });
  expect((await itemsOf(all))[0]).toMatchObject({ callback_url: null, callback_events: null });

  const batchOnly = (await world.post("/query/batch", { queries: ["a"], callback_url, events: ["batch.completed"] }))
    .body.batch_id;
  expect(await batchOf(batchOnly)).toMatchObject({ callback_url, callback_events: ["batch.completed"] });
  expect((await itemsOf(batchOnly))[0]).toMatchObject({ callback_url: null, callback_events: null });

  const some = (
    await world.post("/query/batch", { queries: ["a"], callback_url, events: ["batch.completed", "query.failed"] })
  ).body.batch_id;
  expect((await itemsOf(some))[0]).toMatchObject({ callback_url, callback_events: ["query.failed"] });
});

test("10,000 items are one request; idempotent as a whole, also when sent five times at once", async () => {
  const queries = Array.from({ length: 10_000 }, (_, index) => `item ${index}`);
  const before = await count("runs");
  // As a client does: what was turned away by a busy server is sent again, which the key makes safe.
  const send = async () => {
    for (;;) {
      const answer = await world.post("/query/batch", { queries }, { headers: { "idempotency-key": "big" } });
      if (answer.status !== 503) return answer;
    }
  };
  const answers = await Promise.all(Array.from({ length: 5 }, send));
  expect(answers.map(({ status }) => status)).toEqual(Array(5).fill(202));
  expect(new Set(answers.map(({ body }) => body.batch_id)).size).toBe(1);
  expect(answers.filter(({ headers }) => headers.get("idempotent-replayed") === null).length).toBeLessThanOrEqual(1);
  expect(await count("runs")).toBe(before + 10_000);

  const { body: page } = await world.get(`${answers[0]!.body.check_url}?limit=200`);
  expect(page).toMatchObject({ status: "running", total: 10_000, completed_count: 0, progress: 0, total_cost_usd: 0 });
  expect(page.counts.queued).toBe(10_000);
  expect(page.data).toHaveLength(200);
  const { body: next } = await world.get(`${answers[0]!.body.check_url}?limit=3&cursor=${page.next_cursor}`);
  expect(next.data.map((item: { query: string }) => item.query)).toEqual(["item 200", "item 201", "item 202"]);

  const mismatch = await world.post("/query/batch", { queries: ["else"] }, { headers: { "idempotency-key": "big" } });
  expect(mismatch.status).toBe(422);
});

test("progress, cost and results are counted from the items; the last page has no cursor", async () => {
  const { body: batch } = await world.post("/query/batch", { queries: ["a", "b", "c"] });
  const { body: before } = await world.get(batch.check_url);
  const [first, second] = before.data;
  const owner = await world.own(first.task_id);
  await owner.say("answer a");
  await owner.end("completed", { output: "answer a", stop_reason: null, error: null });
  const failing = await world.own(second.task_id);
  await failing.end("failed", {
    output: null,
    stop_reason: "model_error",
    error: { code: "model_error", message: "No." },
  });

  const { body: after } = await world.get(`${batch.check_url}?limit=2`);
  expect(after).toMatchObject({ status: "running", completed_count: 2, total_cost_usd: 0.001 });
  expect(after.counts).toMatchObject({ completed: 1, failed: 1, queued: 1 });
  expect(after.progress).toBeCloseTo(2 / 3);
  expect(after.data[0]).toMatchObject({ status: "completed", result: { output: "answer a" }, cost_usd: 0.001 });
  expect(after.data[1]).toMatchObject({ status: "failed", error: { code: "model_error" } });
  const { body: last } = await world.get(`${batch.check_url}?limit=2&cursor=${after.next_cursor}`);
  expect(last.data).toHaveLength(1);
  expect(last.data[0]).not.toHaveProperty("result");
  expect(last.next_cursor).toBeNull();
});

test("cancelling ends what is queued at once, tells what is running, and can be repeated", async () => {
  const { body: batch } = await world.post("/query/batch", { queries: ["a", "b", "c"] });
  const { data } = (await world.get(batch.check_url)).body;
  const running = await world.own(data[1].task_id);
  const cancel = () => world.post(`/query/batch/${batch.batch_id}/cancel`);
  const first = await cancel();
  expect(first.status).toBe(202);
  expect(first.body).toMatchObject({ status: "running", cancel_requested: true, counts: { cancelled: 2, running: 1 } });
  expect((await cancel()).status).toBe(202);
  await running.end("completed", { output: "too late", stop_reason: null, error: null });
  const last = await cancel();
  expect(last.status).toBe(200);
  expect(last.body).toMatchObject({ status: "cancelled", completed_count: 3, progress: 1, counts: { cancelled: 3 } });
});

test.each(["bat_nope", `bat_${"0".repeat(32)}`, `run_${"0".repeat(32)}`])("%s is not found", async (id) => {
  expect((await world.get(`/query/batch/${id}`)).status).toBe(404);
  expect((await world.post(`/query/batch/${id}/cancel`)).status).toBe(404);
});

test("a cursor of another list is refused", async () => {
  const { body: batch } = await world.post("/query/batch", { queries: ["a", "b"] });
  await world.submit();
  const runsCursor = (await world.get("/query?limit=1")).body.next_cursor;
  for (const cursor of ["nope", runsCursor, Buffer.from("items -1").toString("base64url"), ""]) {
    const { status, body } = await world.get(`${batch.check_url}?cursor=${cursor}`);
    expect(status).toBe(400);
    expect(paths(body)).toEqual(["cursor"]);
  }
});
