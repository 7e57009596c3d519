import { createDelivery } from "@drover/delivery";
import { createEgress, type Egress } from "@drover/egress";
import { postgresBlobs } from "@drover/storage";
import { Webhook } from "standardwebhooks";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startReceiver } from "../support/receiver.ts";
import { paths, silent, startWorld, type World } from "./world.ts";

let world: World;
let egress: Egress;
const allow = ["127.0.0.0/8"];
beforeAll(async () => {
  world = await startWorld({ env: { DROVER_EGRESS_ALLOW: allow[0]! } });
  egress = createEgress({ allow });
});
afterAll(async () => {
  await egress.close();
  await world.close();
});

/** A delivering worker on the world's database that hears the API's rings. */
async function delivering<T>(body: () => Promise<T>): Promise<T> {
  const worker = createDelivery({
    pool: world.pool,
    blobs: postgresBlobs(world.pool),
    egress,
    logger: silent,
    onRing: (ring) => world.signals.onRing("delivery", ring),
  });
  worker.start();
  try {
    return await body();
  } finally {
    await worker.close();
  }
}

const create = async (body: object = {}) =>
  (await world.post("/webhooks", { url: "https://example.com/hook", ...body })).body;

describe("endpoints", () => {
  test.each([
    ["no url", {}, "url", /required/],
    ["a url that is none", { url: "nope" }, "url", /absolute/],
    ["a private url", { url: "http://192.168.1.1/" }, "url", /private/],
    ["a url with a password", { url: "https://u:p@example.com" }, "url", /password/],
    ["an unknown event", { url: "https://example.com", events: ["query.done"] }, "events[0]", /one of/],
    ["an event there is not", { url: "https://example.com", events: ["query.started"] }, "events[0]", /one of/],
    ["no events", { url: "https://example.com", events: [] }, "events", />=1/],
    ["an unknown field", { url: "https://example.com", secret: "mine" }, "secret", /no such field/],
    ["a long description", { url: "https://example.com", description: "x".repeat(501) }, "description", /<=500/],
    ["NUL in the description", { url: "https://example.com", description: "\0" }, "description", /NUL/],
  ])("%s is refused by name", async (_name, body, path, message) => {
    const { status, body: problem } = await world.post("/webhooks", body);
    expect(status).toBe(400);
    expect(problem.errors).toEqual([{ path, message: expect.stringMatching(message) }]);
  });

  test("are made with a secret that is shown once", async () => {
    const { status, headers, body } = await world.post("/webhooks", {
      url: "https://example.com/hook",
      events: ["query.failed"],
      description: "pager",
    });
    expect(status).toBe(201);
    expect(headers.get("location")).toBe(`/webhooks/${body.id}`);
    expect(body).toEqual({
      id: expect.stringMatching(/^whk_[0-9a-f]{32}$/),
      url: "https://example.com/hook",
      events: ["query.failed"],
      description: "pager",
      enabled: true,
      disabled_reason: null,
      signature: "hmac",
      thin_over_bytes: 20_000,
      created_at: expect.any(String),
      secret: expect.stringMatching(/^whsec_/),
    });
    const { secret: _shown, ...rest } = body;
    expect((await world.get(`/webhooks/${body.id}`)).body).toEqual(rest);
  });

  test("are listed newest first, page by page", async () => {
    const key = await world.keyOf("operator", "hooks");
    const ids: string[] = [];
    for (let n = 0; n < 5; n++)
      ids.unshift((await world.post("/webhooks", { url: `https://example.com/${n}` }, { key })).body.id);
    const first = (await world.get("/webhooks?limit=2", { key })).body;
    const second = (await world.get(`/webhooks?limit=200&cursor=${first.next_cursor}`, { key })).body;
    expect([...first.data, ...second.data].map((one) => one.id)).toEqual(ids);
    expect(second.next_cursor).toBeNull();
    expect(JSON.stringify(first)).not.toContain("whsec_");
  });

  test("are changed, disabled and enabled", async () => {
    const { id } = await create({ events: ["query.failed"] });
    const patch = (body: object) => world.call("PATCH", `/webhooks/${id}`, { body });
    expect((await patch({ events: null, description: "all" })).body).toMatchObject({
      events: null,
      description: "all",
      url: "https://example.com/hook",
    });
    expect((await patch({ enabled: false })).body).toMatchObject({
      enabled: false,
      disabled_reason: "disabled by request",
    });
    expect((await world.post(`/webhooks/${id}/test`)).status).toBe(409);
    expect((await patch({ enabled: true, url: "https://example.org" })).body).toMatchObject({
      enabled: true,
      disabled_reason: null,
      url: "https://example.org",
    });
    for (const [body, path] of [
      [{}, ""],
      [{ enabled: "no" }, "enabled"],
      [{ url: "http://127.1.1.1.1" }, "url"],
      [{ url: "http://10.0.0.1" }, "url"],
      [{ id: "x" }, "id"],
    ] as const) {
      const { status, body: problem } = await patch(body);
      expect(status).toBe(400);
      expect(paths(problem)).toEqual([path]);
    }
  });

  test("are removed", async () => {
    const { id } = await create();
    expect((await world.call("DELETE", `/webhooks/${id}`)).status).toBe(204);
    expect((await world.call("DELETE", `/webhooks/${id}`)).status).toBe(404);
    expect((await world.get(`/webhooks/${id}`)).status).toBe(404);
  });

  test("get a new secret", async () => {
    const { id, secret } = await create();
    for (const body of [undefined, {}, { overlap_seconds: 0 }]) {
      const { status, body: answer } = await world.post(`/webhooks/${id}/rotate-secret`, body);
      expect(status).toBe(200);
      expect(answer.secret).toMatch(/^whsec_/);
      expect(answer.secret).not.toBe(secret);
    }
    const { status, body } = await world.post(`/webhooks/${id}/rotate-secret`, { overlap_seconds: -1 });
    expect(status).toBe(400);
    expect(paths(body)).toEqual(["overlap_seconds"]);
  });
});

describe("the tenant's own secret", () => {
  test("is read and rotated by admins", async () => {
    const before = (await world.get("/webhooks/secret")).body.secret;
    const rotated = (await world.post("/webhooks/secret/rotate", { overlap_seconds: 60 })).body.secret;
    expect(rotated).not.toBe(before);
    expect((await world.get("/webhooks/secret")).body.secret).toBe(rotated);
  });
});

describe("deliveries", () => {
  test("a cancelled query's callback is delivered at once, signed, logged, and again on demand", async () => {
    const receiver = await startReceiver();
    const id = await world.submit({ callback_url: `${receiver.url}/hook` });
    const secret = (await world.get("/webhooks/secret")).body.secret;
    await delivering(async () => {
      expect((await world.get(`/query/${id}/deliveries`)).body).toEqual({ data: [], next_cursor: null });
      await world.post(`/query/${id}/cancel`);
      // Endpoints of the tests above get the message as well.
      const first = async () =>
        (await world.get(`/query/${id}/deliveries`)).body.data.find(
          (one: { endpoint_id: null }) => one.endpoint_id === null,
        );
      await expect.poll(async () => (await first())?.status).toBe("delivered");
      const delivery = await first();
      expect(delivery).toMatchObject({
        id: expect.stringMatching(/^dlv_/),
        endpoint_id: null,
        url: `${receiver.url}/hook`,
        type: "query.cancelled",
        attempts: [{ status_code: expect.any(Number), error: null, duration_ms: expect.any(Number) }],
        next_attempt_at: null,
      });
      const [request] = receiver.requests;
      const message = new Webhook(secret).verify(request!.body, request!.headers);
      expect(message).toMatchObject({ type: "query.cancelled", data: { task_id: id, status: "cancelled" } });
      expect(request!.headers["webhook-id"]).toBe(delivery.message_id);

      const again = await world.post(`/deliveries/${delivery.id}/redeliver`);
      expect(again.status).toBe(202);
      expect(again.body.id).toBe(delivery.id);
      await expect.poll(() => receiver.requests.length).toBe(2);
      expect(receiver.requests[1]!.headers["webhook-id"]).toBe(delivery.message_id);
      const stranger = await world.keyOf("admin", "stranger");
      expect((await world.post(`/deliveries/${delivery.id}/redeliver`, undefined, { key: stranger })).status).toBe(404);
    });
    await receiver.close();
  });

  test("what is pending cannot be asked for once more", async () => {
    const { id } = await create({ url: "http://127.0.0.1:9/nobody" });
    const owed = await world.post(`/webhooks/${id}/test`);
    expect(owed.status).toBe(202);
    expect(owed.body).toMatchObject({ status: "pending", type: "endpoint.test", endpoint_id: id, attempts: [] });
    const { status, body } = await world.post(`/deliveries/${owed.body.id}/redeliver`);
    expect(status).toBe(409);
    expect(body.code).toBe("conflict");
  });

  test("a test event reaches its endpoint", async () => {
    const receiver = await startReceiver();
    const { id, secret } = await create({ url: receiver.url, events: ["query.failed"] });
    await delivering(async () => {
      await world.post(`/webhooks/${id}/test`);
      await expect.poll(() => receiver.requests.length).toBe(1);
    });
    const [request] = receiver.requests;
    const message = new Webhook(secret).verify(request!.body, request!.headers);
    expect(message).toMatchObject({ type: "endpoint.test", data: { endpoint_id: id } });
    await receiver.close();
  });
});
