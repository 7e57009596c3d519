/** Taking up a run that did not complete, over HTTP. What a retry begins with is told in test/runs/retry.test.ts. */
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { type Carried, calling, startCarried } from "./carried.ts";
import { paths } from "./world.ts";

let world: Carried;
beforeAll(async () => {
  world = await startCarried();
});
afterEach(() => {
  world.models.reset();
  world.done.length = 0;
});
afterAll(() => world.close());

const price = { item: "lamp", price: 3 };

/** A run that set a price, and whose model then failed for good. */
async function failed(body = {}, call = {}): Promise<string> {
  world.models.script((request) => (request.turn === 0 ? calling("set_price", price) : { status: 400 }));
  const taskId = await world.submit(body, call);
  expect((await world.end(taskId)).status).toBe("partial");
  return taskId;
}
const retry = (taskId: string, body?: unknown, call = {}) => world.post(`/query/${taskId}/retry`, body, call);

test("a run of its own that says whose retry it is, and starts with nothing spent", async () => {
  const taskId = await failed({ user_id: "ann", metadata: { order: "42" } });
  world.models.script(() => "set");
  const answer = await retry(taskId);
  expect(answer.status).toBe(202);
  const id = answer.body.task_id;
  expect(id).not.toBe(taskId);
  expect(answer.body).toMatchObject({ status: "queued", check_url: `/query/status/${id}` });
  expect(answer.headers.get("location")).toBe(`/query/status/${id}`);
  expect(answer.headers.get("idempotent-replayed")).toBeNull();

  const ended = await world.end(id);
  expect(ended).toMatchObject({ kind: "query", retry_of: taskId, status: "completed", user_id: "ann" });
  expect(ended).toMatchObject({ metadata: { order: "42" }, progress: { steps: 1, iterations: 1 } });
  expect(ended.result).toMatchObject({ output: "set", tools_called: ["set_price"], cost_usd: ended.cost_usd });
  expect(world.done).toEqual([["set_price", price]]);
  expect(world.models.count).toBe(3);
  expect((await world.get(`/execution/${id}`)).body).toMatchObject({ retry_of: taskId, query: "What is 17 * 23?" });
  expect((await world.get(`/query?user_id=ann`)).body.data).toMatchObject([{ task_id: id, retry_of: taskId }, {}]);
  expect((await world.get(`/query/status/${taskId}`)).body).not.toHaveProperty("retry_of");
  const { body } = await world.get(`/query/${id}/events`);
  expect(body.data.map(({ type }: { type: string }) => type)).toContain("steps.copied");
});

test("takes what is to be different, and refuses every other field by name", async () => {
  const taskId = await failed({ max_iterations: 5 });
  world.models.script(() => "set");
  const { body } = await retry(taskId, { max_iterations: 7, max_cost_usd: 2, limits: { hard_seconds: 60 } });
  await world.end(body.task_id);
  expect((await world.get(`/execution/${body.task_id}`)).body.settings).toMatchObject({
    max_iterations: 7,
    max_cost_usd: 2,
    limits: { soft_seconds: 50, hard_seconds: 60 },
  });

  const unknown = await retry(taskId, { query: "another", priority: 3 });
  expect(unknown.status).toBe(400);
  expect(paths(unknown.body)).toEqual(["query", "priority"]);
  const wrong = await retry(taskId, { max_iterations: 0, limits: { soft_seconds: 9, hard_seconds: 9 } });
  expect(paths(wrong.body)).toEqual(["max_iterations"]);
  expect(paths((await retry(taskId, { limits: { soft_seconds: 9, hard_seconds: 9 } })).body)).toEqual([
    "limits.soft_seconds",
  ]);
  expect((await retry(taskId, {})).status).toBe(202);
});

test("an Idempotency-Key is honoured as for a submission, and belongs to the run that is retried", async () => {
  const [one, other] = [await failed(), await failed()];
  const headers = { "idempotency-key": "once more" };
  const first = await retry(one, undefined, { headers });
  const again = await retry(one, {}, { headers });
  expect(again.status).toBe(202);
  expect(again.body.task_id).toBe(first.body.task_id);
  expect(again.headers.get("idempotent-replayed")).toBe("true");
  for (const mismatch of [await retry(one, { max_iterations: 9 }, { headers }), await retry(other, {}, { headers })])
    expect(mismatch).toMatchObject({ status: 422, body: { code: "idempotency_mismatch" } });
  expect((await world.post("/query", { query: "x" }, { headers })).status).toBe(422);
  await world.end(first.body.task_id);
});

test("what cannot be retried is a conflict that says why", async () => {
  const open = await world.submit({ delay_seconds: 60 });
  const early = await retry(open);
  expect(early).toMatchObject({ status: 409, body: { code: "conflict", detail: expect.stringContaining("queued") } });
  await world.post(`/query/${open}/cancel`);
  world.models.script(() => "at last");
  const { body } = await retry(open);
  expect(await world.end(body.task_id)).toMatchObject({ status: "completed", retry_of: open });
  expect((await retry(body.task_id)).body.detail).toContain("completed");
});

test.each([
  ["submitter", 202],
  ["approver", 403],
  ["operator", 403],
] as const)("a key of role %s: %i", async (role, status) => {
  const taskId = await failed();
  expect((await retry(taskId, {}, { key: await world.keyOf(role) })).status).toBe(status);
});

test("another tenant's run is none", async () => {
  const taskId = await failed();
  expect((await retry(taskId, {}, { key: await world.keyOf("admin", "other") })).status).toBe(404);
  expect((await retry("run_x")).status).toBe(404);
});
