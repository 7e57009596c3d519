/** What runs and tenants may spend, over HTTP: who may change it, what is no raise, and that runs which wait for it go on. */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { type Carried, calling, startCarried } from "./carried.ts";
import { paths } from "./world.ts";

let world: Carried;
beforeAll(async () => {
  world = await startCarried();
});
afterEach(async () => {
  world.models.reset();
  world.done.length = 0;
  await world.call("PUT", "/budget", { body: { day_usd: null, month_usd: null } });
});
afterAll(() => world.close());

const put = (body: unknown, key = world.adminKey) => world.call("PUT", "/budget", { body, key });
/** Two prices, five points each. */
const twoPrices = () =>
  world.models.script((call) => (call.turn < 2 ? calling("set_price", { item: "lamp", price: call.turn }) : "done"));

describe("a tenant's budget", () => {
  test("is without caps until somebody sets them; what is left out stays", async () => {
    expect((await world.get("/budget")).body).toMatchObject({ day_usd: null, month_usd: null, session_usd: null });
    expect((await put({ day_usd: 2.5, month_usd: 0 })).body).toMatchObject({
      day_usd: 2.5,
      month_usd: 0,
      session_usd: null,
    });
    expect((await put({ month_usd: null })).body).toMatchObject({ day_usd: 2.5, month_usd: null });
    expect((await world.get("/budget")).body).toMatchObject({ day_usd: 2.5, month_usd: null, session_usd: null });
  });

  test("shows what runs have cost", async () => {
    const key = await world.keyOf("admin", "spender");
    const before = await world.get("/budget", { key });
    expect(before.body).toMatchObject({ day_used_usd: 0, month_used_usd: 0 });
    world.models.script(() => ({ text: "hello", usage: { input: 1000, output: 100 } }));
    const taskId = await world.submit({}, { key });
    await world.get(`/query/status/${taskId}?wait=30`, { key });
    const { cost_usd } = (await world.get(`/query/status/${taskId}`, { key })).body;
    expect(cost_usd).toBeGreaterThan(0);
    expect((await world.get("/budget", { key })).body).toMatchObject({
      day_used_usd: cost_usd,
      month_used_usd: cost_usd,
    });
  });

  test.each([
    ["submitter", 200, 403],
    ["approver", 200, 403],
    ["operator", 200, 403],
    ["admin", 200, 200],
  ] as const)("a %s's key: GET %i, PUT %i", async (role, get, set) => {
    const key = await world.keyOf(role, "roles");
    expect((await world.get("/budget", { key })).status).toBe(get);
    expect((await put({ day_usd: 1 }, key)).status).toBe(set);
    expect((await world.get("/budget")).body.day_usd, "another tenant's").toBeNull();
  });

  test.each([
    [{}, [""]],
    [{ day_usd: -1 }, ["day_usd"]],
    [{ day_usd: "5" }, ["day_usd"]],
    [{ month_usd: 1e9 }, ["month_usd"]],
    [{ week_usd: 1 }, ["week_usd"]],
  ])("%j is refused by its field", async (body, wrong) => {
    const { status, body: problem } = await put(body);
    expect(status).toBe(400);
    expect(paths(problem)).toEqual(wrong);
  });

  test("a run that waits for the day's cap goes on when it is lifted", async () => {
    await put({ day_usd: 0 });
    world.models.script(() => "hello");
    const taskId = await world.submit({ agent: "patient" });
    const { data } = await world.until(taskId, "run.waiting");
    expect(data).toMatchObject({ waiting_for: "budget", level: "tenant_day" });
    expect((await world.get(`/query/status/${taskId}`)).body).toMatchObject({
      status: "waiting",
      waiting_for: "budget",
      waiting_level: "tenant_day",
    });
    expect(world.models.count).toBe(0);
    await put({ day_usd: 100 });
    expect((await world.end(taskId)).status).toBe("completed");
  });
});

describe("a run's budget", () => {
  test("a run that waits for points goes on when they are raised, and no call is made twice", async () => {
    twoPrices();
    const taskId = await world.submit({ budget: { actions: 5, at_cap: "pause" } });
    const { seq } = await world.until(taskId, "run.waiting");
    expect((await world.get(`/query/status/${taskId}`)).body).toMatchObject({
      waiting_for: "budget",
      waiting_level: "actions",
    });
    expect(world.done).toHaveLength(1);
    const { status, body } = await world.post(`/query/${taskId}/budget`, { actions: 10 });
    expect(status).toBe(200);
    expect(body).toMatchObject({ task_id: taskId, actions: 10 });
    expect(["queued", "running", "completed"]).toContain(body.status);
    expect((await world.until(taskId, "run.resumed", seq)).data).toEqual({ waited_for: "budget" });
    expect((await world.end(taskId)).status).toBe("completed");
    expect(world.done.map(([, input]) => input)).toEqual([
      { item: "lamp", price: 0 },
      { item: "lamp", price: 1 },
    ]);
  });

  test("what is no raise is refused by its field, and the run waits on", async () => {
    twoPrices();
    const taskId = await world.submit({ max_cost_usd: 3, budget: { actions: 5, at_cap: "pause" } });
    await world.until(taskId, "run.waiting");
    for (const [raise, wrong] of [
      [{}, [""]],
      [{ actions: 5 }, ["actions"]],
      [{ actions: 4 }, ["actions"]],
      [{ max_cost_usd: 3 }, ["max_cost_usd"]],
      [{ max_cost_usd: 2, actions: 1 }, ["max_cost_usd", "actions"]],
      [{ max_cost_usd: 0 }, ["max_cost_usd"]],
      [{ points: 9 }, ["points"]],
    ] as const) {
      const { status, body } = await world.post(`/query/${taskId}/budget`, raise);
      expect(status, JSON.stringify(raise)).toBe(400);
      expect(paths(body)).toEqual(wrong);
    }
    expect((await world.get(`/query/status/${taskId}`)).body.status).toBe("waiting");
  });

  test("a cap that the run does not have cannot be raised; of a final run none can", async () => {
    world.models.script(() => "hello");
    const queued = await world.submit({ delay_seconds: 60 });
    expect(paths((await world.post(`/query/${queued}/budget`, { actions: 9 })).body)).toEqual(["actions"]);
    const done = await world.submit({ max_cost_usd: 1 });
    await world.end(done);
    const { status, body } = await world.post(`/query/${done}/budget`, { max_cost_usd: 2 });
    expect(status).toBe(409);
    expect(body.detail).toContain("completed");
  });

  test("ten different raises at once: each that is a raise over what there is then is taken, one after the other", async () => {
    const taskId = await world.submit({ delay_seconds: 60, budget: { actions: 1 } });
    const answers = await Promise.all(
      Array.from({ length: 10 }, (_, n) => world.post(`/query/${taskId}/budget`, { actions: n + 2 })),
    );
    const taken = answers.filter(({ status }) => status === 200).map(({ body }) => body.actions);
    expect(answers.filter(({ status }) => status === 400)).toHaveLength(10 - taken.length);
    const { body } = await world.get(`/query/${taskId}/events`);
    const logged = body.data
      .filter((event: { type: string }) => event.type === "budget.raised")
      .map((event: { data: { action_budget: number } }) => event.data.action_budget);
    expect(logged).toEqual(logged.toSorted((a: number, b: number) => a - b));
    expect(new Set(logged)).toEqual(new Set(taken));
    expect(Math.max(...taken)).toBe(11);
  });

  test.each([
    ["submitter", 403],
    ["approver", 403],
    ["operator", 200],
  ] as const)("a key of role %s: %i", async (role, wanted) => {
    const taskId = await world.submit({ delay_seconds: 60, budget: { actions: 1 } });
    const key = await world.keyOf(role);
    expect((await world.post(`/query/${taskId}/budget`, { actions: 2 }, { key })).status).toBe(wanted);
  });

  test("another tenant's run is none", async () => {
    const taskId = await world.submit({ delay_seconds: 60, budget: { actions: 1 } });
    const key = await world.keyOf("admin", "other");
    expect((await world.post(`/query/${taskId}/budget`, { actions: 2 }, { key })).status).toBe(404);
    expect((await world.post("/query/run_x/budget", { actions: 2 })).status).toBe(404);
  });
});
