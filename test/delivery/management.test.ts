import {
  createEndpoint,
  deleteEndpoint,
  listDeliveries,
  listEndpoints,
  readDefaultSecret,
  readDelivery,
  readEndpoint,
  redeliver,
  rotateDefaultSecret,
  rotateEndpointSecret,
  sendTest,
  updateEndpoint,
} from "@drover/delivery";
import { toWireId, uuidv7 } from "@drover/protocol";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { verified } from "../support/receiver.ts";
import { createWorld, deliveriesOf, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await createWorld();
  await world.addTenant("other");
});
afterEach(() => world.cleanUp());
afterAll(() => world.close());

const hook = "https://receiver.example/hook";

test("another tenant's endpoint is a missing one, for everything one can do to it", async () => {
  const { id } = await createEndpoint(world.pool, "default", { url: hook });
  const { pool } = world;
  const before = await readEndpoint(pool, "default", id);
  expect(await readEndpoint(pool, "other", id)).toBeNull();
  expect(await listEndpoints(pool, "other", { limit: 10 })).toEqual([]);
  expect(await updateEndpoint(pool, "other", id, { enabled: false })).toBeNull();
  expect(await rotateEndpointSecret(pool, "other", id)).toBeNull();
  expect(await sendTest(pool, "other", id)).toBeNull();
  expect(await deleteEndpoint(pool, "other", id)).toBe(false);
  expect(await readEndpoint(pool, "default", id)).toEqual(before);
  expect((await pool.query("SELECT count(*) FROM messages")).rows[0].count).toBe(0);
});

test("another tenant's delivery is a missing one", async () => {
  const receiver = await world.receiver();
  const run = await world.endRun({ callbackUrl: receiver.url });
  await world.work().settled(1);
  const [delivery] = await deliveriesOf(world, run);
  expect(await listDeliveries(world.pool, "other", run, { limit: 10 })).toEqual([]);
  expect(await readDelivery(world.pool, "other", delivery!.id)).toBeNull();
  expect(await redeliver(world.pool, "other", delivery!.id)).toBeNull();
  expect((await deliveriesOf(world, run))[0]).toEqual(delivery);
});

test("an endpoint's life: made, listed, changed, removed with its deliveries", async () => {
  const { pool } = world;
  const made = await createEndpoint(pool, "default", { url: hook });
  const { secret, ...shown } = made;
  expect(made).toMatchObject({ url: hook, events: null, description: "", enabled: true, disabledReason: null });
  expect(await readEndpoint(pool, "default", made.id)).toEqual(shown);
  const second = await createEndpoint(pool, "default", { url: hook, events: ["query.failed"], description: "pager" });
  expect(second.secret).not.toBe(secret);
  const third = await createEndpoint(pool, "default", { url: hook });
  const page = await listEndpoints(pool, "default", { limit: 2 });
  expect(page.map((endpoint) => endpoint.id)).toEqual([third.id, second.id]);
  expect(page.some((endpoint) => "secret" in endpoint)).toBe(false);
  expect(await listEndpoints(pool, "default", { limit: 2, before: second.id })).toEqual([shown]);

  expect(await updateEndpoint(pool, "default", second.id, { description: "" })).toMatchObject({
    events: ["query.failed"],
    description: "",
  });
  expect(await updateEndpoint(pool, "default", second.id, { events: null, url: `${hook}/2` })).toMatchObject({
    events: null,
    url: `${hook}/2`,
  });
  expect(await updateEndpoint(pool, "default", second.id, { enabled: false })).toMatchObject({
    enabled: false,
    disabledReason: "disabled by request",
  });
  expect(await updateEndpoint(pool, "default", second.id, { enabled: true })).toMatchObject({
    enabled: true,
    disabledReason: null,
  });

  const test = await sendTest(pool, "default", second.id);
  expect(await deleteEndpoint(pool, "default", second.id)).toBe(true);
  expect(await readDelivery(pool, "default", test!.deliveryId)).toBeNull();
  expect(await deleteEndpoint(pool, "default", second.id)).toBe(false);
});

test("disabling an endpoint ends what it is owed; enabling it again does not bring that back, redelivering does", async () => {
  const receiver = await world.receiver(500);
  const endpoint = await createEndpoint(world.pool, "default", { url: receiver.url });
  const run = await world.endRun();
  const worker = world.work();
  await worker.settled(1);
  await updateEndpoint(world.pool, "default", endpoint.id, { enabled: false });
  const [disabled] = await deliveriesOf(world, run);
  expect(disabled).toMatchObject({ status: "disabled", nextAttemptAt: null });
  await expect(redeliver(world.pool, "default", disabled!.id)).rejects.toMatchObject({ code: "conflict" });
  await expect(sendTest(world.pool, "default", endpoint.id)).rejects.toMatchObject({ code: "conflict" });
  await updateEndpoint(world.pool, "default", endpoint.id, { enabled: true });
  expect((await deliveriesOf(world, run))[0]).toMatchObject({ status: "disabled" });
  receiver.reply(200);
  await redeliver(world.pool, "default", disabled!.id);
  worker.nudge();
  expect(await worker.settled(2)).toEqual(["retry", "delivered"]);
});

test("pending deliveries follow an endpoint to its new URL", async () => {
  const old = await world.receiver(500);
  const next = await world.receiver();
  const endpoint = await createEndpoint(world.pool, "default", { url: old.url });
  const run = await world.endRun();
  const worker = world.work();
  await worker.settled(1);
  await updateEndpoint(world.pool, "default", endpoint.id, { url: next.url });
  await world.passTime();
  worker.nudge();
  expect(await worker.settled(2)).toEqual(["retry", "delivered"]);
  expect((await deliveriesOf(world, run))[0]).toMatchObject({ url: next.url });
});

test("a redelivery sends the same message again, keeps the attempts, and starts three fresh days; while pending it is a conflict", async () => {
  const receiver = await world.receiver();
  const run = await world.endRun({ callbackUrl: receiver.url });
  const worker = world.work();
  await worker.settled(1);
  const [delivered] = await deliveriesOf(world, run);
  await world.pool.query("UPDATE deliveries SET give_up_at = now() - interval '1 day', failures = 9");
  receiver.reply(503);
  const again = await redeliver(world.pool, "default", delivered!.id);
  expect(again).toMatchObject({
    id: delivered!.id,
    messageId: delivered!.messageId,
    status: "pending",
    attempts: [{ statusCode: 200 }],
  });
  await expect(redeliver(world.pool, "default", delivered!.id)).rejects.toMatchObject({ code: "conflict" });
  worker.nudge();
  expect(await worker.settled(2)).toEqual(["delivered", "retry"]);
  const { rows } = await world.pool.query(
    "SELECT give_up_at > now() + interval '71 hours' AS fresh, next_at < now() + interval '7 seconds' AS soon FROM deliveries",
  );
  expect(rows).toEqual([{ fresh: true, soon: true }]);
  const [first, second] = await receiver.waitFor(2);
  expect(second!.headers["webhook-id"]).toBe(first!.headers["webhook-id"]);
  expect(second!.body).toBe(first!.body);
  expect((await deliveriesOf(world, run))[0]!.attempts.map((tried) => tried.statusCode)).toEqual([200, 503]);
});

test("a test message goes to its endpoint only, whatever it is subscribed to, and is in the log", async () => {
  const receiver = await world.receiver();
  const endpoint = await createEndpoint(world.pool, "default", { url: `${receiver.url}/a`, events: ["query.failed"] });
  await createEndpoint(world.pool, "default", { url: `${receiver.url}/b` });
  const { deliveryId } = (await sendTest(world.pool, "default", endpoint.id))!;
  const worker = world.work();
  expect(await worker.settled(1)).toEqual(["delivered"]);
  const [request] = await receiver.waitFor(1);
  expect(request!.path).toBe("/a");
  expect(verified(request!, endpoint.secret)).toMatchObject({
    type: "endpoint.test",
    data: { endpoint_id: toWireId("endpoint", endpoint.id) },
  });
  expect(await readDelivery(world.pool, "default", deliveryId)).toMatchObject({
    endpointId: endpoint.id,
    runId: null,
    type: "endpoint.test",
    status: "delivered",
  });
  await worker.close();
  expect(receiver.requests).toHaveLength(1);
});

test("a rotation without overlap leaves the new secret alone", async () => {
  const receiver = await world.receiver();
  const endpoint = await createEndpoint(world.pool, "default", { url: receiver.url });
  const { secret } = (await rotateEndpointSecret(world.pool, "default", endpoint.id, 0))!;
  await sendTest(world.pool, "default", endpoint.id);
  world.work();
  const [request] = await receiver.waitFor(1);
  verified(request!, secret);
  expect(() => verified(request!, endpoint.secret)).toThrow();
});

test("the default secret is each tenant's own", async () => {
  const before = await readDefaultSecret(world.pool, "other");
  expect(await readDefaultSecret(world.pool, "default")).not.toEqual(before);
  const rotated = await rotateDefaultSecret(world.pool, "default");
  expect(await readDefaultSecret(world.pool, "default")).toEqual(rotated);
  expect(await readDefaultSecret(world.pool, "other")).toEqual(before);
  expect(await readDefaultSecret(world.pool, "nobody")).toBeNull();
  expect(await rotateDefaultSecret(world.pool, "nobody")).toBeNull();
});

test("a run's deliveries come newest first, page by page, each with its own attempts", async () => {
  const receiver = await world.receiver(503);
  const ids: string[] = [];
  for (let n = 0; n < 5; n++)
    ids.push((await createEndpoint(world.pool, "default", { url: `${receiver.url}/${n}` })).id);
  const run = await world.endRun();
  await world.work().settled(5);
  const all = await listDeliveries(world.pool, "default", run, { limit: 10 });
  expect(all.map((record) => record.id)).toEqual([...all.map((record) => record.id)].sort().reverse());
  expect(new Set(all.map((record) => record.endpointId))).toEqual(new Set(ids));
  expect(all.every((record) => record.attempts.length === 1)).toBe(true);
  expect(await listDeliveries(world.pool, "default", run, { limit: 2, before: all[1]!.id })).toEqual(all.slice(2, 4));
  expect(await readDelivery(world.pool, "default", uuidv7())).toBeNull();
});
