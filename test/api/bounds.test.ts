/** What a submission may ask for, by role and agent: beyond it every field is named, with its bound and whose it is. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { paths, startWorld, type World } from "./world.ts";

let world: World;
let plain: World;
beforeAll(async () => {
  const bounds = {
    models: ["openai/*", "anthropic/claude-sonnet-5"],
    hardSeconds: 600,
    maxIterations: 20,
    maxAttempts: 2,
    priority: 5,
    maxTokens: 1000,
    maxCostUsd: 1,
    systemPrompt: false,
    callbackHosts: ["hooks.example.com", "*.example.org"],
  };
  const agents = { default: {}, narrow: { submit: { maxIterations: 3 } } };
  [world, plain] = await Promise.all([startWorld({ deps: { bounds: { submitter: bounds }, agents } }), startWorld()]);
});
afterAll(() => Promise.all([world.close(), plain.close()]));

const beyond: [field: string, body: object][] = [
  ["model", { model: "google/gemini-3.8-flash" }],
  ["model", { model: "anthropic/claude-opus-5" }],
  ["limits.hard_seconds", { limits: { hard_seconds: 601 } }],
  ["max_iterations", { max_iterations: 21 }],
  ["retry.max_attempts", { retry: { max_attempts: 3 } }],
  ["priority", { priority: 6 }],
  ["max_tokens", { max_tokens: 1001 }],
  ["max_cost_usd", { max_cost_usd: 1.01 }],
  ["system_prompt", { system_prompt: "You are root." }],
  ["callback_url", { callback_url: "https://example.com/" }],
  ["callback_url", { callback_url: "https://evil-example.org/" }],
];
const within = {
  model: "openai/gpt-5",
  limits: { hard_seconds: 600 },
  max_iterations: 20,
  retry: { max_attempts: 2 },
  priority: 5,
  max_tokens: 1000,
  max_cost_usd: 1,
  callback_url: "https://a.example.org/",
};

test.each(beyond)(
  "%s beyond a submitter's bound is refused by name, single and in a batch; an admin has other bounds",
  async (field, body) => {
    const key = await world.keyOf("submitter");
    const { status, body: problem } = await world.post("/query", { query: "a", ...body }, { key });
    expect([status, paths(problem)]).toEqual([400, [field]]);
    expect(problem.errors[0].message).toContain("the bound of role submitter");
    const batch = await world.post("/query/batch", { queries: ["a", { query: "b", ...body }] }, { key });
    expect(paths(batch.body)).toEqual([`queries[1].${field}`]);
    const shared = await world.post("/query/batch", { queries: ["a", "b"], ...body }, { key });
    expect(paths(shared.body)).toEqual([field]);
    expect((await world.post("/query", { query: "a", ...body })).status).toBe(202);
  },
);

test("what is within is accepted; an agent's own bound holds for everybody", async () => {
  const key = await world.keyOf("submitter");
  expect((await world.post("/query", { query: "a", ...within }, { key })).status).toBe(202);
  const { body } = await world.post("/query", { query: "a", agent: "narrow", max_iterations: 4 });
  expect(paths(body)).toEqual(["max_iterations"]);
  expect(body.errors[0].message).toContain("the bound of agent narrow");
});

test("a retry is bounded as well", async () => {
  const key = await world.keyOf("submitter");
  const id = await world.submit({}, { key });
  await world.post(`/query/${id}/cancel`);
  const { status, body } = await world.post(`/query/${id}/retry`, { max_iterations: 21 }, { key });
  expect([status, paths(body)]).toEqual([400, ["max_iterations"]]);
});

test("without a configuration a submitter's run may last a day", async () => {
  const key = await plain.keyOf("submitter");
  const of = (hard_seconds: number) => plain.post("/query", { query: "a", limits: { hard_seconds } }, { key });
  expect((await of(86_400)).status).toBe(202);
  expect(paths((await of(604_800)).body)).toEqual(["limits.hard_seconds"]);
});
