/** Undoing what a run did, over HTTP: once, by a run of its own that says what it undid. */
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { type Carried, calling, startCarried } from "./carried.ts";

let world: Carried;
beforeAll(async () => {
  world = await startCarried();
});
afterEach(() => {
  world.models.reset();
  world.done.length = 0;
});
afterAll(() => world.close());

const price = (n: number) => ({ item: "lamp", price: n });

/** A run that set two prices. */
async function changed(call = {}): Promise<string> {
  world.models.script((request) => (request.turn < 2 ? calling("set_price", price(request.turn)) : "done"));
  const taskId = await world.submit({ metadata: { order: "42" } }, call);
  await world.end(taskId);
  return taskId;
}
const rollBack = (taskId: string, key = world.adminKey) => world.post(`/query/${taskId}/rollback`, undefined, { key });

test("undoes in reverse order, and says so; asking again gives the same run", async () => {
  const taskId = await changed();
  const first = await rollBack(taskId);
  expect(first.status).toBe(202);
  expect(first.body).toMatchObject({ status: "queued", check_url: `/query/status/${first.body.task_id}` });
  expect(first.headers.get("location")).toBe(first.body.check_url);
  const id = first.body.task_id;
  expect(id).not.toBe(taskId);

  const ended = await world.end(id);
  expect(ended).toMatchObject({ kind: "rollback", of_run: taskId, status: "completed", metadata: { order: "42" } });
  expect(ended.result.output).toContain("2 of 2 effects undone");
  expect(world.done).toEqual([
    ["set_price", price(0)],
    ["set_price", price(1)],
    ["undo set_price", price(1)],
    ["undo set_price", price(0)],
  ]);
  expect((await world.get(`/query/status/${taskId}`)).body).toMatchObject({ kind: "query" });
  expect((await world.get(`/execution/${id}`)).body).toMatchObject({ kind: "rollback", of_run: taskId });

  const again = await rollBack(taskId);
  expect(again.status).toBe(200);
  expect(again.body).toMatchObject({ task_id: id, status: "completed" });
  expect(world.done).toHaveLength(4);
  expect(world.models.calls.every((call) => call.query === "What is 17 * 23?")).toBe(true);
});

test("ten at once make one run", async () => {
  const taskId = await changed();
  const answers = await Promise.all(Array.from({ length: 10 }, () => rollBack(taskId)));
  expect(answers.map(({ status }) => status).sort()).toEqual([...Array(9).fill(200), 202]);
  expect(new Set(answers.map(({ body }) => body.task_id)).size).toBe(1);
  await world.end(answers[0]!.body.task_id);
  expect(world.done.filter(([name]) => name === "undo set_price")).toHaveLength(2);
});

test("a run that is not final, and a rollback, cannot be undone", async () => {
  const waiting = await world.submit({ delay_seconds: 60 });
  const early = await rollBack(waiting);
  expect(early).toMatchObject({ status: 409, body: { code: "conflict", detail: expect.stringContaining("queued") } });
  const { body } = await rollBack(await changed());
  await world.end(body.task_id);
  expect((await rollBack(body.task_id)).status).toBe(409);
});

test("a run that changed nothing has nothing to undo, and says so", async () => {
  world.models.script(() => "hello");
  const taskId = await world.submit();
  await world.end(taskId);
  const ended = await world.end((await rollBack(taskId)).body.task_id);
  expect(ended.result.output).toContain("nothing to undo");
});

test.each([
  ["submitter", 403],
  ["approver", 403],
  ["operator", 202],
] as const)("a key of role %s: %i", async (role, status) => {
  const taskId = await changed();
  expect((await rollBack(taskId, await world.keyOf(role))).status).toBe(status);
});

test("another tenant's run is none", async () => {
  const taskId = await changed();
  expect((await rollBack(taskId, await world.keyOf("admin", "other"))).status).toBe(404);
  expect((await rollBack("run_x")).status).toBe(404);
});
