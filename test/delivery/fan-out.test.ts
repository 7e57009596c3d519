import { createEndpoint, updateEndpoint } from "@drover/delivery";
import { uuidv7 } from "@drover/protocol";
import { openPool } from "@drover/storage";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { fanOut } from "../../packages/delivery/src/fan-out.ts";
import { closeBatches } from "../../packages/runs/src/moves/batch.ts";
import { createWorld, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await createWorld();
  await world.addTenant("other");
});
afterEach(() => world.cleanUp());
afterAll(() => world.close());

const hook = "https://receiver.example/hook";

/** Endpoint id (null: callback) and type of every delivery there is. */
async function deliveries(): Promise<{ endpoint_id: string | null; type: string; url: string; destination: string }[]> {
  return (await world.pool.query("SELECT endpoint_id, type, url, destination FROM deliveries ORDER BY id")).rows;
}
async function open(): Promise<number> {
  return (await world.pool.query("SELECT count(*) FROM messages WHERE NOT fanned_out")).rows[0].count;
}

test("a worker that dies in the middle leaves no half of it: the next one does all, once", async () => {
  await createEndpoint(world.pool, "default", { url: hook });
  await world.endRun({ callbackUrl: hook });
  const dying = openPool({ url: world.url, logger: world.logger, max: 1 });
  const client = await dying.connect();
  client.on("error", () => {});
  try {
    const { rows } = await client.query("SELECT pg_backend_pid() AS pid");
    await client.query("BEGIN");
    expect(await fanOut(client, 10)).toBe(1);
    // Another worker does not wait for it.
    expect(await fanOut(world.pool, 10)).toBe(0);
    await world.pool.query("SELECT pg_terminate_backend($1, 5000)", [rows[0].pid]);
  } finally {
    client.release(true);
    await dying.end();
  }
  expect(await deliveries()).toHaveLength(0);
  expect(await fanOut(world.pool, 10)).toBe(1);
  expect(await deliveries()).toHaveLength(2);
  expect(await fanOut(world.pool, 10)).toBe(0);
  expect(await open()).toBe(0);
});

test("ten workers at once make one delivery per message and target", async () => {
  await createEndpoint(world.pool, "default", { url: hook });
  await world.cancelledRuns(500, { callbackUrl: hook });
  const drain = async () => {
    let done = 0;
    for (let n = 1; n > 0; ) {
      n = await fanOut(world.pool, 20);
      done += n;
    }
    return done;
  };
  const done = await Promise.all(Array.from({ length: 10 }, drain));
  expect(done.reduce((sum, n) => sum + n, 0)).toBe(500);
  expect(await deliveries()).toHaveLength(1000);
});

test("a message that comes twice makes no second delivery", async () => {
  await createEndpoint(world.pool, "default", { url: hook });
  await world.endRun({ callbackUrl: hook });
  await fanOut(world.pool, 10);
  await world.pool.query("UPDATE messages SET fanned_out = false");
  expect(await fanOut(world.pool, 10)).toBe(1);
  expect(await deliveries()).toHaveLength(2);
});

test("a callback without a list hears of every end, one with a list of those only", async () => {
  const callbackUrl = hook;
  await world.endRun({ callbackUrl });
  await world.endRun({ callbackUrl, status: "partial" });
  await world.endRun({ callbackUrl, status: "failed" });
  await world.cancelledRuns(1, { callbackUrl });
  await world.endRun({ callbackUrl, callbackEvents: ["query.failed"] });
  await world.endRun({ callbackUrl, callbackEvents: ["query.failed"], status: "failed" });
  await world.endRun();
  // The last one is for nobody.
  expect(await fanOut(world.pool, 10)).toBe(6);
  expect((await deliveries()).map((delivery) => delivery.type).sort()).toEqual([
    "query.cancelled",
    "query.completed",
    "query.failed",
    "query.failed",
    "query.partial",
  ]);
  expect(await open()).toBe(0);
});

test("a batch's callback hears of its end; its items' callbacks of theirs", async () => {
  const batchId = await world.addBatch(1, { callbackUrl: `${hook}/batch` });
  await world.endRun({ batchId, batchIndex: 0, callbackUrl: `${hook}/item` });
  const picky = await world.addBatch(1, { callbackUrl: hook, callbackEvents: ["query.completed"] });
  await closeBatches(world.pool, [batchId, picky]);
  await fanOut(world.pool, 10);
  expect((await deliveries()).map(({ type, url }) => `${type} ${url}`).sort()).toEqual([
    `batch.completed ${hook}/batch`,
    `query.completed ${hook}/item`,
  ]);
});

test("enabled endpoints of the same tenant get what they are subscribed to", async () => {
  const everything = await createEndpoint(world.pool, "default", { url: hook });
  const failures = await createEndpoint(world.pool, "default", { url: hook, events: ["query.failed"] });
  const disabled = await createEndpoint(world.pool, "default", { url: hook });
  await updateEndpoint(world.pool, "default", disabled.id, { enabled: false });
  await createEndpoint(world.pool, "other", { url: hook });
  await world.endRun();
  await world.endRun({ status: "failed" });
  await fanOut(world.pool, 10);
  const got = (await deliveries()).map(({ endpoint_id, type }) => `${endpoint_id} ${type}`).sort();
  expect(got).toEqual(
    [`${everything.id} query.completed`, `${everything.id} query.failed`, `${failures.id} query.failed`].sort(),
  );
});

test("a message for one endpoint goes there only, and never to another tenant's", async () => {
  const target = await createEndpoint(world.pool, "default", { url: hook, events: ["query.failed"] });
  await createEndpoint(world.pool, "default", { url: hook });
  for (const tenant of ["default", "other"]) {
    await world.pool.query(
      "INSERT INTO messages (id, tenant, type, endpoint_id) VALUES ($1, $2, 'endpoint.test', $3)",
      [uuidv7(), tenant, target.id],
    );
  }
  expect(await fanOut(world.pool, 10)).toBe(2);
  expect(await deliveries()).toEqual([
    { endpoint_id: target.id, type: "endpoint.test", url: hook, destination: target.id },
  ]);
});

test("callbacks of one tenant and origin share a destination, whatever their path; another tenant's do not", async () => {
  await world.endRun({ callbackUrl: "https://Receiver.example/a?x=1" });
  await world.endRun({ callbackUrl: "HTTPS://receiver.example/b#y" });
  await world.endRun({ callbackUrl: "https://receiver.example:8443/a" });
  await world.endRun({ callbackUrl: "https://receiver.example/a", tenant: "other" });
  await fanOut(world.pool, 10);
  expect((await deliveries()).map((delivery) => delivery.destination).sort()).toEqual([
    "default https://receiver.example",
    "default https://receiver.example",
    "default https://receiver.example:8443",
    "other https://receiver.example",
  ]);
});
