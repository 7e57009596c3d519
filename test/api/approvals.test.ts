/** Approvals over HTTP: who may decide what, once; and what a decision does to the run that waits for it. */
import { fromWireId } from "@drover/protocol";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { startReceiver, verified } from "../support/receiver.ts";
import { ask } from "./asking.ts";
import { type Carried, calling, startCarried, testTools } from "./carried.ts";
import { paths, startWorld, type World } from "./world.ts";

let world: Carried;
/** Without a worker: a test owns the runs. */
let quiet: World;
beforeAll(async () => {
  world = await startCarried({
    env: { DROVER_PUBLIC_URL: "https://drover.example.com", DROVER_EGRESS_ALLOW: "127.0.0.0/8" },
  });
  quiet = await startWorld({ deps: { tools: testTools() } });
});
afterEach(() => {
  world.models.reset();
  world.done.length = 0;
});
afterAll(async () => {
  await world.close();
  await quiet.close();
});

const mail = { to: "ann@example.com", text: "Your lamp is on its way." };
const decide = (id: string, body: object, on: World = quiet, key = on.adminKey) =>
  on.post(`/approvals/${id}`, body, { key });

/** A run whose model wants to send a mail and then says what came of it; it waits for a person. */
async function waitingRun(): Promise<{ taskId: string; id: string; seq: number }> {
  world.models.script((call) =>
    call.turn === 0 ? calling("send_mail", mail) : `It said: ${call.results[0]!.content}`,
  );
  const taskId = await world.submit();
  const { seq } = await world.until(taskId, "run.waiting");
  const { body } = await world.get(`/query/${taskId}/approvals`);
  return { taskId, id: body.data[0].id, seq };
}

describe("a run that waits for a person", () => {
  test("says so, and what is asked is listed", async () => {
    const { taskId, id } = await waitingRun();
    const { body: status } = await world.get(`/query/status/${taskId}`);
    expect(status).toMatchObject({ status: "waiting", waiting_for: "approval" });
    const { body: asked } = await world.get(`/approvals/${id}`);
    expect(asked).toEqual({
      id,
      task_id: taskId,
      agent: "default",
      subject: "call",
      tool_name: "send_mail",
      input: mail,
      reason: "send_mail cannot be undone.",
      hash: expect.stringMatching(/^[0-9a-f]{64}$/),
      status: "pending",
      requested_at: expect.any(String),
      expires_at: expect.any(String),
      on_expiry: "reject",
      decided_at: null,
      decided_by: null,
      decision: null,
      note: null,
    });
    expect(Date.parse(asked.expires_at) - Date.parse(asked.requested_at)).toBeGreaterThan(86_000_000);
    expect((await world.get("/approvals?status=pending")).body.data).toContainEqual(asked);
    expect((await world.get("/approvals?status=approved")).body.data).not.toContainEqual(asked);
    expect((await world.get(`/query/${taskId}/approvals?status=rejected`)).body.data).toEqual([]);
    expect(world.done).toEqual([]);
  });

  test("approved: the call is made with the arguments that were asked about, and the run completes", async () => {
    const { taskId, id } = await waitingRun();
    const { status, body } = await decide(id, { decision: "approve", note: "Go." }, world);
    expect(status).toBe(200);
    expect(body).toMatchObject({
      id,
      status: "approved",
      decision: "approve",
      note: "Go.",
      decided_by: expect.stringMatching(/^key_/),
    });
    expect(["queued", "running", "completed"]).toContain(body.run_status);
    expect((await world.end(taskId)).result.output).toBe("It said: sent");
    expect(world.done).toEqual([["send_mail", mail]]);
  });

  test("rejected: the model sees the note, and the call is never made", async () => {
    const { taskId, id } = await waitingRun();
    await decide(id, { decision: "reject", note: "Ann has moved away." }, world);
    expect((await world.end(taskId)).result.output).toContain("Ann has moved away.");
    expect(world.done).toEqual([]);
  });

  test("approved with other arguments: these are checked, and these are what runs", async () => {
    const { taskId, id } = await waitingRun();
    const wrong = await decide(id, { decision: "approve", edited_input: { to: "nobody", text: "Hello" } }, world);
    expect(wrong.status).toBe(400);
    expect(wrong.body.errors).toEqual([{ path: "edited_input", message: expect.stringContaining("to: ") }]);
    expect((await world.get(`/approvals/${id}`)).body.status).toBe("pending");

    const edited = { to: "bob@example.com", text: "Hello" };
    const { body } = await decide(id, { decision: "approve", edited_input: edited }, world);
    expect(body).toMatchObject({ status: "approved", edited_input: edited, input: mail });
    const { result } = await world.end(taskId);
    expect(world.done).toEqual([["send_mail", edited]]);
    // The model hears what ran in place of its own arguments, and the result shows both.
    expect(result.output).toContain(
      `A person changed the arguments before they approved this call. It ran with: ${JSON.stringify(edited)}`,
    );
    expect(result.output).toContain("sent");
    const { tool_calls } = (await world.get(`/query/result/${taskId}?include=tool_calls`)).body;
    expect(tool_calls).toMatchObject([{ tool_name: "send_mail", input: edited, requested_input: mail, status: "ok" }]);
  });

  test("somebody without a key: from the webhook by its link to the page, by its form to the end of the run", async () => {
    const receiver = await startReceiver();
    try {
      world.models.script((call) => (call.turn === 0 ? calling("send_mail", mail) : "done"));
      const taskId = await world.submit({ callback_url: `${receiver.url}/hook`, events: ["query.waiting"] });
      const [told] = await receiver.waitFor(1);
      const { secret } = (await world.get("/webhooks/secret")).body;
      const { type, data } = verified(told!, secret);
      expect(type).toBe("query.waiting");
      const [asked] = data.approvals as { link: string }[];
      const link = new URL(asked!.link);
      expect(link.origin).toBe("https://drover.example.com");
      expect((await world.get(link.pathname, { key: null })).text).toContain("ann@example.com");
      expect(world.done).toEqual([]);
      const page = await world.call("POST", link.pathname, {
        key: null,
        raw: "decision=approve",
        headers: { "content-type": "application/x-www-form-urlencoded" },
      });
      expect(page.status).toBe(200);
      expect((await world.end(taskId)).status).toBe("completed");
      expect(world.done).toEqual([["send_mail", mail]]);
    } finally {
      await receiver.close();
    }
  });

  test("cancelled: nothing is left to decide", async () => {
    const { taskId, id } = await waitingRun();
    await world.post(`/query/${taskId}/cancel`);
    const { status, body } = await decide(id, { decision: "approve" }, world);
    expect(status).toBe(409);
    expect(body.detail).toMatch(/expired already, by system/);
    expect(world.done).toEqual([]);
  });
});

describe("deciding", () => {
  test("twenty at once: one decides, the others hear how and by whom", async () => {
    const { taskId, id } = await ask(quiet);
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, n) => decide(id, { decision: n % 2 ? "approve" : "reject" })),
    );
    const won = answers.filter(({ status }) => status === 200);
    expect(won).toHaveLength(1);
    const { status, decided_by } = won[0]!.body;
    const lost = answers.filter((answer) => answer.status === 409);
    expect(lost).toHaveLength(19);
    for (const { body } of lost) expect(body.detail).toBe(`It is ${status} already, by ${decided_by}.`);
    const { body } = await quiet.get(`/query/${taskId}/events`);
    expect(body.data.filter((event: { type: string }) => event.type === "approval.decided")).toHaveLength(1);
  });

  test("the audit trail says who", async () => {
    const { taskId, id } = await ask(quiet);
    await decide(id, { decision: "reject" });
    const { rows } = await quiet.pool.query(
      "SELECT actor, action, data FROM audit_entries WHERE run_id = $1 AND action LIKE 'approval.%'",
      [fromWireId("run", taskId)],
    );
    expect(rows).toEqual([
      {
        actor: expect.stringMatching(/^key_/),
        action: "approval.rejected",
        data: expect.objectContaining({ approval: id, tool: "send_mail" }),
      },
    ]);
  });

  test.each([
    [{}, ["decision"]],
    [{ decision: "maybe" }, ["decision"]],
    [{ decision: "retry" }, ["decision"]],
    [{ decision: "done", result: 1 }, ["decision"]],
    [{ decision: "expire" }, ["decision"]],
    [{ decision: "approve", result: 1 }, ["result"]],
    [{ decision: "reject", edited_input: mail }, ["edited_input"]],
    [{ decision: "approve", edited_input: null }, ["edited_input"]],
    [{ decision: "approve", edited_input: { ...mail, text: "a\0b" } }, ["edited_input"]],
    [{ decision: "approve", edited_input: JSON.parse(`${"[".repeat(200)}${"]".repeat(200)}`) }, ["edited_input"]],
    [{ decision: "approve", note: "x".repeat(2001) }, ["note"]],
    [{ decision: "approve", note: "a\0b" }, ["note"]],
    [{ decision: "approve", by: "me" }, ["by"]],
  ])("%j is refused by its field", async (body, wrong) => {
    const { id } = await ask(quiet);
    const answer = await decide(id, body);
    expect(answer.status).toBe(400);
    expect(paths(answer.body)).toEqual(wrong);
    expect((await quiet.get(`/approvals/${id}`)).body.status).toBe("pending");
  });

  test("edited arguments of a tool that this installation does not have cannot be checked", async () => {
    const { id } = await ask(quiet, { tool_name: "gone" });
    const answer = await decide(id, { decision: "approve", edited_input: {} });
    expect(answer.body.errors).toEqual([{ path: "edited_input", message: expect.stringContaining('no tool "gone"') }]);
  });

  test("an uncertain call: done with a result, or again, or the end; approve and reject mean the last two", async () => {
    const decided = async (body: object) => {
      const { id } = await ask(quiet, { subject: "uncertain" });
      const { status, body: answer } = await decide(id, body);
      return [status, answer.status, answer.decision];
    };
    expect(await decided({ decision: "done", result: { id: 7 } })).toEqual([200, "approved", "done"]);
    expect(await decided({ decision: "retry" })).toEqual([200, "approved", "retry"]);
    expect(await decided({ decision: "approve" })).toEqual([200, "approved", "retry"]);
    expect(await decided({ decision: "reject" })).toEqual([200, "rejected", "fail"]);
  });

  test("nobody decides after its time, also before anything has noticed that it is over", async () => {
    const { id } = await ask(quiet, { expiresInMs: -1 });
    const { status, body } = await decide(id, { decision: "approve" });
    expect(status).toBe(409);
    expect(body.detail).toBe("It is expired already.");
    expect((await quiet.get(`/approvals/${id}`)).body).toMatchObject({ status: "pending", decided_at: null });
  });

  test("another tenant's question is none, and what is no id neither", async () => {
    const { id, taskId } = await ask(quiet);
    const key = await quiet.keyOf("admin", "other");
    for (const [method, path, body] of [
      ["GET", `/approvals/${id}`],
      ["POST", `/approvals/${id}`, { decision: "approve" }],
      ["POST", `/approvals/${id}/link`],
      ["GET", `/query/${taskId}/approvals`],
    ] as const)
      expect((await quiet.call(method, path, { key, ...(body && { body }) })).status, path).toBe(404);
    expect((await quiet.get("/approvals", { key })).body.data).toEqual([]);
    for (const other of [taskId, "apr_x", id.toUpperCase()])
      expect((await decide(other, { decision: "approve" })).status).toBe(404);
    expect((await quiet.get(`/approvals/${id}`)).body.status).toBe("pending");
  });

  test.each([
    ["submitter", 403],
    ["operator", 403],
    ["approver", 200],
  ] as const)("a key of role %s: %i", async (role, status) => {
    const { id } = await ask(quiet);
    const key = await quiet.keyOf(role);
    expect((await quiet.get(`/approvals/${id}`, { key })).status).toBe(200);
    expect((await decide(id, { decision: "approve" }, quiet, key)).status).toBe(status);
  });
});

test("lists are pages, newest first, and their cursor is their own", async () => {
  const key = await quiet.keyOf("admin", "pages");
  const made: string[] = [];
  for (let n = 0; n < 3; n++) made.unshift((await ask(quiet, { key })).id);
  const first = await quiet.get("/approvals?limit=2", { key });
  expect(first.body.data.map((asked: { id: string }) => asked.id)).toEqual(made.slice(0, 2));
  const second = await quiet.get(`/approvals?limit=2&cursor=${first.body.next_cursor}`, { key });
  expect(second.body).toMatchObject({ data: [{ id: made[2] }], next_cursor: null });
  expect(paths((await quiet.get(`/query?cursor=${first.body.next_cursor}`)).body)).toEqual(["cursor"]);
  expect(paths((await quiet.get("/approvals?status=open")).body)).toEqual(["status"]);
});

test("a callback gets links only where the key that named it may decide by itself", async () => {
  const linked = async (on: World, key: string, body: object) => {
    const hook = { callback_url: "https://example.com/hook", events: ["query.waiting"], delay_seconds: 60 };
    const taskId = await on.submit({ ...hook, ...body }, { key });
    const { body: log } = await on.get(`/query/${taskId}/events`);
    return log.data[0].data.callback_decides;
  };
  const strict = await startWorld({ env: { DROVER_APPROVE_OWN: "false" } });
  try {
    expect(await linked(quiet, quiet.adminKey, {})).toBe(true);
    expect(await linked(quiet, quiet.adminKey, { events: ["query.failed"] })).toBeUndefined();
    expect(await linked(quiet, await quiet.keyOf("submitter"), {})).toBeUndefined();
    expect(await linked(strict, strict.adminKey, {})).toBeUndefined();
  } finally {
    await strict.close();
  }
});

test("where keys may not decide about their own runs, the submitter's is refused, also a link; another one decides", async () => {
  const strict = await startWorld({
    env: { DROVER_APPROVE_OWN: "false", DROVER_PUBLIC_URL: "https://drover.example.com" },
  });
  try {
    const { id } = await ask(strict);
    const own = await strict.post(`/approvals/${id}`, { decision: "approve" });
    expect(own).toMatchObject({ status: 403, body: { code: "forbidden" } });
    expect((await strict.post(`/approvals/${id}/link`)).status).toBe(403);
    const key = await strict.keyOf("approver");
    expect((await strict.post(`/approvals/${id}/link`, undefined, { key })).status).toBe(200);
    expect((await strict.post(`/approvals/${id}`, { decision: "approve" }, { key })).status).toBe(200);
  } finally {
    await strict.close();
  }
});
