/**
 * Processes that die or stop before, during and after the HTTP request of a delivery: the receiver gets it all the same, always with the same
 * id, a fresh timestamp and a signature that the standardwebhooks library accepts.
 */
import { createEndpoint } from "@drover/delivery";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { createWorld, deliveriesOf, type World } from "../delivery/world.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";
import { type ReceivedWebhook, verified } from "../support/receiver.ts";

const entry = new URL("./delivery-process.ts", import.meta.url);
const patience = { timeout: 25_000, interval: 25 };
const inFull = process.env.DROVER_CHAOS === "full";
vi.setConfig({ testTimeout: inFull ? 120_000 : 60_000 });

let world: World;
const processes: SpawnedNode[] = [];
beforeAll(async () => {
  world = await createWorld();
});
afterEach(async () => {
  await Promise.all(processes.splice(0).map((started) => started.kill("SIGKILL")));
  await world.cleanUp();
});
afterAll(() => world.close());

async function start(env: Record<string, string> = {}): Promise<SpawnedNode> {
  const started = spawnNode(entry, { env: { DATABASE_URL: world.url, ...env } });
  processes.push(started);
  await started.waitForLine("ready");
  return started;
}

/**
 * Lets a dead process's claim run out: half a minute, which passes by itself in a full run and else by moving the row. Not before the clock
 * shows another second than when the claim was made, so that a timestamp that was kept would show.
 */
async function claimRunsOut(runId: string): Promise<void> {
  const claimed = async () => {
    const { rows } = await world.pool.query(
      `SELECT attempt, next_at > now() AS held, next_at - interval '29 seconds' < clock_timestamp() AS aged
       FROM deliveries WHERE run_id = $1`,
      [runId],
    );
    return rows[0];
  };
  await expect.poll(claimed, patience).toEqual({ attempt: 1, held: true, aged: true });
  if (!inFull) await world.passTime();
}

const attempts = async () =>
  (await world.pool.query("SELECT attempt, status_code FROM delivery_attempts ORDER BY attempt")).rows;

/** All of one message: one id and body, each with a signature that is right and a time of its own. */
function expectSameMessage(requests: ReceivedWebhook[], secret: string): void {
  for (const request of requests) {
    verified(request, secret);
    expect(request.headers["webhook-id"]).toBe(requests[0]!.headers["webhook-id"]);
    expect(request.body).toBe(requests[0]!.body);
  }
  const times = requests.map((request) => Number(request.headers["webhook-timestamp"]));
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(new Set(times).size).toBe(times.length);
}

test("killed after the claim, before the request: another process sends it", async () => {
  const receiver = await world.receiver();
  const run = await world.endRun({ callbackUrl: receiver.url });
  const victim = await start({ KILL: "before" });
  expect((await victim.exited).signal).toBe("SIGKILL");
  expect(receiver.requests).toEqual([]);
  const successor = await start();
  await claimRunsOut(run);
  await successor.waitForLine("written: delivered");
  expect(receiver.requests).toHaveLength(1);
  expectSameMessage(receiver.requests, await world.secretOf("default"));
  expect(await attempts()).toEqual([{ attempt: 2, status_code: 200 }]);
});

test("killed while the receiver thinks: it comes again", async () => {
  const never = new Promise<never>(() => {});
  const receiver = await world.receiver((_request, n) => (n === 0 ? never : { status: 200 }));
  const run = await world.endRun({ callbackUrl: receiver.url });
  const victim = await start();
  await receiver.waitFor(1);
  await victim.kill("SIGKILL");
  const successor = await start();
  await claimRunsOut(run);
  await successor.waitForLine("written: delivered");
  expect(receiver.requests).toHaveLength(2);
  expectSameMessage(receiver.requests, await world.secretOf("default"));
  expect(await attempts()).toEqual([{ attempt: 2, status_code: 200 }]);
});

test("killed after the answer, before it was written down: it comes twice, as the same message", async () => {
  const receiver = await world.receiver();
  const endpoint = await createEndpoint(world.pool, "default", { url: receiver.url });
  const run = await world.endRun();
  const victim = await start({ KILL: "after" });
  expect((await victim.exited).signal).toBe("SIGKILL");
  expect(receiver.requests).toHaveLength(1);
  expect((await deliveriesOf(world, run))[0]).toMatchObject({ status: "pending", attempts: [] });
  const successor = await start();
  await claimRunsOut(run);
  await successor.waitForLine("written: delivered");
  expect(receiver.requests).toHaveLength(2);
  expectSameMessage(receiver.requests, endpoint.secret);
  expect(await attempts()).toEqual([{ attempt: 2, status_code: 200 }]);
});

test.each([
  ["failure", 500, 200, "delivered"],
  ["success", 200, 500, "pending"],
])(
  "stopped in the middle of a request and going on late: its %s does not overwrite the newer attempt's outcome",
  async (_what, late, newer, status) => {
    const held = Promise.withResolvers<{ status: number }>();
    const receiver = await world.receiver((_request, n) => (n === 0 ? held.promise : { status: newer }));
    const run = await world.endRun({ callbackUrl: receiver.url });
    const stopped = await start();
    await receiver.waitFor(1);
    process.kill(stopped.pid, "SIGSTOP");
    const successor = await start();
    await claimRunsOut(run);
    await successor.waitForLine(newer === 200 ? "written: delivered" : "written: retry");
    const before = await deliveriesOf(world, run);
    held.resolve({ status: late });
    process.kill(stopped.pid, "SIGCONT");
    await stopped.waitForLine("came too late");
    expect(await deliveriesOf(world, run)).toEqual(before);
    expect(before[0]).toMatchObject({ status });
    expect(await attempts()).toEqual([{ attempt: 2, status_code: newer }]);
    expectSameMessage(receiver.requests, await world.secretOf("default"));
  },
);
