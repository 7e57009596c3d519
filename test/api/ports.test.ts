/** How an endpoint is sent to: signatures, the thin form, causes and hints, and what a redelivery says. */
import { createPublicKey, verify } from "node:crypto";
import { createServer, type Socket } from "node:net";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { type ReceivedWebhook, type Receiver, startReceiver, verified } from "../support/receiver.ts";
import { type Carried, startCarried } from "./carried.ts";

let world: Carried;
let receiver: Receiver;
beforeAll(async () => {
  world = await startCarried({
    env: { DROVER_EGRESS_ALLOW: "127.0.0.0/8", DROVER_PUBLIC_URL: "https://drover.example.com" },
  });
});
afterAll(() => world.close());
beforeEach(async () => {
  receiver = await startReceiver();
  world.models.reset();
  world.models.script(() => "an answer");
  return () => receiver.close();
});

const endpoint = async (more: Record<string, unknown> = {}) => {
  const { status, body } = await world.post("/webhooks", { url: `${receiver.url}/hook`, ...more });
  expect(status, JSON.stringify(body)).toBe(201);
  return body;
};
const remove = (id: string) => world.call("DELETE", `/webhooks/${id}`);

/** Checked with node's own crypto, by the letter of the specification. */
function verifies({ headers, body }: ReceivedWebhook, publicKey: string): boolean {
  const raw = Buffer.from(publicKey.replace(/^whpk_/, ""), "base64");
  const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x: raw.toString("base64url") }, format: "jwk" });
  const content = Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`);
  return headers["webhook-signature"]!.split(" ").some((signature) => {
    const [version, value] = signature.split(",");
    return version === "v1a" && verify(null, content, key, Buffer.from(value!, "base64"));
  });
}

describe("signatures", () => {
  test("ed25519: the receiver needs the public key alone, also while one is rotated out", async () => {
    const made = await endpoint({ signature: "ed25519" });
    expect(made).toMatchObject({ signature: "ed25519", secret: expect.stringMatching(/^whpk_[A-Za-z0-9+/]{43}=$/) });
    await world.post(`/webhooks/${made.id}/test`);
    const [first] = await receiver.waitFor(1);
    expect(verifies(first!, made.secret)).toBe(true);
    expect(verifies({ ...first!, body: `${first!.body} ` }, made.secret)).toBe(false);

    const { secret } = (await world.post(`/webhooks/${made.id}/rotate-secret`, { overlap_seconds: 60 })).body;
    expect((await world.get(`/webhooks/${made.id}/public-key`)).body).toEqual({ keys: [secret, made.secret] });
    await world.post(`/webhooks/${made.id}/test`);
    const second = (await receiver.waitFor(2))[1]!;
    for (const key of [secret, made.secret]) expect(verifies(second, key)).toBe(true);
    // The private key is nowhere.
    expect(JSON.stringify([(await world.get(`/webhooks/${made.id}`)).body, made])).not.toContain("whsk_");
    await remove(made.id);
  });

  test("hmac, the default: a shared secret, and no public key", async () => {
    const made = await endpoint();
    expect(made).toMatchObject({ signature: "hmac", secret: expect.stringMatching(/^whsec_/) });
    expect((await world.get(`/webhooks/${made.id}/public-key`)).body).toEqual({ keys: [] });
    await world.post(`/webhooks/${made.id}/test`);
    const [told] = await receiver.waitFor(1);
    expect(verified(told!, made.secret).type).toBe("endpoint.test");
    await remove(made.id);
  });
});

describe("the thin form", () => {
  const large = "x".repeat(30_000);

  test("by default over 20,000 bytes, as the endpoint says, or never", async () => {
    world.models.script(() => large);
    const [usual, small, whole] = [
      await endpoint({ url: `${receiver.url}/usual` }),
      await endpoint({ url: `${receiver.url}/small`, thin_over_bytes: 1000 }),
      await endpoint({ url: `${receiver.url}/whole`, thin_over_bytes: null }),
    ];
    expect([usual, small, whole].map(({ thin_over_bytes }) => thin_over_bytes)).toEqual([20_000, 1000, null]);
    const id = await world.submit();
    await world.end(id);
    const of = Object.fromEntries((await receiver.waitFor(3)).map(({ path, body }) => [path, JSON.parse(body).data]));
    const thin = { thin: true, result: { output: null }, result_url: `https://drover.example.com/query/result/${id}` };
    expect(of).toMatchObject({ "/usual": thin, "/small": thin, "/whole": { result: { output: large } } });
    expect(of["/whole"].thin).toBeUndefined();
    const changed = await world.call("PATCH", `/webhooks/${whole.id}`, { body: { thin_over_bytes: 5000 } });
    expect(changed.body.thin_over_bytes).toBe(5000);
    for (const { id } of [usual, small, whole]) await remove(id);
  });
});

describe("a delivery's record", () => {
  const delivered = (taskId: string) =>
    expect.poll(async () => (await world.get(`/query/${taskId}/deliveries`)).body.data);
  const failed = async (url: string) => {
    const taskId = await world.submit({ callback_url: url });
    await world.end(taskId);
    await delivered(taskId).toMatchObject([{ attempts: [{}] }]);
    const { attempts, delivered_at } = (await world.get(`/query/${taskId}/deliveries`)).body.data[0];
    expect(delivered_at).toBeNull();
    return attempts[0];
  };

  test.each([
    [500, "receiver_error"],
    [302, "redirect"],
    [401, "unauthorized"],
    [404, "not_found"],
    [429, "rate_limited"],
    [418, "rejected"],
  ])("an answer of %i is %s, with a hint in words", async (status, cause) => {
    receiver.reply(status);
    expect(await failed(`${receiver.url}/x`)).toMatchObject({
      status_code: status,
      cause,
      hint: expect.stringMatching(/\w+ .*\.$/),
    });
  });

  test("no answer has its cause too", async () => {
    receiver.reply("cut");
    expect(await failed(`${receiver.url}/x`)).toMatchObject({ status_code: null, cause: "connection_closed" });
    expect(await failed("http://127.0.0.1:1/x")).toMatchObject({ cause: "connection_refused" });
    expect(await failed("http://nobody.invalid/x")).toMatchObject({ cause: "host_not_found" });
    expect(await failed(`${receiver.url.replace("http:", "https:")}/x`)).toMatchObject({ cause: "tls" });
  });

  test("asked for once more, says that it had arrived; while it is pending that is refused", async () => {
    const taskId = await world.submit({ callback_url: `${receiver.url}/x` });
    await world.end(taskId);
    await delivered(taskId).toMatchObject([{ status: "delivered", delivered_at: expect.any(String) }]);
    const [{ id, delivered_at }] = (await world.get(`/query/${taskId}/deliveries`)).body.data;
    let answer = (_: number) => {};
    receiver.reply(() => new Promise((resolve) => (answer = (status) => resolve({ status }))));
    const again = await world.post(`/deliveries/${id}/redeliver`);
    expect(again).toMatchObject({ status: 202, body: { status: "pending", delivered_at } });
    await receiver.waitFor(2);
    expect(await world.post(`/deliveries/${id}/redeliver`)).toMatchObject({ status: 409, body: { code: "conflict" } });
    answer(200);
    await delivered(taskId).toMatchObject([{ status: "delivered", delivered_at }]);
  });
});

test("a connection that was closed while it was idle is made anew, and that is no attempt", async () => {
  let requests = 0;
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    let ofThis = 0;
    socket.on("error", () => {});
    socket.on("data", (data) => {
      if (!data.toString().startsWith("POST")) return;
      requests++;
      // As a server whose patience with an idle connection ends just when the next request comes.
      if (++ofThis > 1) socket.end();
      else socket.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${(server.address() as { port: number }).port}/x`;
  for (let n = 0; n < 2; n++) {
    const taskId = await world.submit({ callback_url: url });
    await world.end(taskId);
    await expect
      .poll(async () => (await world.get(`/query/${taskId}/deliveries`)).body.data)
      .toMatchObject([{ status: "delivered", attempts: [{ error: null, status_code: 200 }] }]);
  }
  expect([sockets.length, requests]).toEqual([2, 3]);
  for (const socket of sockets) socket.destroy();
  server.close();
});
