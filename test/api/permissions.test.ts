/** The role of the key that submits caps what its runs may do. The door's side of it is in the conformance suite. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { startWorld, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await startWorld();
});
afterAll(() => world.close());

async function permissionsOf(taskId: string): Promise<unknown> {
  const { body } = await world.get(`/query/${taskId}/events`);
  return body.data[0].data.permissions;
}

test("a submitter's runs may not call admin tools, an admin's may", async () => {
  const submitter = await world.keyOf("submitter");
  expect(await permissionsOf(await world.submit({}, { key: submitter }))).toEqual(["read", "write", "irreversible"]);
  expect(await permissionsOf(await world.submit())).toBeUndefined();
});

test("neither the body nor a batch's items can say otherwise", async () => {
  const submitter = await world.keyOf("submitter");
  const refused = await world.post("/query", { query: "x", permissions: ["admin"] }, { key: submitter });
  expect(refused.status).toBe(400);
  expect(refused.body.errors).toEqual([{ path: "permissions", message: expect.stringContaining("no such field") }]);
  const { body } = await world.post("/query/batch", { queries: ["one", { query: "two" }] }, { key: submitter });
  const page = await world.get(`/query/batch/${body.batch_id}`);
  for (const { task_id } of page.body.data)
    expect(await permissionsOf(task_id)).toEqual(["read", "write", "irreversible"]);
});

test("who submitted, and what by its hash, stands in the audit trail; a replayed key adds nothing", async () => {
  const headers = { "Idempotency-Key": "audited-once" };
  const id = await world.submit({ query: "a secret question" }, { headers });
  expect(await world.submit({ query: "a secret question" }, { headers })).toBe(id);
  const { rows } = await world.pool.query("SELECT actor, action, data FROM audit_entries WHERE run_id = $1", [
    `${id.slice(4, 12)}-${id.slice(12, 16)}-${id.slice(16, 20)}-${id.slice(20, 24)}-${id.slice(24)}`,
  ]);
  expect(rows).toEqual([
    {
      actor: expect.stringMatching(/^key_/),
      action: "query.submitted",
      data: { agent: "default", input: expect.stringMatching(/^[0-9a-f]{64}$/) },
    },
  ]);
});
