import { randomBytes } from "node:crypto";
import { hashJson } from "@drover/protocol";
import { createSubmitter, readLog } from "@drover/runs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { addTenant, createBench, input, logger, submission } from "./bench.ts";

let bench: Awaited<ReturnType<typeof createBench>>;
beforeAll(async () => {
  bench = await createBench();
});
afterAll(() => bench.close());

const count = async (sql: string, values: unknown[] = []) =>
  (await bench.pool.query(sql, values)).rows[0].count as number;

test("a submitted run is a row and its first event", async () => {
  const id = await bench.submit({ metadata: { k: "v" }, userId: "u1", priority: 3 });
  expect(await bench.row(id)).toMatchObject({
    status: "queued",
    epoch: 0,
    attempt: 1,
    last_seq: 1,
    priority: 3,
    woken: true,
    user_id: "u1",
    metadata: { k: "v" },
    soft_ms: 25_000,
    hard_ms: 30_000,
  });
  const log = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: id });
  expect(log).toMatchObject([{ seq: 1, type: "run.queued", data: input() }]);
});

test("a tenant that does not exist is refused by the database, and its neighbours in the statement are accepted", async () => {
  const results = await Promise.allSettled([
    bench.submit({ tenant: "nobody" }),
    ...Array.from({ length: 20 }, () => bench.submit()),
  ]);
  expect(results.map((result) => result.status)).toEqual(["rejected", ...Array(20).fill("fulfilled")]);
});

test("fifty concurrent submissions with one idempotency key make one run", async () => {
  const body = submission({ userId: "once" });
  const key = { key: "k-once", bodyHash: hashJson(body) };
  const answers = await Promise.all(Array.from({ length: 50 }, () => bench.submitter.submit(body, key)));
  expect(new Set(answers.map((answer) => answer.id)).size).toBe(1);
  expect(answers.filter((answer) => !answer.replayed)).toHaveLength(1);
  expect(await count("SELECT count(*) FROM runs WHERE user_id = 'once'")).toBe(1);
});

test("a key with another body is a mismatch; the same key of another tenant is another key", async () => {
  await addTenant(bench.pool, "other");
  const key = { key: "k-body", bodyHash: hashJson(1) };
  const first = await bench.submitter.submit(submission(), key);
  await expect(bench.submitter.submit(submission(), { ...key, bodyHash: hashJson(2) })).rejects.toMatchObject({
    code: "idempotency_mismatch",
  });
  const other = await bench.submitter.submit(submission({ tenant: "other" }), key);
  expect(other).toMatchObject({ replayed: false });
  expect(other.id).not.toBe(first.id);
});

test("a key older than 24 hours is free again", async () => {
  const key = { key: "k-old", bodyHash: hashJson(1) };
  const first = await bench.submitter.submit(submission(), key);
  await bench.pool.query("UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key = 'k-old'");
  const second = await bench.submitter.submit(submission(), { ...key, bodyHash: hashJson(2) });
  expect(second.replayed).toBe(false);
  expect(second.id).not.toBe(first.id);
  expect(await bench.submitter.submit(submission(), { ...key, bodyHash: hashJson(2) })).toEqual({
    id: second.id,
    replayed: true,
  });
});

test("a query of 100,000 characters goes to the blob store and comes back; another tenant cannot read it", async () => {
  const query = randomBytes(50_000).toString("hex");
  const id = await bench.submit({ input: input({ query }) });
  const { rows } = await bench.pool.query("SELECT data FROM run_events WHERE run_id = $1", [id]);
  expect(Object.keys(rows[0].data)).toEqual(["$blob", "bytes"]);
  const [event] = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: id });
  expect(event!.data).toEqual(input({ query }));
  expect(await readLog(bench.pool, bench.blobs, { tenant: "other", runId: id })).toEqual([]);
});

test("what Postgres cannot store is replaced and marked, and the neighbours are untouched", async () => {
  const [bad, good] = await Promise.all([
    bench.submit({ input: input({ query: "a\0b\ud800c" }) }),
    bench.submit({ input: input({ query: "fine" }) }),
  ]);
  const [event] = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: bad });
  expect(event!.data).toMatchObject({ query: "a\uFFFDb\uFFFDc", sanitized: true });
  const [other] = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: good });
  expect(other!.data).toEqual(input({ query: "fine" }));
});

test("a batch is one transaction: 10,000 items or none", async () => {
  const items = Array.from({ length: 10_000 }, (_, index) => submission({ input: input({ query: `q${index}` }) }));
  const broken = items.with(9_999, submission({ tenant: "nobody" }));
  const about = { tenant: "default", callbackUrl: null, callbackEvents: null, metadata: {} };
  const before = await count("SELECT count(*) FROM runs");
  await expect(bench.submitter.submitBatch({ ...about, items: broken })).rejects.toThrow();
  expect(await count("SELECT count(*) FROM runs")).toBe(before);

  const { id } = await bench.submitter.submitBatch({ ...about, items });
  expect(await count("SELECT count(*) FROM runs WHERE batch_id = $1", [id])).toBe(10_000);
  expect(
    await count("SELECT count(*) FROM run_events e JOIN runs r ON r.id = e.run_id WHERE r.batch_id = $1", [id]),
  ).toBe(10_000);
  const { rows } = await bench.pool.query("SELECT batch_index, tag FROM runs WHERE batch_id = $1 ORDER BY tag", [id]);
  expect(rows.map((row) => row.batch_index)).toEqual(items.map((_, index) => index));
});

test("a batch with an idempotency key is accepted once", async () => {
  const batch = {
    tenant: "default",
    items: [submission(), submission()],
    callbackUrl: null,
    callbackEvents: null,
    metadata: {},
  };
  const key = { key: "k-batch", bodyHash: hashJson("batch") };
  const answers = await Promise.all(Array.from({ length: 5 }, () => bench.submitter.submitBatch(batch, key)));
  expect(new Set(answers.map((answer) => answer.id)).size).toBe(1);
  expect(answers.filter((answer) => answer.replayed)).toHaveLength(4);
  await expect(bench.submitter.submit(submission(), { ...key, bodyHash: hashJson("one") })).rejects.toMatchObject({
    code: "idempotency_mismatch",
  });
});

test("a delayed run is not woken, and nobody is rung up for it", async () => {
  const woken: number[] = [];
  const queue = { ...bench.queue, wake: async (runs: number) => void woken.push(runs) };
  const submitter = createSubmitter({ ...bench, queue, logger });
  const { id } = await submitter.submit(submission({ delayMs: 60_000 }));
  expect(woken).toEqual([0]);
  const row = await bench.row(id);
  expect(row.woken).toBe(false);
  expect(row.available_at.getTime() - row.created_at.getTime()).toBeGreaterThan(59_000);
  await submitter.submit(submission());
  await submitter.submitBatch({
    tenant: "default",
    items: [submission(), submission({ delayMs: 60_000 }), submission()],
    callbackUrl: null,
    callbackEvents: null,
    metadata: {},
  });
  expect(woken).toEqual([0, 1, 2]);
});
