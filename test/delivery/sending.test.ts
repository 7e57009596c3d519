import { createEndpoint, readEndpoint, rotateDefaultSecret, rotateEndpointSecret } from "@drover/delivery";
import { createEgress } from "@drover/egress";
import { toWireId } from "@drover/protocol";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { fanOut } from "../../packages/delivery/src/fan-out.ts";
import { closeBatches } from "../../packages/runs/src/moves/batch.ts";
import { freePort } from "../support/ports.ts";
import { verified } from "../support/receiver.ts";
import { createWorld, deliveriesOf, type World } from "./world.ts";

let world: World;
beforeAll(async () => {
  world = await createWorld();
});
afterEach(() => world.cleanUp());
afterAll(() => world.close());

/** Ms between the end of the last try of the run's only delivery and its next one. */
async function pauseOf(runId: string): Promise<number> {
  const { rows } = await world.pool.query(
    `SELECT (extract(epoch FROM d.next_at - a.at) * 1000)::float8 - a.duration_ms AS ms
     FROM deliveries d JOIN delivery_attempts a ON a.delivery_id = d.id AND a.attempt = d.attempt WHERE d.run_id = $1`,
    [runId],
  );
  return rows[0].ms;
}
/** For `expect.poll`: long enough never to matter. */
const patient = { timeout: 20_000 };
const seconds = (n: number) => n * 1000;
const minutes = (n: number) => n * 60_000;

describe("the receiver fails", () => {
  test("it is down, then up: the same id and body, a fresh signature, and everything in the log", async () => {
    const port = await freePort();
    const run = await world.endRun({ callbackUrl: `http://127.0.0.1:${port}/hook` });
    const worker = world.work();
    expect(await worker.settled(1)).toEqual(["retry"]);
    const [down] = await deliveriesOf(world, run);
    expect(down).toMatchObject({
      status: "pending",
      attempts: [{ statusCode: null, error: expect.stringContaining("ECONNREFUSED") }],
    });
    expect(await pauseOf(run)).toBeGreaterThan(seconds(3.9));
    expect(await pauseOf(run)).toBeLessThan(seconds(6.1));

    const receiver = await world.receiver(500);
    await world.pool.query("UPDATE deliveries SET url = $1", [`${receiver.url}/hook`]);
    await world.passTime();
    worker.nudge();
    expect(await worker.settled(2)).toEqual(["retry", "retry"]);
    expect(await pauseOf(run)).toBeGreaterThan(minutes(3.9));
    expect(await pauseOf(run)).toBeLessThan(minutes(6.1));

    receiver.reply(204);
    await world.passTime();
    worker.nudge();
    expect(await worker.settled(3)).toEqual(["retry", "retry", "delivered"]);
    const [first, second] = await receiver.waitFor(2);
    expect(second!.body).toBe(first!.body);
    expect(second!.headers["webhook-id"]).toBe(first!.headers["webhook-id"]);
    const [record] = await deliveriesOf(world, run);
    expect(record).toMatchObject({
      status: "delivered",
      nextAttemptAt: null,
      attempts: [
        { statusCode: null, error: expect.stringContaining("ECONNREFUSED") },
        { statusCode: 500, error: "answered 500" },
        { statusCode: 204, error: null },
      ],
    });
    expect(record!.attempts.every((tried) => tried.durationMs >= 0 && tried.at instanceof Date)).toBe(true);
  });

  test("a body that it finds too large is sent again at once without what is large", async () => {
    const receiver = await world.receiver((request) => ({ status: request.body.length > 20_000 ? 413 : 204 }));
    const run = await world.endRun({ callbackUrl: receiver.url, output: "x".repeat(150_000) });
    const worker = world.work({ publicUrl: "https://drover.example.com" });
    expect(await worker.settled(1)).toEqual(["delivered"]);
    const [whole, thin] = receiver.requests;
    expect(thin!.headers["webhook-id"]).toBe(whole!.headers["webhook-id"]);
    const [record] = await deliveriesOf(world, run);
    expect(record).toMatchObject({ status: "delivered", attempts: [{ statusCode: 204 }] });
    const { data } = JSON.parse(thin!.body);
    expect(data).toMatchObject({
      status: "completed",
      thin: true,
      result: { output: null, cost_usd: 0.0021 },
      result_url: `https://drover.example.com/query/result/${data.task_id}`,
    });
    // Where nothing can be left out it is a failure like others.
    const never = await world.receiver(413);
    await world.endRun({ callbackUrl: never.url });
    worker.nudge();
    expect((await worker.settled(2)).at(-1)).toBe("retry");
  });

  test("after three days it is given up, and the last try falls on their end", async () => {
    const receiver = await world.receiver(503);
    const run = await world.endRun({ callbackUrl: receiver.url });
    const worker = world.work();
    await worker.settled(1);
    const span = await world.pool.query(
      "SELECT extract(epoch FROM give_up_at - created_at)::int AS seconds FROM deliveries WHERE run_id = $1",
      [run],
    );
    expect(span.rows[0].seconds).toBe(3 * 24 * 3600);
    // Late in the third day the next pause would be a day.
    await world.pool.query("UPDATE deliveries SET failures = 8, give_up_at = now() + interval '1 hour'");
    await world.passTime();
    worker.nudge();
    await worker.settled(2);
    const { rows } = await world.pool.query("SELECT next_at = give_up_at AS last FROM deliveries WHERE run_id = $1", [
      run,
    ]);
    expect(rows[0].last).toBe(true);
    await world.pool.query("UPDATE deliveries SET give_up_at = now() - interval '1 ms'");
    await world.passTime();
    worker.nudge();
    expect(await worker.settled(3)).toEqual(["retry", "retry", "failed"]);
    expect((await deliveriesOf(world, run))[0]).toMatchObject({ status: "failed", nextAttemptAt: null });
    expect(receiver.requests).toHaveLength(3);
  });

  test("Retry-After is kept as seconds and as a date, never below our own pause, never past the three days", async () => {
    const asked = ["600", new Date(Date.now() + minutes(20)).toUTCString(), "1", "99999999999", "soon"];
    const receiver = await world.receiver((request) => ({
      status: 429,
      headers: { "retry-after": asked[Number(request.path.slice(1))]! },
    }));
    const runs: string[] = [];
    for (const n of asked.keys()) runs.push(await world.endRun({ callbackUrl: `${receiver.url}/${n}` }));
    await world.work().settled(asked.length);
    const pauses = await Promise.all(runs.map(pauseOf));
    expect(pauses[0]).toBeGreaterThan(minutes(9.9));
    expect(pauses[0]).toBeLessThan(minutes(10.1));
    expect(pauses[1]).toBeGreaterThan(minutes(18));
    expect(pauses[1]).toBeLessThan(minutes(20.1));
    expect(pauses[2]).toBeGreaterThan(seconds(3.9));
    expect(pauses[3]).toBeGreaterThan(minutes(3 * 24 * 60 - 2));
    expect(pauses[3]).toBeLessThan(minutes(3 * 24 * 60) + 1);
    expect(pauses[4]).toBeLessThan(seconds(7));
  });

  test("a redirect is a failure that says so; where it points is neither visited nor written down", async () => {
    const elsewhere = await world.receiver();
    const receiver = await world.receiver({ status: 307, headers: { location: `${elsewhere.url}/?token=secret` } });
    const run = await world.endRun({ callbackUrl: receiver.url });
    expect(await world.work().settled(1)).toEqual(["retry"]);
    expect((await deliveriesOf(world, run))[0]!.attempts).toMatchObject([
      { statusCode: 307, error: "answered 307: redirects are not followed" },
    ]);
    expect(elsewhere.requests).toEqual([]);
  });

  test("the socket is closed without an answer", async () => {
    const receiver = await world.receiver("cut");
    const run = await world.endRun({ callbackUrl: `${receiver.url}/path?token=secret` });
    expect(await world.work().settled(1)).toEqual(["retry"]);
    const [tried] = (await deliveriesOf(world, run))[0]!.attempts;
    expect(tried).toMatchObject({ statusCode: null, error: expect.stringContaining("closed") });
    expect(tried!.error).not.toContain("secret");
  });

  test("the deadline counts the whole answer: 200 and a body without end is not an acceptance", async () => {
    const receiver = await world.receiver("drip");
    const run = await world.endRun({ callbackUrl: receiver.url });
    expect(await world.work({ timeoutMs: 150 }).settled(1)).toEqual(["retry"]);
    expect((await deliveriesOf(world, run))[0]!.attempts).toMatchObject([
      { statusCode: null, error: expect.stringContaining("150 ms") },
    ]);
  });

  test("a flood of an answer is cut after 64 kB and accepted", async () => {
    const receiver = await world.receiver("flood");
    await world.endRun({ callbackUrl: receiver.url });
    expect(await world.work().settled(1)).toEqual(["delivered"]);
    // What the kernel's buffers take beside.
    expect(receiver.flooded).toBeLessThan(16_000_000);
  });

  test("a private address is refused at connect time, said so, and tried again", async () => {
    const receiver = await world.receiver();
    const guarded = createEgress();
    try {
      const run = await world.endRun({ callbackUrl: `${receiver.url}/hook?token=secret` });
      expect(await world.work({ egress: guarded }).settled(1)).toEqual(["retry"]);
      const [record] = await deliveriesOf(world, run);
      expect(record).toMatchObject({
        status: "pending",
        attempts: [{ statusCode: null, error: expect.stringContaining("refused") }],
      });
      expect(record!.attempts[0]!.error).not.toContain("secret");
      expect(receiver.requests).toEqual([]);
    } finally {
      await guarded.close();
    }
  });

  test("410 disables an endpoint with its reason, and everything it is owed", async () => {
    const receiver = await world.receiver(410);
    const endpoint = await createEndpoint(world.pool, "default", { url: receiver.url });
    const fine = await world.receiver();
    await createEndpoint(world.pool, "default", { url: fine.url });
    await world.cancelledRuns(30);
    const worker = world.work({ perDestination: 1 });
    // The others hear of it too.
    await fine.waitFor(31);
    await expect
      .poll(() => readEndpoint(world.pool, "default", endpoint.id), patient)
      .toMatchObject({
        enabled: false,
        disabledReason: "answered 410: gone for good",
      });
    await expect
      .poll(
        async () =>
          (await world.pool.query("SELECT DISTINCT status FROM deliveries WHERE endpoint_id = $1", [endpoint.id])).rows,
        patient,
      )
      .toEqual([{ status: "disabled" }]);
    const run = await world.endRun();
    worker.nudge();
    await fine.waitFor(32);
    expect((await deliveriesOf(world, run)).map((record) => record.url)).toEqual([fine.url]);
    expect(receiver.requests).toHaveLength(1);
  });

  test("410 to a callback ends that delivery only", async () => {
    const receiver = await world.receiver((request) => ({ status: request.path === "/gone" ? 410 : 200 }));
    const gone = await world.endRun({ callbackUrl: `${receiver.url}/gone` });
    const worker = world.work();
    expect(await worker.settled(1)).toEqual(["disabled"]);
    const other = await world.endRun({ callbackUrl: `${receiver.url}/here` });
    worker.nudge();
    expect(await worker.settled(2)).toEqual(["disabled", "delivered"]);
    expect((await deliveriesOf(world, gone))[0]).toMatchObject({ status: "disabled", attempts: [{ statusCode: 410 }] });
    expect((await deliveriesOf(world, other))[0]).toMatchObject({ status: "delivered" });
  });
});

describe("what is sent", () => {
  test("a run: Standard Webhooks, signed with the tenant's secret", async () => {
    const receiver = await world.receiver();
    const run = await world.endRun({
      callbackUrl: `${receiver.url}/hook?a=1`,
      userId: "u1",
      metadata: { project: "apollo" },
      output: "17 * 23 = 391",
    });
    world.work();
    const [request] = await receiver.waitFor(1);
    const message = verified(request!, await world.secretOf("default"));
    const { rows } = await world.pool.query("SELECT id, created_at FROM messages WHERE run_id = $1", [run]);
    expect(request).toMatchObject({
      method: "POST",
      path: "/hook?a=1",
      headers: {
        "content-type": "application/json",
        "user-agent": "Drover",
        "webhook-id": toWireId("event", rows[0].id),
      },
    });
    expect(message).toEqual({
      type: "query.completed",
      timestamp: rows[0].created_at.toISOString(),
      data: {
        task_id: toWireId("run", run),
        kind: "query",
        status: "completed",
        agent: "default",
        user_id: "u1",
        result: {
          task_id: toWireId("run", run),
          status: "success",
          output: "17 * 23 = 391",
          stop_reason: null,
          cost_usd: 0.0021,
          tokens_used: { input: 120, output: 30, cached: 20, total: 150 },
          iterations: 1,
          duration_seconds: expect.any(Number),
          tools_called: [],
          metadata: { project: "apollo" },
        },
        cost_usd: 0.0021,
        tokens_used: { input: 120, output: 30, cached: 20, total: 150 },
        metadata: { project: "apollo" },
        created_at: expect.any(String),
        started_at: expect.any(String),
        finished_at: expect.any(String),
      },
    });
  });

  test("a failed run says why, and what it had", async () => {
    const receiver = await world.receiver();
    await world.endRun({ callbackUrl: receiver.url, status: "failed", output: "So far" });
    world.work();
    const [request] = await receiver.waitFor(1);
    expect(verified(request!, await world.secretOf("default"))).toMatchObject({
      type: "query.failed",
      data: {
        status: "failed",
        stop_reason: "model_error",
        error: { code: "model_error", message: expect.any(String) },
        result: { status: "error", output: "So far" },
      },
    });
  });

  test("a batch: its counts and its cost", async () => {
    const receiver = await world.receiver();
    const batchId = await world.addBatch(3, { callbackUrl: receiver.url });
    await world.endRun({ batchId, batchIndex: 0 });
    await world.endRun({ batchId, batchIndex: 1 });
    await world.endRun({ batchId, batchIndex: 2, status: "failed" });
    await closeBatches(world.pool, [batchId]);
    world.work();
    const [request] = await receiver.waitFor(1);
    expect(verified(request!, await world.secretOf("default"))).toMatchObject({
      type: "batch.completed",
      data: {
        batch_id: toWireId("batch", batchId),
        status: "completed",
        counts: { queued: 0, running: 0, waiting: 0, completed: 2, partial: 0, failed: 1, cancelled: 0 },
        completed_count: 3,
        total: 3,
        total_cost_usd: 0.0063,
        finished_at: expect.any(String),
      },
    });
  });

  test("while a secret is rotated out both are valid, afterwards the new one alone; for endpoints and callbacks alike", async () => {
    const receiver = await world.receiver();
    const endpoint = await createEndpoint(world.pool, "default", { url: `${receiver.url}/endpoint` });
    const before = { endpoint: endpoint.secret, callback: await world.secretOf("default") };
    const after = {
      endpoint: (await rotateEndpointSecret(world.pool, "default", endpoint.id))!.secret,
      callback: (await rotateDefaultSecret(world.pool, "default"))!.secret,
    };
    const worker = world.work();
    await world.endRun({ callbackUrl: `${receiver.url}/callback` });
    worker.nudge();
    for (const request of await receiver.waitFor(2)) {
      const whose = request.path.slice(1) as "endpoint" | "callback";
      const other = whose === "endpoint" ? "callback" : "endpoint";
      expect(request.headers["webhook-signature"]!.split(" ")).toHaveLength(2);
      verified(request, before[whose]);
      verified(request, after[whose]);
      expect(() => verified(request, after[other])).toThrow();
    }

    await world.pool.query("UPDATE endpoints SET old_secret_until = now()");
    await world.pool.query("UPDATE tenants SET old_webhook_secret_until = now()");
    await world.endRun({ callbackUrl: `${receiver.url}/callback` });
    worker.nudge();
    for (const request of (await receiver.waitFor(4)).slice(2)) {
      const whose = request.path.slice(1) as "endpoint" | "callback";
      verified(request, after[whose]);
      expect(() => verified(request, before[whose])).toThrow();
    }
  });

  test("a message whose content is missing is tried again, and does not hold up others", async () => {
    const receiver = await world.receiver();
    const broken = await world.endRun({ callbackUrl: receiver.url });
    await world.pool.query(
      `UPDATE run_events SET data = '{"$blob":"missing","bytes":1}' WHERE run_id = $1 AND seq = 1`,
      [broken],
    );
    const fine = await world.endRun({ callbackUrl: receiver.url });
    const worker = world.work();
    expect((await worker.settled(2)).sort()).toEqual(["delivered", "retry"]);
    expect((await deliveriesOf(world, broken))[0]).toMatchObject({
      status: "pending",
      attempts: [{ statusCode: null, error: "the message could not be built (internal error)" }],
    });
    expect((await deliveriesOf(world, fine))[0]).toMatchObject({ status: "delivered" });
  });

  test("a message about a run that is no more is given up at once", async () => {
    const receiver = await world.receiver();
    const run = await world.endRun({ callbackUrl: receiver.url });
    await fanOut(world.pool, 10);
    await world.pool.query("DELETE FROM run_events WHERE run_id = $1", [run]);
    await world.pool.query("DELETE FROM runs WHERE id = $1", [run]);
    expect(await world.work().settled(1)).toEqual(["failed"]);
    expect(receiver.requests).toEqual([]);
  });
});
