/** Endpoints that are given up after five days without a 2xx, or by a 410, and who is told. Days pass by moving rows back in time. */
import { createEndpoint, readEndpoint, updateEndpoint } from "@drover/delivery";
import { toWireId } from "@drover/protocol";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Receiver } from "../support/receiver.ts";
import { verified } from "../support/receiver.ts";
import { createWorld, deliveriesOf, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterEach(() => world.cleanUp());
afterAll(() => world.close());

const reason = "no 2xx answer for 5 days, over 3 messages or more";

/** Everything there is about endpoints and deliveries happened so many days earlier. */
async function daysPass(days: number): Promise<void> {
  const back = `- interval '${days} days'`;
  await world.pool.query(`UPDATE endpoints SET created_at = created_at ${back}, failing_since = failing_since ${back}`);
  await world.pool.query(
    `UPDATE deliveries SET next_at = next_at ${back}, give_up_at = give_up_at ${back}, created_at = created_at ${back}`,
  );
}

const isEnabled = async (id: string) => (await readEndpoint(world.pool, "default", id))!.enabled;

/** A new message is tried by a fresh worker, and what is due of older ones too; resolves when `tries` are written down and what follows from them is. */
async function tryOnce(tries = 1): Promise<string> {
  const run = await world.endRun();
  const worker = world.work();
  await worker.settled(tries);
  await worker.close();
  return run;
}

/** A failing endpoint with so many failed messages, none of which is tried again by itself. */
async function failing(messages: number, status = 500): Promise<{ id: string; receiver: Receiver }> {
  const receiver = await world.receiver(status);
  const { id } = await createEndpoint(world.pool, "default", { url: receiver.url });
  for (let index = 0; index < messages; index++) {
    await tryOnce();
    await world.pool.query("UPDATE deliveries SET next_at = now() + interval '1 hour' WHERE status = 'pending'");
  }
  return { id, receiver };
}

describe("an endpoint without a 2xx for five days", () => {
  test("is disabled at the next failure once three messages have failed, and everybody else is told", async () => {
    const { id } = await failing(2);
    const others = await world.receiver();
    const other = await createEndpoint(world.pool, "default", { url: others.url, events: ["endpoint.disabled"] });
    const picky = await createEndpoint(world.pool, "default", { url: others.url, events: ["query.failed"] });
    const { rows: since } = await world.pool.query(
      "SELECT failing_since - interval '5 days' AS at FROM endpoints WHERE id = $1",
      [id],
    );
    await daysPass(5);
    const run = await world.endRun();
    const worker = world.work();
    // What it was owed was due long ago: three tries, then the message to the other endpoint.
    const [request] = await others.waitFor(1);
    await worker.close();

    const endpoint = await readEndpoint(world.pool, "default", id);
    expect(endpoint).toMatchObject({ enabled: false, disabledReason: reason });
    expect(verified(request!, other.secret)).toMatchObject({
      type: "endpoint.disabled",
      data: {
        endpoint_id: toWireId("endpoint", id),
        description: "",
        reason,
        failing_since: (since[0].at as Date).toISOString(),
      },
    });
    expect(request!.body).not.toContain("127.0.0.1");
    expect(others.requests).toHaveLength(1);
    expect(await isEnabled(picky.id)).toBe(true);
    const [delivery] = await deliveriesOf(world, run);
    expect(delivery).toMatchObject({ status: "disabled", nextAttemptAt: null });
    const { rows: pending } = await world.pool.query(
      "SELECT FROM deliveries WHERE endpoint_id = $1 AND status = 'pending'",
      [id],
    );
    expect(pending).toEqual([]);
    const { rows: audited } = await world.pool.query(
      "SELECT tenant, actor, data FROM audit_entries WHERE action = 'endpoint.disabled' AND data->>'endpoint' = $1",
      [toWireId("endpoint", id)],
    );
    expect(audited).toEqual([
      { tenant: "default", actor: "worker", data: { endpoint: toWireId("endpoint", id), reason } },
    ]);
    // For the feed: a message of the whole tenant.
    const { rows: inbox } = await world.pool.query(
      "SELECT m.type FROM messages_unnumbered u JOIN messages m ON m.id = u.message_id WHERE m.type LIKE 'endpoint.%'",
    );
    expect(inbox).toEqual([{ type: "endpoint.disabled" }]);
  });

  test("stays enabled while fewer messages failed, however often they were tried", async () => {
    const { id } = await failing(1);
    await daysPass(2);
    await tryOnce(2);
    await daysPass(4);
    const worker = world.work();
    await worker.settled(1);
    await worker.close();
    expect(await isEnabled(id)).toBe(true);
  });

  test("stays enabled until the five days are over, however many messages failed", async () => {
    const { id } = await failing(4);
    await world.pool.query("UPDATE endpoints SET failing_since = now() - interval '4 days 23 hours 59 minutes'");
    await tryOnce();
    expect(await isEnabled(id)).toBe(true);
  });

  test("one 2xx in between, and the days begin anew", async () => {
    const { id, receiver } = await failing(3);
    await daysPass(4);
    await world.pool.query("DELETE FROM deliveries");
    receiver.reply(200);
    await tryOnce();
    receiver.reply(500);
    await daysPass(2);
    await tryOnce();
    expect(await isEnabled(id)).toBe(true);
    const { rows } = await world.pool.query(
      "SELECT failing_since > now() - interval '1 minute' AS anew, cardinality(failed_messages) AS failed FROM endpoints",
    );
    expect(rows).toEqual([{ anew: true, failed: 1 }]);
  });

  test("enabling it again, or a new URL, forgets that it failed; other changes do not", async () => {
    const { id, receiver } = await failing(3);
    const state = async () =>
      (await world.pool.query("SELECT failing_since IS NULL AS well, failed_messages FROM endpoints")).rows[0];
    await updateEndpoint(world.pool, "default", id, { description: "mine", url: receiver.url });
    expect(await state()).toMatchObject({ well: false });
    await updateEndpoint(world.pool, "default", id, { url: `${receiver.url}/new` });
    expect(await state()).toEqual({ well: true, failed_messages: [] });

    await world.pool.query("DELETE FROM deliveries");
    await tryOnce();
    await daysPass(6);
    await tryOnce(2);
    await tryOnce();
    expect(await isEnabled(id)).toBe(false);
    await updateEndpoint(world.pool, "default", id, { enabled: true });
    expect(await state()).toEqual({ well: true, failed_messages: [] });
    await tryOnce();
    expect(await readEndpoint(world.pool, "default", id)).toMatchObject({ enabled: true, disabledReason: null });
  });

  test("is not to blame for what could not be sent", async () => {
    const receiver = await world.receiver();
    const { id } = await createEndpoint(world.pool, "default", { url: receiver.url });
    const run = await world.endRun();
    await world.pool.query("DELETE FROM run_events WHERE run_id = $1", [run]);
    await world.pool.query("DELETE FROM runs WHERE id = $1", [run]);
    const worker = world.work();
    expect(await worker.settled(1)).toEqual(["failed"]);
    await worker.close();
    const { rows } = await world.pool.query("SELECT failing_since FROM endpoints WHERE id = $1", [id]);
    expect(rows).toEqual([{ failing_since: null }]);
  });
});

test("a 410 is told in the same way, once, and not to another tenant", async () => {
  await world.addTenant("second");
  const others = await world.receiver();
  const other = await createEndpoint(world.pool, "default", { url: others.url });
  await createEndpoint(world.pool, "second", { url: `${others.url}/second` });
  const gone = await world.receiver(410);
  const { id } = await createEndpoint(world.pool, "default", { url: gone.url, events: ["query.completed"] });
  await world.endRun();
  await world.endRun();
  const worker = world.work();
  const requests = await others.waitFor(3);
  await worker.close();
  const told = requests
    .map((request) => verified(request, other.secret))
    .filter(({ type }) => !type.startsWith("query"));
  expect(told).toMatchObject([
    {
      type: "endpoint.disabled",
      data: { endpoint_id: toWireId("endpoint", id), reason: "answered 410: gone for good", failing_since: null },
    },
  ]);
  expect(others.requests).toHaveLength(3);
});
