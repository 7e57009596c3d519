/** What receivers hear of a run that waits: what was asked then, however the run stands by now, in the same bytes every time. */
import { createEndpoint, updateEndpoint } from "@drover/delivery";
import type { ApprovalRequest, EventData } from "@drover/harness";
import { toWireId, uuidv7 } from "@drover/protocol";
import { decideApproval, readApproval, readLinked } from "@drover/runs";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { createLogWriter } from "../../packages/runs/src/log/append.ts";
import { insertRuns } from "../../packages/runs/src/moves/create.ts";
import { leaveRuns } from "../../packages/runs/src/moves/leave.ts";
import { parkRun } from "../../packages/runs/src/moves/park.ts";
import { claimRuns } from "../support/claim.ts";
import { type Receiver, verified } from "../support/receiver.ts";
import { createWorld, newRun, type RunSpec, runInput, type World } from "./world.ts";

const publicUrl = "https://drover.example.com";
const workerId = uuidv7();
let world: World;
beforeAll(async () => {
  world = await createWorld();
  await world.pool.query("INSERT INTO workers (id, host, pid, slots, lease_ms) VALUES ($1, 'test', 1, 10, 3600000)", [
    workerId,
  ]);
});
afterEach(() => world.cleanUp());
afterAll(() => world.close());

type Asked = Pick<ApprovalRequest, "tool_name" | "input" | "subject">;
const mail: Asked = { subject: "call", tool_name: "send_mail", input: { to: "ann@example.com" } };

/** Claims a queued run, asks, and parks it. */
async function park(
  id: string,
  questions: Asked[],
  level?: "actions",
): Promise<{ approvals: ApprovalRequest[]; epoch: number }> {
  const [claimed] = await claimRuns(world.pool, workerId, [id]);
  const { epoch, tenant } = claimed!;
  const write = createLogWriter(world.pool, world.blobs, new AbortController().signal);
  const approvals = questions.map(
    (asked): ApprovalRequest => ({
      ...asked,
      approval_id: toWireId("approval", uuidv7()),
      reason: "It cannot be undone.",
      hash: "0".repeat(64),
      expires_at: new Date(Date.now() + 60_000).toISOString(),
      on_expiry: "reject",
    }),
  );
  for (const data of approvals) await write({ runId: id, epoch, tenant, event: { type: "approval.requested", data } });
  const waitingFor = level ? "budget" : "approval";
  const data: EventData["run.waiting"] = level
    ? { waiting_for: "budget", level }
    : { waiting_for: "approval", approvals };
  const parked = await parkRun(world.pool, {
    runId: id,
    epoch,
    eventId: uuidv7(),
    waitingFor,
    level: level ?? null,
    raises: 0,
    data: JSON.stringify(data),
    cancelledData: "{}",
  });
  expect(parked!.status).toBe("waiting");
  return { approvals, epoch };
}

async function submit(spec: RunSpec, input: object = {}): Promise<string> {
  const run = { ...newRun(spec), data: JSON.stringify({ ...runInput, ...input }) };
  await insertRuns(world.pool, [run]);
  return run.id;
}

/** The messages of these requests, their signatures verified. */
async function bodies(receiver: Receiver, count: number, secret: string) {
  const requests = await receiver.waitFor(count);
  // biome-ignore lint/suspicious/noExplicitAny: as it came.
  return requests.map((request) => verified(request, secret) as any);
}

test("an endpoint hears what is asked, with a link for each question", async () => {
  const receiver = await world.receiver();
  const { secret } = await createEndpoint(world.pool, "default", { url: receiver.url, mayDecide: true });
  const id = await submit({ userId: "u-1", metadata: { order: "42" } });
  const { approvals } = await park(id, [mail, { ...mail, subject: "uncertain", input: 7 }]);
  world.work({ publicUrl });
  const [body] = await bodies(receiver, 1, secret);
  expect(body).toEqual({
    type: "query.waiting",
    timestamp: expect.any(String),
    data: {
      task_id: toWireId("run", id),
      status: "waiting",
      waiting_for: "approval",
      approvals: approvals.map(({ approval_id, subject, tool_name, input, reason, expires_at, on_expiry }) => ({
        id: approval_id,
        hash: "0".repeat(64),
        subject,
        tool_name,
        input,
        reason,
        expires_at,
        on_expiry,
        link: expect.stringMatching(/^https:\/\/drover\.example\.com\/approvals\/link\/[\w-]{64}$/),
      })),
      agent: "default",
      kind: "query",
      user_id: "u-1",
      metadata: { order: "42" },
      created_at: expect.any(String),
      waiting_since: expect.any(String),
    },
  });
  for (const [at, { link }] of body.data.approvals.entries()) {
    const opened = await readLinked(world.pool, link.split("/").at(-1));
    expect(toWireId("approval", opened!.approval.id)).toBe(approvals[at]!.approval_id);
  }
});

test("every try sends the same bytes, also when the run has gone on and ended", async () => {
  const receiver = await world.receiver(500);
  await createEndpoint(world.pool, "default", { url: receiver.url, events: ["query.waiting"] });
  const id = await submit({});
  const { approvals } = await park(id, [mail]);
  const worker = world.work({ publicUrl });
  await worker.settled(1);

  const { rows } = await world.pool.query("SELECT id FROM approvals WHERE run_id = $1", [id]);
  const asked = (await readApproval(world.pool, "default", rows[0].id))!;
  await decideApproval(world.pool, world.blobs, asked, { decision: "approve", by: "test" });
  const [claimed] = await claimRuns(world.pool, workerId, [id]);
  const end = { runId: id, epoch: claimed!.epoch, eventId: uuidv7(), status: "completed", stopReason: null } as const;
  const data = JSON.stringify({ output: "done", stop_reason: null, error: null });
  await leaveRuns(world.pool, [
    { ...end, eventType: "run.completed", data, cancelledData: "{}", delayMs: 0, attempt: null },
  ]);

  receiver.reply(200);
  await world.passTime();
  worker.nudge();
  await worker.settled(2);
  const [first, second] = await receiver.waitFor(2);
  expect(second!.body).toBe(first!.body);
  expect(second!.body).toContain(approvals[0]!.approval_id);
  expect(second!.headers["webhook-id"]).toBe(first!.headers["webhook-id"]);
});

test("each wait is a message of its own", async () => {
  const receiver = await world.receiver();
  const { secret } = await createEndpoint(world.pool, "default", { url: receiver.url, mayDecide: true });
  const id = await submit({});
  const asked: string[] = [];
  for (let n = 0; n < 2; n++) {
    const { approvals } = await park(id, [{ ...mail, input: n }]);
    asked.push(approvals[0]!.approval_id);
    const { rows } = await world.pool.query("SELECT id FROM approvals WHERE run_id = $1 AND status = 'pending'", [id]);
    const question = (await readApproval(world.pool, "default", rows[0].id))!;
    await decideApproval(world.pool, world.blobs, question, { decision: "approve", by: "test" });
  }
  world.work();
  const told = await bodies(receiver, 2, secret);
  // Both are on their way at once: their order is not promised.
  expect(told.map((body) => body.data.approvals[0].id).sort()).toEqual(asked.sort());
});

test("a run that waits for its budget says at which cap", async () => {
  const receiver = await world.receiver();
  const { secret } = await createEndpoint(world.pool, "default", { url: receiver.url, mayDecide: true });
  await park(await submit({}), [], "actions");
  world.work({ publicUrl });
  const [body] = await bodies(receiver, 1, secret);
  expect(body.data).toMatchObject({ status: "waiting", waiting_for: "budget", level: "actions" });
  expect(body.data).not.toHaveProperty("approvals");
});

test("an endpoint of somebody who may not decide gets no links, nor one whose URL such a person has changed", async () => {
  const pool = world.pool;
  const made = await createEndpoint(pool, "default", { url: "https://example.com/a" });
  const own = await createEndpoint(pool, "default", { url: "https://example.com/b", mayDecide: true });
  await updateEndpoint(pool, "default", own.id, { description: "still mine" });
  const decides = async (id: string) =>
    (await pool.query("SELECT may_decide FROM endpoints WHERE id = $1", [id])).rows[0].may_decide;
  expect([await decides(made.id), await decides(own.id)]).toEqual([false, true]);
  await updateEndpoint(pool, "default", own.id, { url: "https://example.com/elsewhere" });
  expect(await decides(own.id)).toBe(false);
});

test("where keys may not approve their own, no link goes to an endpoint whose address the run's submitter named", async () => {
  const [own, other, unknown] = [await world.receiver(), await world.receiver(), await world.receiver()];
  const make = (url: string, namedBy?: string) =>
    createEndpoint(world.pool, "default", { url, mayDecide: true, ...(namedBy !== undefined && { namedBy }) });
  const secrets = [await make(own.url, "key_submitter"), await make(other.url, "key_other"), await make(unknown.url)];
  const id = await submit({});
  await world.pool.query("UPDATE runs SET submitted_by = 'key_submitter' WHERE id = $1", [id]);
  await park(id, [mail]);
  const worker = world.work({ publicUrl, approveOwn: false });
  await worker.settled(3);
  const linkOf = async (receiver: typeof own, secret: string) =>
    (await bodies(receiver, 1, secret))[0]!.data.approvals[0].link;
  expect([
    await linkOf(own, secrets[0]!.secret),
    await linkOf(other, secrets[1]!.secret),
    await linkOf(unknown, secrets[2]!.secret),
  ]).toEqual([undefined, expect.stringContaining(publicUrl), undefined]);
});

test("a callback hears of it only if it asked to, and gets links only for somebody who may decide", async () => {
  const receiver = await world.receiver();
  const callbackUrl = `${receiver.url}/hook`;
  const callbackEvents = ["query.waiting"];
  await park(await submit({ callbackUrl }), [mail]);
  await park(await submit({ callbackUrl, callbackEvents, userId: "may not" }), [mail]);
  await park(await submit({ callbackUrl, callbackEvents, userId: "may" }, { callback_decides: true }), [mail]);
  const worker = world.work({ publicUrl });
  await worker.settled(2);
  const told = await bodies(receiver, 2, await world.secretOf("default"));
  const links = Object.fromEntries(told.map(({ data }) => [data.user_id, data.approvals[0].link]));
  expect(links).toEqual({ may: expect.stringContaining(publicUrl), "may not": undefined });
  expect(receiver.requests).toHaveLength(2);
});

test("without an address for people there are no links; what is long is cut and says so", async () => {
  const receiver = await world.receiver();
  const { secret } = await createEndpoint(world.pool, "default", { url: receiver.url, mayDecide: true });
  await park(await submit({}), [
    { ...mail, input: { text: "💡".repeat(20_000) } },
    { ...mail, input: { text: "x".repeat(16_000) } },
  ]);
  world.work();
  const [body] = await bodies(receiver, 1, secret);
  const [long, short] = body.data.approvals;
  expect(long).toMatchObject({ input_truncated: true, input: expect.stringMatching(/^\{"text":"💡/) });
  expect(long.input.length).toBeLessThanOrEqual(16_384);
  expect(short.input).toEqual({ text: "x".repeat(16_000) });
  for (const asked of [long, short]) expect(asked).not.toHaveProperty("link");
  expect(short).not.toHaveProperty("input_truncated");
});
