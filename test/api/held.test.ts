/** What a policy holds back until a person has let it pass: nobody is shown it but who may say so. */
import { definePolicy } from "@drover/harness";
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest";
import { startReceiver } from "../support/receiver.ts";
import { type Carried, startCarried } from "./carried.ts";
import { openStream } from "./sse.ts";

const secret = "the price is 4711";
const look = definePolicy({
  name: "look",
  stages: ["output", "result"],
  check: (value) =>
    JSON.stringify(value).includes("4711") ? { action: "ask", reason: "a price" } : { action: "allow" },
});

let world: Carried;
beforeAll(async () => {
  world = await startCarried({ policies: [look], env: { DROVER_EGRESS_ALLOW: "127.0.0.0/8" } });
});
afterAll(() => world.close());
beforeEach(() => world.models.reset());

/** A run that waits until somebody has looked at its answer, and its question. */
async function held(more: Record<string, unknown> = {}): Promise<{ taskId: string; id: string }> {
  world.models.script(() => secret);
  const taskId = await world.submit(more);
  await world.until(taskId, "run.waiting");
  const { data } = (await world.get(`/query/${taskId}/approvals`)).body;
  return { taskId, id: data[0].id };
}

test("an answer that is held back is for approvers; others see that it is there, its hash and why", async () => {
  const { taskId, id } = await held();
  const paths = [
    `/query/status/${taskId}`,
    `/query/${taskId}/events`,
    `/query/${taskId}/approvals`,
    `/approvals/${id}`,
    "/approvals",
    `/execution/${taskId}`,
    "/events",
  ];
  for (const role of ["submitter", "operator"] as const) {
    const key = await world.keyOf(role);
    for (const path of paths) expect((await world.get(path, { key })).text, `${role} ${path}`).not.toContain("4711");
    const { body } = await world.get(`/approvals/${id}`, { key });
    expect(body).toMatchObject({
      subject: "output",
      input: null,
      withheld: true,
      hash: expect.stringMatching(/^[0-9a-f]{64}$/),
      reason: expect.stringMatching(/./),
    });
    expect((await streamed(taskId, key)).includes("4711")).toBe(false);
  }
  const approver = await world.keyOf("approver");
  expect((await world.get(`/approvals/${id}`, { key: approver })).body).toMatchObject({ input: secret });
  expect((await world.get(`/query/${taskId}/events`, { key: approver })).text).toContain("4711");
  expect(await streamed(taskId, approver)).toContain("4711");

  // Once it is let pass it is the run's answer, for everybody.
  await world.post(`/approvals/${id}`, { decision: "approve" }, { key: approver });
  expect((await world.end(taskId)).result.output).toBe(secret);
  const submitter = await world.keyOf("submitter");
  expect((await world.get(`/approvals/${id}`, { key: submitter })).body).toMatchObject({
    status: "approved",
    input: secret,
  });
});

test("one that a person refused stays hidden", async () => {
  const { taskId, id } = await held();
  await world.post(`/approvals/${id}`, { decision: "reject" });
  await world.end(taskId);
  const key = await world.keyOf("submitter");
  for (const path of [
    `/query/status/${taskId}`,
    `/query/${taskId}/events`,
    `/approvals/${id}`,
    `/query/${taskId}/approvals`,
  ])
    expect((await world.get(path, { key })).text, path).not.toContain("4711");
});

test("a webhook that carries no link carries no held content", async () => {
  const receiver = await startReceiver();
  try {
    const { taskId } = await held({ callback_url: `${receiver.url}/hook`, events: ["query.waiting"] });
    const [told] = await receiver.waitFor(1);
    expect(told!.body).toContain(taskId);
    expect(told!.body).not.toContain("4711");
    expect(JSON.parse(told!.body).data.approvals).toMatchObject([
      { subject: "output", input: null, withheld: true, hash: expect.stringMatching(/^[0-9a-f]{64}$/) },
    ]);
  } finally {
    await receiver.close();
  }
});

/** What the live stream has said so far of a run that waits. */
async function streamed(taskId: string, key: string): Promise<string> {
  const stream = await openStream(`${world.url}/query/${taskId}/events`, { authorization: `Bearer ${key}` });
  await stream.next(({ event }) => event === "run.waiting");
  stream.close();
  return JSON.stringify(stream.events);
}
