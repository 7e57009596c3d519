import { createEndpoint, redeliver, updateEndpoint } from "@drover/delivery";
import { uuidv7 } from "@drover/protocol";
import { openPool, postgresBlobs, type Queryable } from "@drover/storage";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { claimDue, releaseClaims } from "../../packages/delivery/src/claim.ts";
import { fanOut } from "../../packages/delivery/src/fan-out.ts";
import { createOutcomeWriter } from "../../packages/delivery/src/outcome.ts";
import { manyCopies } from "../support/copies.ts";
import { startProxy } from "../support/proxy.ts";
import { verified } from "../support/receiver.ts";
import { createWorld, deliveriesOf, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterEach(() => world.cleanUp());
afterAll(() => world.close());

const never = new Promise<never>(() => {});

describe("between claim and outcome", () => {
  test("a worker that is cut off leaves a claim, and another one sends it: same id and body, one attempt on", async () => {
    const receiver = await world.receiver(() => never);
    const run = await world.endRun({ callbackUrl: receiver.url });
    const first = world.work();
    await receiver.waitFor(1);
    await first.close(0);
    expect(first.ends).toEqual([]);
    const [claimed] = await deliveriesOf(world, run);
    expect(claimed).toMatchObject({ status: "pending", attempts: [] });
    // Not due before the request could have ended.
    const { rows } = await world.pool.query(
      "SELECT attempt, next_at >= created_at + interval '30 seconds' AS held FROM deliveries",
    );
    expect(rows).toEqual([{ attempt: 1, held: true }]);

    receiver.reply(200);
    await world.passTime();
    await world.work().settled(1);
    const [lost, kept] = await receiver.waitFor(2);
    expect(kept!.headers["webhook-id"]).toBe(lost!.headers["webhook-id"]);
    expect(kept!.body).toBe(lost!.body);
    verified(kept!, await world.secretOf("default"));
    expect((await world.pool.query("SELECT attempt, status FROM deliveries")).rows).toEqual([
      { attempt: 2, status: "delivered" },
    ]);
    expect((await world.pool.query("SELECT attempt, status_code FROM delivery_attempts")).rows).toEqual([
      { attempt: 2, status_code: 200 },
    ]);
  });

  test("an outcome that is sent again, since its answer was waited for too long, is written once", async () => {
    const receiver = await world.receiver(() => never);
    const run = await world.endRun({ callbackUrl: receiver.url });
    const worker = world.work();
    await receiver.waitFor(1);
    await worker.close(0);
    const { rows } = await world.pool.query<{ id: string }>("SELECT id FROM deliveries WHERE run_id = $1", [run]);
    await manyCopies(world, "delivery_attempts", async (hasty) => {
      const write = createOutcomeWriter(hasty, new AbortController().signal);
      const attempt = { deliveryId: rows[0]!.id, attempt: 1, result: "retry" as const, pauseMs: 60_000 };
      const of = {
        statusCode: 500,
        error: "status 500",
        cause: "receiver_error" as const,
        durationMs: 5,
        recovered: null,
      };
      expect(await write({ ...attempt, ...of })).toBe("pending");
    });
    const [delivery] = await deliveriesOf(world, run);
    expect(delivery).toMatchObject({ status: "pending", attempts: [{ statusCode: 500 }] });
    expect((await world.pool.query("SELECT failures FROM deliveries")).rows).toEqual([{ failures: 1 }]);
  });

  test.each([
    ["failure", 500],
    ["success", 200],
    ["410", 410],
  ])("the late %s of a worker that was overtaken is not written", async (_what, late) => {
    const held = Promise.withResolvers<{ status: number }>();
    const receiver = await world.receiver((_request, n) => (n === 0 ? held.promise : { status: 503 }));
    const endpoint = await createEndpoint(world.pool, "default", { url: receiver.url });
    const run = await world.endRun();
    const slow = world.work();
    await receiver.waitFor(1);
    await world.passTime();
    const quick = world.work();
    expect(await quick.settled(1)).toEqual(["retry"]);
    const before = await deliveriesOf(world, run);
    held.resolve({ status: late });
    await slow.close();
    expect(slow.ends).toEqual([]);
    expect(await deliveriesOf(world, run)).toEqual(before);
    expect((await world.pool.query("SELECT enabled FROM endpoints WHERE id = $1", [endpoint.id])).rows).toEqual([
      { enabled: true },
    ]);
  });

  test("Postgres away between request and outcome: it is written once Postgres is back, and nothing is sent twice", async () => {
    const proxy = await startProxy(Number(new URL(world.url).port));
    const throughProxy = new URL(world.url);
    throughProxy.port = String(proxy.port);
    const pool = openPool({ url: throughProxy.href, logger: world.logger });
    const lost = Promise.withResolvers<void>();
    const query = pool.query.bind(pool) as (...args: unknown[]) => Promise<unknown>;
    const watched = async (...args: unknown[]) => {
      try {
        return await query(...args);
      } catch (error) {
        if (String(args[0]).includes("delivery_attempts")) lost.resolve();
        throw error;
      }
    };
    pool.query = watched as never;
    try {
      const held = Promise.withResolvers<{ status: number }>();
      const receiver = await world.receiver((_request, n) => (n === 0 ? held.promise : { status: 200 }));
      const run = await world.endRun({ callbackUrl: receiver.url });
      const worker = world.work({ pool, blobs: postgresBlobs(pool) });
      await receiver.waitFor(1);
      proxy.refuse(true);
      proxy.cut();
      held.resolve({ status: 200 });
      await lost.promise;
      expect(worker.ends).toEqual([]);
      proxy.refuse(false);
      expect(await worker.settled(1)).toEqual(["delivered"]);
      expect((await deliveriesOf(world, run))[0]).toMatchObject({
        status: "delivered",
        attempts: [{ statusCode: 200 }],
      });
      // And it goes on.
      await world.endRun({ callbackUrl: receiver.url });
      worker.nudge();
      expect(await worker.settled(2)).toEqual(["delivered", "delivered"]);
      await worker.close();
      expect(receiver.requests).toHaveLength(2);
    } finally {
      await pool.end();
      await proxy.close();
    }
  });

  test("Postgres away for a moment between claim and request: it is sent as soon as Postgres is back, by the same claim", async () => {
    const proxy = await startProxy(Number(new URL(world.url).port));
    const throughProxy = new URL(world.url);
    throughProxy.port = String(proxy.port);
    const pool = openPool({ url: throughProxy.href, logger: world.logger });
    const lost = Promise.withResolvers<void>();
    const query = pool.query.bind(pool) as (...args: unknown[]) => Promise<unknown>;
    const claimed = async () => (await world.pool.query("SELECT FROM deliveries WHERE attempt = 1")).rowCount;
    const watched = async (...args: unknown[]) => {
      const reads = /^SELECT [^;]* FROM runs\b/.test(String(args[0]));
      if (reads && proxy.connections > 0) {
        proxy.refuse(true);
        proxy.cut();
      }
      try {
        return await query(...args);
      } catch (error) {
        if (reads) lost.resolve();
        throw error;
      }
    };
    pool.query = watched as never;
    try {
      const receiver = await world.receiver();
      await world.endRun({ callbackUrl: receiver.url });
      const worker = world.work({ pool, blobs: postgresBlobs(pool) });
      await lost.promise;
      expect(await claimed()).toBe(1);
      expect(receiver.requests).toEqual([]);
      pool.query = query as never;
      proxy.refuse(false);
      expect(await worker.settled(1)).toEqual(["delivered"]);
      await worker.close();
      expect(await claimed()).toBe(1);
      expect(receiver.requests).toHaveLength(1);
    } finally {
      await pool.end();
      await proxy.close();
    }
  });

  test("a close waits for the request under way, writes its outcome, and claims nothing more", async () => {
    const held = Promise.withResolvers<{ status: number }>();
    const receiver = await world.receiver(() => held.promise);
    const run = await world.endRun({ callbackUrl: receiver.url });
    const worker = world.work();
    await receiver.waitFor(1);
    const closed = worker.close();
    await world.endRun({ callbackUrl: receiver.url });
    worker.nudge();
    held.resolve({ status: 200 });
    await closed;
    expect(worker.ends).toEqual(["delivered"]);
    expect((await deliveriesOf(world, run))[0]).toMatchObject({ status: "delivered" });
    expect(receiver.requests).toHaveLength(1);
  });

  test("an endpoint disabled while its request was under way: an arrival is still an arrival, a failure is no retry", async () => {
    for (const [status, expected] of [
      [200, "delivered"],
      [500, "disabled"],
    ] as const) {
      const held = Promise.withResolvers<{ status: number }>();
      const receiver = await world.receiver(() => held.promise);
      const endpoint = await createEndpoint(world.pool, "default", { url: receiver.url });
      const run = await world.endRun();
      const worker = world.work();
      await receiver.waitFor(1);
      await updateEndpoint(world.pool, "default", endpoint.id, { enabled: false });
      held.resolve({ status });
      expect(await worker.settled(1)).toEqual([expected]);
      await worker.close();
      expect((await deliveriesOf(world, run))[0]).toMatchObject({
        status: expected,
        nextAttemptAt: null,
        attempts: [{ statusCode: status }],
      });
    }
  });

  test("a redelivery is not touched by the request that was under way before it", async () => {
    const held = Promise.withResolvers<{ status: number }>();
    const receiver = await world.receiver((_request, n) => (n === 0 ? held.promise : { status: 200 }));
    const endpoint = await createEndpoint(world.pool, "default", { url: receiver.url });
    const run = await world.endRun();
    const slow = world.work();
    await receiver.waitFor(1);
    await updateEndpoint(world.pool, "default", endpoint.id, { enabled: false });
    await updateEndpoint(world.pool, "default", endpoint.id, { enabled: true });
    const [delivery] = await deliveriesOf(world, run);
    const slowClosed = slow.close();
    await redeliver(world.pool, "default", delivery!.id);
    held.resolve({ status: 500 });
    await slowClosed;
    expect(slow.ends).toEqual([]);
    expect(await world.work().settled(1)).toEqual(["delivered"]);
  });

  test("a delivery to an endpoint that was disabled after the fan-out is never sent", async () => {
    const receiver = await world.receiver();
    const endpoint = await createEndpoint(world.pool, "default", { url: receiver.url });
    const run = await world.endRun();
    await fanOut(world.pool, 10);
    // As if the disabling had not seen the delivery, which was not committed yet.
    await world.pool.query("UPDATE endpoints SET enabled = false WHERE id = $1", [endpoint.id]);
    world.work();
    await expect
      .poll(async () => (await deliveriesOf(world, run))[0], { timeout: 20_000 })
      .toMatchObject({ status: "disabled", attempts: [] });
    expect(receiver.requests).toEqual([]);
  });
});

describe("many at once", () => {
  test("a receiver that hangs with 1,000 deliveries due does not delay another tenant's, another endpoint's, or another callback's", async () => {
    await world.addTenant("second");
    const hanging = await world.receiver(() => never);
    const fine = await world.receiver();
    await world.cancelledRuns(1000, { callbackUrl: hanging.url });
    const worker = world.work({ concurrency: 20, perDestination: 4 });
    await hanging.waitFor(4);
    await createEndpoint(world.pool, "default", { url: `${fine.url}/endpoint`, events: ["query.completed"] });
    await world.endRun({ callbackUrl: `${fine.url}/callback` });
    await world.endRun({ callbackUrl: `${fine.url}/tenant`, tenant: "second" });
    worker.nudge();
    await fine.waitFor(3);
    await worker.settled(3);
    expect(worker.ends).toEqual(["delivered", "delivered", "delivered"]);
    expect(hanging.requests).toHaveLength(4);
    const { rows } = await world.pool.query("SELECT count(*) FROM deliveries WHERE attempt > 0 AND status = 'pending'");
    expect(rows[0].count).toBe(4);
  });

  test.each([
    ["has never seen the table", ""],
    ["believes that there is one destination, and all is due", "before"],
    ["believes that the table is empty: it looked before the backlog was committed", "within"],
    ["knows all", "after"],
  ])("what a claim reads of a backlog it cannot take from is bounded when the planner %s", async (_what, analyzed) => {
    const fill = (count: number, destinations: number, dueIn: string, db: Queryable = world.pool) =>
      db.query(
        `WITH m AS (
           INSERT INTO messages (id, tenant, type, fanned_out)
           SELECT gen_random_uuid(), 'default', 'endpoint.test', true FROM generate_series(1, $1) RETURNING id)
         INSERT INTO deliveries (id, tenant, message_id, type, url, destination, give_up_at, next_at, ripe)
         SELECT gen_random_uuid(), 'default', id, 'endpoint.test', 'http://127.0.0.1:1/',
           'default http://' || (row_number() OVER ()) % $2, now() + interval '3 days', now() + $3::interval, $3::interval <= '0' FROM m`,
        [count, destinations, dueIn],
      );
    const look = (when: string) =>
      when === analyzed && world.pool.query("VACUUM ANALYZE messages, deliveries, endpoints, tenants");
    const [filler, client] = [await world.pool.connect(), await world.pool.connect()];
    try {
      await filler.query("BEGIN");
      await fill(20_000, 1, "-1 s", filler);
      await look("within");
      await filler.query("COMMIT");
      await look("before");
      await fill(300, 300, "0 s");
      await fill(20_000, 5000, "1 h");
      await look("after");
      // What this connection did in an earlier test is not counted to it.
      await client.query("SELECT pg_stat_force_next_flush()");
      await client.query("BEGIN");
      await client.query("SET LOCAL statement_timeout = '20 s'");
      const limits = { most: 20, perDestination: 4, rooms: new Map(), failing: new Set<string>(), mostFailing: 10 };
      expect((await claimDue(client, limits, 30_000)).claimed).toHaveLength(20);
      const { rows } = await client.query(
        "SELECT seq_tup_read + idx_tup_fetch AS n FROM pg_stat_xact_user_tables WHERE relname = 'deliveries'",
      );
      expect(rows[0].n).toBeGreaterThan(300);
      // With statistics as wrong as that, bitmaps look as cheap as the index itself: the backlog is read, but not once for each of its rows.
      expect(rows[0].n).toBeLessThan(analyzed === "within" ? 200_000 : 3000);
    } finally {
      await client.query("ROLLBACK");
      for (const used of [filler, client]) used.release();
    }
  });

  test("what a dead worker was trying is free at once, and nothing else", async () => {
    const [dead, living] = [uuidv7(), uuidv7()];
    const limits = { most: 1, perDestination: 4, rooms: new Map(), failing: new Set<string>(), mostFailing: 10 };
    await world.cancelledRuns(3, { callbackUrl: "http://127.0.0.1:1/" });
    await fanOut(world.pool, 500);
    const first = (await claimDue(world.pool, limits, 60_000, dead)).claimed[0]!;
    await claimDue(world.pool, limits, 60_000, living);
    expect(await releaseClaims(world.pool, [dead])).toBe(1);
    const again = async () => (await claimDue(world.pool, { ...limits, most: 3 }, 60_000, living)).claimed;
    const ids = new Set<string>();
    await expect
      .poll(async () => {
        for (const { id } of await again()) ids.add(id);
        return ids.size;
      })
      .toBe(2);
    expect(ids).toContain(first.id);
    expect(await releaseClaims(world.pool, [dead])).toBe(0);
  });

  test("a backlog of one tenant at a shared host does not delay another tenant's callback to the same host", async () => {
    await world.addTenant("third");
    const receiver = await world.receiver((request) => (request.path === "/slow" ? never : { status: 200 }));
    await world.cancelledRuns(100, { callbackUrl: `${receiver.url}/slow` });
    const worker = world.work({ concurrency: 20, perDestination: 4 });
    await receiver.waitFor(4);
    await world.endRun({ callbackUrl: `${receiver.url}/quick`, tenant: "third" });
    worker.nudge();
    expect(await worker.settled(1)).toEqual(["delivered"]);
    expect(receiver.requests).toHaveLength(5);
  });

  test("a destination that fails gets one request at a time until one succeeds", async () => {
    let answer = Promise.withResolvers<{ status: number }>();
    const failing = await world.receiver((_request, n) => (n < 4 ? { status: 500 } : answer.promise));
    const fine = await world.receiver();
    await world.cancelledRuns(40, { callbackUrl: failing.url });
    const worker = world.work({ concurrency: 20, perDestination: 4 });
    // Four failed; of those still due one is under way. A pass made for somebody else starts no second one.
    await failing.waitFor(5);
    await world.endRun({ callbackUrl: fine.url });
    worker.nudge();
    await fine.waitFor(1);
    await worker.settled(5);
    expect(failing.requests).toHaveLength(5);

    const first = answer;
    answer = Promise.withResolvers();
    first.resolve({ status: 200 });
    // Healthy again: four at once.
    await failing.waitFor(9);
    await world.endRun({ callbackUrl: fine.url });
    worker.nudge();
    await worker.settled(7);
    expect(failing.requests).toHaveLength(9);
    answer.resolve({ status: 200 });
    await worker.settled(42);
  });

  test("however many destinations hang, once they have failed half of the places are for the others", async () => {
    let hang = false;
    const dead = await Promise.all(
      Array.from({ length: 30 }, () => world.receiver(() => (hang ? never : { status: 500 }))),
    );
    const fine = await world.receiver();
    for (const { url } of dead) await world.cancelledRuns(1, { callbackUrl: url });
    const worker = world.work({ concurrency: 20, perDestination: 4 });
    // Every one of them has failed; on a slow machine some a second time.
    const untried = () =>
      world.pool.query("SELECT FROM deliveries WHERE failures = 0").then(({ rowCount }) => rowCount);
    await expect.poll(untried, { timeout: 20_000 }).toBe(0);
    const deliverToFine = async (count: number) => {
      await world.endRun({ callbackUrl: fine.url });
      worker.nudge();
      await fine.waitFor(count);
    };
    // What is written down is known to the worker a moment later, and to the claim after the one that is under way.
    await deliverToFine(1);
    await worker.settled(31);
    await deliverToFine(2);
    hang = true;
    const before = dead.reduce((sum, { requests }) => sum + requests.length, 0);
    const held = () => dead.reduce((sum, { requests }) => sum + requests.length, 0) - before;
    await world.passTime();
    worker.nudge();
    await expect.poll(held, { timeout: 10_000 }).toBe(10);
    await deliverToFine(3);
    expect(held()).toBe(10);
  });

  test("five workers deliver 300 messages to 30 destinations, each once", async () => {
    const receiver = await world.receiver();
    const endpoints = Array.from({ length: 30 }, (_, n) =>
      createEndpoint(world.pool, "default", { url: `${receiver.url}/${n}` }),
    );
    await Promise.all(endpoints);
    await world.cancelledRuns(10);
    const workers = Array.from({ length: 5 }, () => world.work({ concurrency: 10, perDestination: 2 }));
    await receiver.waitFor(300);
    for (const worker of workers) await worker.close();
    const seen = receiver.requests.map((request) => `${request.path} ${request.headers["webhook-id"]}`);
    expect(new Set(seen).size).toBe(300);
    expect(receiver.requests).toHaveLength(300);
    const { rows } = await world.pool.query(
      "SELECT status, max(attempt) AS attempt, count(*) AS n FROM deliveries GROUP BY status",
    );
    expect(rows).toEqual([{ status: "delivered", attempt: 1, n: 300 }]);
    expect(workers.flatMap((worker) => worker.ends)).toEqual(Array(300).fill("delivered"));
  });

  test("a ring from another process wakes a worker; after the close nobody is subscribed", async () => {
    const receiver = await world.receiver();
    const rings = new Set<() => void>();
    const worker = world.work({
      onRing: (ring) => {
        rings.add(ring);
        return () => rings.delete(ring);
      },
    });
    await world.endRun({ callbackUrl: receiver.url });
    expect(rings.size).toBe(1);
    for (const ring of rings) ring();
    await worker.settled(1);
    await worker.close();
    expect(rings.size).toBe(0);
  });

  test("nobody says anything: it is found all the same", async () => {
    const receiver = await world.receiver();
    const worker = world.work();
    await world.endRun({ callbackUrl: receiver.url });
    await worker.settled(1);
    expect(receiver.requests).toHaveLength(1);
  });
});
