/** `GET /events`: the feed of webhook messages over HTTP. */
import { createDelivery, createEndpoint, sendTest } from "@drover/delivery";
import { createEgress } from "@drover/egress";
import { type Sequencer, startSequencer } from "@drover/runs";
import { postgresBlobs, transaction } from "@drover/storage";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { startReceiver, verified } from "../support/receiver.ts";
import { paths, silent, startWorld, type World } from "./world.ts";

let world: World;
let sequencer: Sequencer;
beforeAll(async () => {
  world = await startWorld();
  sequencer = startSequencer({
    pool: world.pool,
    directUrl: world.databaseUrl,
    logger: silent,
    signals: world.signals,
  });
});
afterAll(async () => {
  await sequencer.close();
  await world.close();
});

const done = { output: "391", stop_reason: null, error: null };

async function finish(key: string, body: object = {}): Promise<string> {
  const id = await world.submit({ ...body }, { key });
  const owner = await world.own(id);
  await owner.say("391");
  await owner.end("completed", done);
  return id;
}
const numbered = () =>
  vi.waitFor(async () => expect((await world.pool.query("SELECT FROM messages_unnumbered")).rowCount).toBe(0), {
    timeout: 20_000,
    interval: 20,
  });

describe("pages", () => {
  test("are oldest first, of the caller's tenant only, and every one says where to go on", async () => {
    const key = await world.keyOf("submitter", "pages");
    const empty = await world.get("/events", { key });
    expect(empty.body).toEqual({ data: [], next_cursor: expect.any(String) });
    const ids: string[] = [];
    for (let index = 0; index < 5; index++) {
      ids.push(await finish(key));
      await numbered();
    }
    await finish(await world.keyOf("submitter", "others"));
    await numbered();
    const items = [];
    let after = empty.body.next_cursor;
    for (;;) {
      const { status, body } = await world.get(`/events?limit=2&after=${after}`, { key });
      expect(status).toBe(200);
      expect(body.data.length).toBeLessThanOrEqual(2);
      after = body.next_cursor;
      if (body.data.length === 0) break;
      expect(body.data.at(-1).cursor).toBe(body.next_cursor);
      items.push(...body.data);
    }
    expect(items.map(({ data }) => data.task_id)).toEqual(ids);
    expect(new Set(items.map(({ id }) => id)).size).toBe(5);
    // Each item's own cursor does as well, and the end stays where it is until there is more.
    const rest = await world.get(`/events?after=${items[2].cursor}`, { key });
    expect(rest.body.data).toEqual(items.slice(3));
    expect((await world.get(`/events?after=${after}`, { key })).body).toEqual({ data: [], next_cursor: after });
    const more = await finish(key);
    await numbered();
    const { body } = await world.get(`/events?after=${after}`, { key });
    expect(body.data.map(({ data }: { data: { task_id: string } }) => data.task_id)).toEqual([more]);
  });

  test("a message whose transaction was slow comes after the cursor of who has read on", async () => {
    const key = await world.keyOf("submitter", "slow");
    const slow = "INSERT INTO messages (id, tenant, type, data) VALUES (uuidv7_now(), 'slow', 'endpoint.disabled', $1)";
    let cursor = "";
    await transaction(world.pool, async (tx) => {
      await tx.query(slow, [{ reason: "slow" }]);
      await finish(key);
      await numbered();
      const { body } = await world.get("/events", { key });
      expect(body.data).toHaveLength(1);
      cursor = body.next_cursor;
    });
    await numbered();
    const { body } = await world.get(`/events?after=${cursor}`, { key });
    expect(body.data).toMatchObject([{ type: "endpoint.disabled", data: { reason: "slow" } }]);
  });

  test("of what is large end early, and lose nothing", async () => {
    const key = await world.keyOf("submitter", "large");
    await world.pool.query(
      `INSERT INTO messages (id, tenant, type, data)
       SELECT uuidv7_floor(now() + n * interval '1 ms'), 'large', 'endpoint.disabled',
         json_build_object('n', n, 'text', repeat('x', 1000000)) FROM generate_series(1, 25) n`,
    );
    await numbered();
    const seen: number[] = [];
    let pages = 0;
    for (let after = ""; ; pages++) {
      const { body, text } = await world.get(`/events?limit=200${after && `&after=${after}`}`, { key });
      expect(text.length).toBeLessThan(13_000_000);
      if (body.data.length === 0) break;
      seen.push(...body.data.map(({ data }: { data: { n: number } }) => data.n));
      after = body.next_cursor;
    }
    expect(seen).toEqual(Array.from({ length: 25 }, (_, index) => index + 1));
    expect(pages).toBeGreaterThan(1);
  });

  test("skip what no longer exists, and do not end there", async () => {
    const key = await world.keyOf("submitter", "erased");
    const [first, second] = [await finish(key), await finish(key)];
    await numbered();
    await world.pool.query("DELETE FROM messages WHERE tenant = 'erased' AND run_id = $1", [
      `${first.slice(4, 12)}-${first.slice(12, 16)}-${first.slice(16, 20)}-${first.slice(20, 24)}-${first.slice(24)}`,
    ]);
    const { body } = await world.get("/events?limit=1", { key });
    expect(body.data).toMatchObject([{ data: { task_id: second } }]);
  });
});

test("items are what an endpoint subscribed to everything gets; what goes to one endpoint only is none", async () => {
  const key = await world.keyOf("admin", "same");
  const receiver = await startReceiver();
  const egress = createEgress({ allow: ["127.0.0.0/8"] });
  const delivery = createDelivery({ pool: world.pool, blobs: postgresBlobs(world.pool), egress, logger: silent });
  try {
    const { id, secret } = await createEndpoint(world.pool, "same", { url: receiver.url });
    await sendTest(world.pool, "same", id);
    await finish(key, { metadata: { project: "apollo" } });
    const failed = await world.own(await world.submit({}, { key }));
    await failed.end("failed", {
      output: null,
      stop_reason: "model_error",
      error: { code: "model_error", message: "x" },
    });
    const cancelled = await world.submit({}, { key });
    await world.post(`/query/${cancelled}/cancel`, undefined, { key });
    delivery.start();
    const requests = await receiver.waitFor(4);
    const sent = requests
      .map((request) => ({ id: request.headers["webhook-id"]!, ...verified(request, secret) }))
      .filter(({ type }) => type !== "endpoint.test");
    await numbered();
    const { body } = await world.get("/events", { key });
    const items = body.data.map(({ cursor: _cursor, ...item }: { cursor: string }) => item);
    expect(items.map(({ type }: { type: string }) => type)).toEqual([
      "query.completed",
      "query.failed",
      "query.cancelled",
    ]);
    const byId = (a: { id: string }, b: { id: string }) => (a.id < b.id ? -1 : 1);
    expect(items.toSorted(byId)).toEqual(sent.toSorted(byId));
  } finally {
    await delivery.close(0);
    await egress.close();
    await receiver.close();
  }
});

describe("waiting", () => {
  test("an empty page is held back until something comes", async () => {
    const key = await world.keyOf("submitter", "waits");
    const { body: before } = await world.get("/events", { key });
    const answer = world.get(`/events?wait=60&after=${before.next_cursor}`, { key });
    const id = await finish(key);
    const { body } = await answer;
    expect(body.data).toMatchObject([{ type: "query.completed", data: { task_id: id } }]);
    // What is there is not waited for.
    expect((await world.get("/events?wait=60", { key })).body).toEqual(body);
  });

  test("is over when its time is up", async () => {
    const key = await world.keyOf("submitter", "waits-in-vain");
    const { status, body } = await world.get("/events?wait=0.05", { key });
    expect([status, body.data]).toEqual([200, []]);
  });
});

test("wrong parameters are named, a cursor that this feed did not give among them", async () => {
  const audit = Buffer.from("audit 1").toString("base64url");
  const ahead = Buffer.from("feed 999").toString("base64url");
  for (const [query, path] of [
    ["after=garbage", "after"],
    ["after=", "after"],
    [`after=${audit}`, "after"],
    [`after=${Buffer.from("feed -1").toString("base64url")}`, "after"],
    [`after=${ahead}`, "after"],
    [`after=${ahead}&wait=60`, "after"],
    ["limit=0", "limit"],
    ["limit=201", "limit"],
    ["wait=-1", "wait"],
    ["wait=301", "wait"],
    ["cursor=x", "cursor"],
  ]) {
    const { status, body } = await world.get(`/events?${query}`, { key: await world.keyOf("submitter", "empty") });
    expect(status, query).toBe(400);
    expect(paths(body), query).toEqual([path]);
  }
});

test("endpoints can subscribe to every type of the feed, callbacks to what is theirs", async () => {
  const events = ["endpoint.disabled"];
  expect((await world.post("/webhooks", { url: "https://example.com/hook", events })).status).toBe(201);
  const callback = { callback_url: "https://example.com/hook", events };
  for (const [path, body] of [
    ["/query", { query: "x", ...callback }],
    ["/query/batch", { queries: ["x"], ...callback }],
  ] as const) {
    const refused = await world.post(path, body);
    expect(refused.status).toBe(400);
    expect(paths(refused.body)).toEqual(["events[0]"]);
  }
});

test("whoever may read may follow it, nobody else", async () => {
  for (const role of ["submitter", "approver", "operator", "admin"] as const)
    expect((await world.get("/events", { key: await world.keyOf(role, "roles") })).status).toBe(200);
  expect((await world.get("/events", { key: null })).status).toBe(401);
});
