/** Questions as rows: who sees them, what a message says of them, and what becomes of one that nobody answers. */
import { defineTool } from "@drover/harness";
import { toWireId } from "@drover/protocol";
import { decideApproval, listApprovals, readApproval } from "@drover/runs";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { addTenant, input } from "./bench.ts";
import { dataOf, live } from "./live.ts";
import { createOwner } from "./owner.ts";

const world = live();

describe("a question", () => {
  test("is a row with what was asked, whatever its size, and the message that is owed says where it stands in the log", async () => {
    const text = "x".repeat(100_000);
    const send = defineTool({
      name: "send",
      description: "Sends.",
      input: z.object({ text: z.string() }),
      permission: "irreversible",
      effect: "unsafe",
      execute: () => "sent",
    });
    world.models.script(({ turn }) => (turn === 0 ? { toolCalls: [{ name: "send", input: { text } }] } : "Done."));
    const worker = await world.start({ tools: [send] });
    const id = await world.submit({ submittedBy: "key_client" });
    const { run, log } = await world.rest(id);
    expect(run).toMatchObject({ status: "waiting", waitingFor: "approval", waitingLevel: null });
    // It holds no slot and no worker.
    await expect.poll(() => worker.active).toBe(0);
    expect((await world.bench.row(id)).worker).toBeNull();
    const [asked] = await listApprovals(world.bench.pool, "default", { runId: id, limit: 10 });
    expect(asked).toMatchObject({
      runId: id,
      agent: "default",
      submittedBy: "key_client",
      subject: "call",
      toolName: "send",
      input: { text },
      status: "pending",
    });
    expect(toWireId("approval", asked!.id)).toBe(dataOf(log, "approval.requested")[0]!.approval_id);
    const { rows } = await world.bench.pool.query("SELECT type, seq FROM messages WHERE run_id = $1", [id]);
    expect(rows).toEqual([{ type: "query.waiting", seq: log.at(-1)!.seq }]);
    expect(log.at(-1)!.type).toBe("run.waiting");

    const { resumed } = await decideApproval(world.bench.pool, world.bench.blobs, asked!, {
      decision: "approve",
      by: "key_boss",
    });
    await world.wake([resumed!]);
    expect((await world.rest(id)).run.status).toBe("completed");
    expect(await readApproval(world.bench.pool, "default", asked!.id)).toMatchObject({
      status: "approved",
      decidedBy: "key_boss",
      decision: { decision: "approve" },
    });
  });

  test("is seen by its tenant only, newest first, page by page, by status", async () => {
    await addTenant(world.bench.pool, "other");
    const owner = await createOwner(world.bench);
    const run = await owner.own();
    const asked = [await owner.ask(run), await owner.ask(run), await owner.ask(run)];
    const theirs = await owner.own({ tenant: "other" });
    const foreign = await owner.ask(theirs);
    const ids = async (more: object) =>
      (await listApprovals(world.bench.pool, "default", { limit: 10, ...more })).map(({ id }) => id);
    const newest = asked.map(({ id }) => id).toReversed();
    expect(await ids({})).toEqual(newest);
    expect(await ids({ limit: 2 })).toEqual(newest.slice(0, 2));
    expect(await ids({ before: newest[1] })).toEqual(newest.slice(2));
    expect(await ids({ runId: theirs.id })).toEqual([]);
    await decideApproval(world.bench.pool, world.bench.blobs, asked[0]!, { decision: "reject", by: "key_a" });
    expect(await ids({ status: "pending" })).toEqual(newest.slice(0, 2));
    expect(await ids({ status: "rejected" })).toEqual(newest.slice(2));
    expect(await readApproval(world.bench.pool, "default", foreign.id)).toBeNull();
  });
});

test("a run that waits past its deadline ends with what it has, and its question with it", async () => {
  const send = defineTool({
    name: "send",
    description: "Sends.",
    input: z.object({}),
    permission: "irreversible",
    effect: "unsafe",
    execute: () => "sent",
  });
  world.models.script(() => ({ text: "so far", toolCalls: [{ name: "send", input: {} }] }));
  await world.start({ tools: [send] });
  const id = await world.submit();
  expect((await world.rest(id)).run.status).toBe("waiting");
  await world.bench.pool.query("UPDATE runs SET deadline = now() WHERE id = $1", [id]);
  await world.until("SELECT status FROM runs WHERE id = $1", [id], { status: "partial" });
  const { run, outcome } = await world.rest(id);
  expect([run.stopReason, outcome!.result.output]).toEqual(["deadline", "so far"]);
  const [asked] = await listApprovals(world.bench.pool, "default", { runId: id, limit: 10 });
  expect(asked).toMatchObject({ status: "expired", decidedBy: "system" });
  const late = decideApproval(world.bench.pool, world.bench.blobs, asked!, { decision: "approve", by: "key_boss" });
  await expect(late).rejects.toMatchObject({ code: "conflict" });
});

describe("nobody answers", () => {
  test("the rescuer closes it, and the run goes on by the agent's policy", async () => {
    const send = defineTool({
      name: "send",
      description: "Sends.",
      input: z.object({}),
      permission: "irreversible",
      effect: "unsafe",
      execute: () => "sent",
    });
    world.models.script(({ turn, results }) =>
      turn === 0 ? { toolCalls: [{ name: "send", input: {} }] } : { text: results[0]!.content },
    );
    await world.start({
      tools: [send],
      agents: {
        strict: { approvals: { expiresAfterSeconds: 0.2, onExpiry: "fail" } },
        default: { approvals: { expiresAfterSeconds: 0.2 } },
      },
    });
    const [lenient, strict] = [await world.submit(), await world.submit({ input: input({ agent: "strict" }) })];
    await world.until("SELECT count(*) FROM runs WHERE finished_at IS NOT NULL", [], { count: 2 });
    expect((await world.rest(lenient)).outcome!.result.output).toBe(
      "Nobody approved this call in time, so it was not made.",
    );
    expect((await world.rest(strict)).run).toMatchObject({ status: "failed", stopReason: "approval_expired" });
    const { rows } = await world.bench.pool.query("SELECT status, decided_by FROM approvals");
    expect(rows).toEqual(Array(2).fill({ status: "expired", decided_by: "system" }));
    const audit = await world.bench.pool.query(
      "SELECT actor, action FROM audit_entries WHERE run_id = $1 AND action = 'approval.expired'",
      [strict],
    );
    expect(audit.rows).toEqual([{ actor: "system", action: "approval.expired" }]);
  });
});
