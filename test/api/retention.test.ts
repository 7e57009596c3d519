/** What is kept for how long, over the API: what goes, what stays because something kept needs it, and what is answered about what is gone. A negative age lies in the future. */
import { fromWireId } from "@drover/protocol";
import { type Retention, readRetention, retain } from "@drover/runs";
import { postgresBlobs } from "@drover/storage";
import { afterAll, beforeEach, expect, test } from "vitest";
import { closeBatches } from "../../packages/runs/src/moves/batch.ts";
import { startWorld, type World } from "./world.ts";

let world: World;
const worlds: World[] = [];
beforeEach(async () => {
  world = await startWorld();
  worlds.push(world);
});
afterAll(() => Promise.all(worlds.map((one) => one.close())));

/** Farther ahead than any month that exists. */
const ahead = -200;
const kept: Retention = { contentsDays: 30, totalsDays: 400, auditDays: 400 };
const contentsOld: Retention = { ...kept, contentsDays: ahead };
const allOld: Retention = { ...contentsOld, totalsDays: ahead };

async function enforce(retention: Retention): Promise<Record<string, number>> {
  const all: Record<string, number> = {};
  for (let more = true; more; ) {
    const pass = await retain(world.pool, retention, (part, error) => {
      throw new Error(part, { cause: error });
    });
    for (const [part, rows] of pass.removed) all[part] = (all[part] ?? 0) + rows;
    more = pass.more;
  }
  return all;
}
const due = async (retention: Retention) =>
  Object.fromEntries((await readRetention(world.pool, retention)).map(({ part, rows, note }) => [part, note ?? rows]));
const count = async (table: string) => (await world.pool.query(`SELECT count(*) AS n FROM ${table}`)).rows[0].n;
const age = (days: number) => world.pool.query("UPDATE blobs SET created_at = now() - $1 * interval '1 day'", [days]);
const output = "x".repeat(50_000);
const final = { output: "391", stop_reason: null, error: null };

async function finished(body: Record<string, unknown> = {}, status: "completed" | "failed" = "completed") {
  const id = await world.submit(body);
  const owner = await world.own(id);
  await owner.say(output);
  const error = { code: "model_error" as const, message: "no" };
  await owner.end(status, status === "completed" ? final : { output: null, stop_reason: "model_error", error });
  return id;
}

test("what is young stays, and nothing of it is due", async () => {
  const id = await finished();
  expect(Object.values(await due(kept)).every((rows) => rows === 0)).toBe(true);
  expect(await enforce(kept)).toEqual({});
  expect((await world.get(`/query/result/${id}`)).body).toMatchObject({ output: "391" });
});

test("contents go, totals stay: every answer about them says so", async () => {
  const metadata = { project: "apollo" };
  const id = await finished({ metadata });
  const failed = await finished({}, "failed");
  const batch = (await world.post("/query/batch", { queries: ["a"] })).body.batch_id;
  const [{ id: item }] = (
    await world.pool.query("SELECT 'run_' || replace(id::text, '-', '') AS id FROM runs WHERE batch_id IS NOT NULL")
  ).rows;
  const owner = await world.own(item);
  await owner.end("completed", final);
  await closeBatches(world.pool, "all");
  await age(40);
  expect(await count("blobs")).toBeGreaterThan(0);
  await enforce(contentsOld);
  expect([await count("run_events"), await count("blobs"), await count("messages")]).toEqual([0, 0, 0]);

  const status = await world.get(`/query/status/${id}`);
  expect(status.body).toMatchObject({
    status: "completed",
    metadata,
    cost_usd: 0.001,
    result: { status: "success", output: null, contents_expired: true, cost_usd: 0.001, tools_called: [] },
  });
  expect((await world.get(`/query/result/${id}?include=tool_calls`)).body).toMatchObject({
    output: null,
    contents_expired: true,
    tool_calls: [],
  });
  const refused = await world.get(`/query/result/${failed}`);
  expect([refused.status, refused.body.error.code]).toEqual([409, "model_error"]);
  for (const path of [`/query/${id}/events`, `/execution/${id}`, `/query/${id}/artifacts/${"0".repeat(64)}`])
    expect(await world.get(path)).toMatchObject({ status: 410, body: { code: "contents_expired" } });
  const stream = await world.get(`/query/${id}/events`, { headers: { accept: "text/event-stream" } });
  expect(stream.status).toBe(410);
  for (const path of [`/query/${failed}/retry`, `/query/${failed}/rollback`])
    expect(await world.post(path, {})).toMatchObject({ status: 410, body: { code: "contents_expired" } });
  expect((await world.get(`/query/batch/${batch}`)).body).toMatchObject({
    completed_count: 1,
    data: [{ query: null, status: "completed", result: { contents_expired: true } }],
  });
  expect((await world.get("/query")).body.data).toHaveLength(3);

  // Life goes on, in a month that has no partition any more.
  const next = await finished();
  expect((await world.get(`/query/${next}/events`)).status).toBe(200);
  expect(await count("run_events_default")).toBeGreaterThan(0);
  expect(await enforce(contentsOld)).toMatchObject({ "logs outside of any month": 4 });
  expect((await world.get(`/query/${next}/events`)).status).toBe(410);

  expect(await enforce(allOld)).toMatchObject({ runs: 4, batches: 1 });
  expect((await world.get(`/query/status/${id}`)).status).toBe(404);
  expect((await world.get(`/query/batch/${batch}`)).status).toBe(404);
});

test("a run that is not final keeps its log and its whole month, wherever it waits; one that was undone waits for the one that undoes it", async () => {
  const done = await finished();
  const open = [await world.submit(), await world.submit(), await world.submit({ delay_seconds: 3600 })];
  const owner = await world.own(open[1]!);
  for (const id of open) {
    const note = (await due(allOld))["logs, by month"];
    expect(note, id).toMatch(/run_events_\d{4}_\d\d stays: a run of it is not final/);
    await enforce(allOld);
    expect((await world.get(`/query/${id}/events`)).body.data.length).toBeGreaterThan(0);
    if (id === open[1]) await owner.end("completed", final);
    else await world.post(`/query/${id}/cancel`);
  }
  expect((await world.get(`/query/status/${done}`)).status).toBe(404);
  await enforce(contentsOld);
  expect(await count("run_events")).toBe(0);

  const undone = await finished();
  const { rollback_id } = (await world.post(`/query/${undone}/rollback`)).body;
  const rollback = (await world.pool.query("SELECT id FROM runs WHERE of_run IS NOT NULL")).rows[0].id;
  expect(rollback_id === undefined || fromWireId("run", rollback_id) === rollback).toBe(true);
  await enforce(allOld);
  expect((await world.get(`/query/${undone}/events`)).status).toBe(200);
  await world.post(`/query/run_${rollback.replaceAll("-", "")}/cancel`);
  await enforce(allOld);
  expect([await count("runs"), await count("run_events")]).toEqual([0, 0]);
});

test("a large content stays as long as a log that is kept names it: stored again, or copied by a retry, it is young", async () => {
  const blobs = postgresBlobs(world.pool);
  const id = await finished({}, "failed");
  await age(40);
  await world.post(`/query/${id}/retry`, {});
  const young = "SELECT FROM blobs WHERE created_at > now() - interval '1 minute'";
  expect((await world.pool.query(young)).rowCount).toBe(1);
  await age(40);
  const hash = (await world.pool.query("SELECT hash, content FROM blobs")).rows[0];
  expect(await blobs.put("default", hash.content)).toBe(hash.hash);
  expect((await world.pool.query(young)).rowCount).toBe(1);
  await enforce(kept);
  expect(await count("blobs")).toBe(1);
});

test("who goes on in the feed behind a place that is gone is told; numbers go on where they were", async () => {
  await world.post("/webhooks", { url: "https://example.com/hook", events: ["query.failed"] });
  for (let n = 0; n < 3; n++) await finished();
  await world.pool.query(
    `INSERT INTO message_feed (tenant, seq, message_id) SELECT tenant, row_number() OVER (ORDER BY id), id FROM messages`,
  );
  await world.pool.query("UPDATE messages SET fanned_out = true");
  const page = (await world.get("/events?limit=1")).body;
  expect(page.data).toHaveLength(1);
  await enforce(contentsOld);
  expect(await count("message_feed")).toBe(1);
  const gone = await world.get(`/events?after=${page.next_cursor}`);
  expect(gone).toMatchObject({ status: 410, body: { code: "contents_expired" } });
  expect((await world.get("/events")).status).toBe(200);
  expect((await world.pool.query("SELECT max(seq) AS seq FROM message_feed")).rows[0].seq).toBe(3);
});

test("a message somebody still waits for stays", async () => {
  await world.post("/webhooks", { url: "https://example.com/hook" });
  await finished();
  expect(await count("messages")).toBe(1);
  await enforce(allOld);
  expect(await count("messages")).toBe(1);
});

test("accounts of days and sessions go with what they counted", async () => {
  await world.pool.query("INSERT INTO budgets (tenant, session_nanos) VALUES ('default', 1000000000)");
  await world.pool.query(
    `INSERT INTO budget_accounts (tenant, level, ref, used_nanos) VALUES ('default', 'tenant_day', '2020-01-01', 5), ('default', 'tenant_month', '2020-01', 5),
       ('default', 'tenant_day', to_char(now(), 'YYYY-MM-DD'), 5), ('default', 'tenant_month', to_char(now(), 'YYYY-MM'), 5)`,
  );
  await enforce(kept);
  expect(await count("budget_accounts")).toBe(2);
  await finished();
  await world.pool.query("UPDATE runs SET session_id = gen_random_uuid()");
  await world.pool.query(
    "INSERT INTO budget_accounts (tenant, level, ref) SELECT tenant, 'session', session_id::text FROM runs",
  );
  await enforce(kept);
  expect(await count("budget_accounts")).toBe(3);
  await enforce(allOld);
  expect((await world.pool.query("SELECT FROM budget_accounts WHERE level = 'session'")).rowCount).toBe(0);
});
