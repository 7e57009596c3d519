/** What tools returned beyond what the model was shown, over HTTP: to those whose run names it, and to nobody else. */
import type { ToolResult } from "@drover/harness";
import { type Blobs, postgresBlobs } from "@drover/storage";
import { afterAll, beforeAll, expect, test } from "vitest";
import { startWorld, type World } from "./world.ts";

let world: World;
let blobs: Blobs;
beforeAll(async () => {
  world = await startWorld();
  blobs = postgresBlobs(world.pool);
});
afterAll(() => world.close());

const json = JSON.stringify({ rows: Array.from({ length: 20_000 }, (_, n) => ({ n, name: `é${n}` })) });

/** A run with one call, whose output is kept; returns both ids. `shown` is what the model sees. */
async function kept(
  content: string,
  type: "application/json" | "text/plain",
  options: { key?: string; shown?: string } = {},
) {
  const { key, shown = "the beginning" } = options;
  const taskId = await world.submit({}, key === undefined ? {} : { key });
  const owner = await world.own(taskId);
  const { rows } = await world.pool.query<{ tenant: string }>("SELECT tenant FROM runs ORDER BY id DESC LIMIT 1");
  const id = await blobs.put(rows[0]!.tenant, content);
  const result: ToolResult = {
    iteration: 1,
    index: 0,
    call_id: "c",
    tool_name: "rows",
    status: "ok",
    output: shown,
    truncated: true,
    artifact: { id, bytes: Buffer.byteLength(content), type },
    duration_ms: 1,
  };
  await owner.append("model.call", {
    iteration: 1,
    model: "demo/demo",
    text: "",
    tool_calls: [{ id: "c", name: "rows", input: {} }],
    finish_reason: "tool-calls",
    usage: { input: 1, output: 1, cached: 0 },
    cost_usd: 0,
    duration_ms: 1,
  });
  await owner.append("tool.result", result);
  return { taskId, id };
}

test.each([
  ["JSON", json, "application/json"],
  ["text, also such that looks like a page", `<html>${"é".repeat(100_000)}`, "text/plain"],
  ["an empty text", "", "text/plain"],
] as const)("%s comes as it was kept", async (_what, content, type) => {
  const { taskId, id } = await kept(content, type);
  const { status, text, headers } = await world.get(`/query/${taskId}/artifacts/${id}`);
  expect(status).toBe(200);
  expect(text).toBe(content);
  expect(headers.get("content-type")).toBe(`${type}; charset=utf-8`);
  expect(headers.get("etag")).toBe(`"${id}"`);
  expect(headers.get("x-content-type-options")).toBe("nosniff");
});

test("the log names it, also where the event itself is kept beside the log", async () => {
  const { taskId, id } = await kept(json, "application/json", { shown: "x".repeat(65_536) });
  const { body } = await world.get(`/query/${taskId}/events`);
  const named = body.data.find(({ type }: { type: string }) => type === "tool.result").data.artifact;
  expect(named).toEqual({ id, bytes: Buffer.byteLength(json), type: "application/json" });
  expect((await world.get(`/query/${taskId}/artifacts/${named.id}`)).text).toBe(json);
});

test("what the run's log does not name is not there, be it kept or not", async () => {
  const { taskId, id } = await kept(json, "application/json");
  const other = await kept("another run's", "text/plain");
  const unnamed = await blobs.put("default", "something of the same tenant");
  for (const artifact of [other.id, unnamed, "0".repeat(64), "nonsense"]) {
    const { status, body } = await world.get(`/query/${taskId}/artifacts/${artifact}`);
    expect([status, body.code, body.detail]).toEqual([404, "not_found", "This query has no such artifact."]);
  }
  await world.pool.query("DELETE FROM blobs WHERE hash = $1", [id]);
  expect((await world.get(`/query/${taskId}/artifacts/${id}`)).status).toBe(404);
});

test("another tenant's is not there, even for who knows both ids and keeps the same content", async () => {
  const key = await world.keyOf("submitter", "other");
  const { taskId, id } = await kept(json, "application/json");
  const theirs = await kept(json, "application/json", { key });
  expect(theirs.id).toBe(id);
  expect((await world.get(`/query/${theirs.taskId}/artifacts/${id}`, { key })).status).toBe(200);
  const { status, body } = await world.get(`/query/${taskId}/artifacts/${id}`, { key });
  expect([status, body.detail]).toEqual([404, expect.stringMatching(/^There is no such query: run_/)]);
  expect((await world.get(`/query/${taskId}/artifacts/${id}`, { key: null })).status).toBe(401);
});
