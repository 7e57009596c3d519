/** People in the library: the callback that decides, decisions by id, and what does not fit. */
import { AgentHarness, type ApprovalRequest, BudgetExhausted, HumanApprovalRequired, memoryLog } from "@drover/harness";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { eventsOf, harnessOn, logFrom, openLog, tool, types } from "./scripted.ts";

let server: ModelServer;
beforeAll(async () => {
  server = await startModelServer();
});
afterAll(() => server.close());
afterEach(() => server.reset());

function sender() {
  const sent: unknown[] = [];
  const send = tool("send", (input) => sent.push(input), {
    permission: "irreversible",
    effect: "unsafe",
    budgetCost: 6,
  });
  return { sent, send };
}
const calls = (...ns: number[]) => ({ toolCalls: ns.map((n) => ({ name: "send", input: { n } })) });

describe("approve", () => {
  it("decides each question in place, one after the other", async () => {
    const { sent, send } = sender();
    server.script([calls(1, 2), "Done."]);
    const asked: ApprovalRequest[] = [];
    const result = await harnessOn(server, { tools: [send] }).run("Do it.", {
      approve: async (request) => {
        asked.push(request);
        return request.index === 0
          ? { decision: "approve", by: "maria" }
          : { decision: "reject", by: "maria", note: "one is enough" };
      },
    });
    expect(result).toMatchObject({
      status: "success",
      tool_calls: [{ status: "ok" }, { status: "rejected", output: "A person rejected this call: one is enough" }],
    });
    expect(asked.map(({ index }) => index).sort()).toEqual([0, 1]);
    expect(sent).toEqual([{ n: 1 }]);
  });

  it("may give other arguments, held against the schema", async () => {
    const { sent, send } = sender();
    server.script([calls(1), "Done."]);
    const harness = harnessOn(server, { tools: [send] });
    await harness.run("Do it.", { approve: () => ({ decision: "approve", by: "maria", editedInput: { n: 5 } }) });
    expect(sent).toEqual([{ n: 5 }]);
    server.script([calls(1), "Done."]);
    const wrong = harness.run("Do it.", {
      approve: () => ({ decision: "approve", by: "maria", editedInput: { n: "five" } }),
    });
    await expect(wrong).rejects.toThrow(/edited_input: The arguments are not valid\. n: /);
    expect(sent).toHaveLength(1);
  });
});

describe("without it", () => {
  it("the run waits with the question, and goes on from its log in another process", async () => {
    const { sent, send } = sender();
    server.script([calls(1), "Done."]);
    const log = openLog();
    const first = await harnessOn(server, { tools: [send] }).run("Do it.", { log });
    expect(first).toMatchObject({
      status: "waiting",
      waiting: { waiting_for: "approval", approvals: [{ subject: "call", tool_name: "send" }] },
    });
    const [asked] = first.waiting!.approvals!;
    const next = logFrom(log.events, log.runId);
    const end = await harnessOn(server, { tools: [send] }).run("", {
      log: next,
      decisions: { [asked!.approval_id]: { decision: "approve", by: "maria" } },
    });
    expect(end).toMatchObject({ status: "success", output: "Done.", task_id: first.task_id });
    expect(sent).toEqual([{ n: 1 }]);
    expect(server.count).toBe(2);
  });

  it("going on without a decision waits on, and asks nothing twice", async () => {
    const { send } = sender();
    server.script([calls(1)]);
    const log = openLog();
    const harness = harnessOn(server, { tools: [send] });
    await harness.run("Do it.", { log });
    expect((await harness.run("", { log })).status).toBe("waiting");
    expect(eventsOf(log.events, "approval.requested")).toHaveLength(1);
  });

  it("a decision that comes too late does not count, and a final log takes none", async () => {
    const { sent, send } = sender();
    server.script([calls(1), "Done."]);
    const log = openLog();
    const harness = harnessOn(server, {
      tools: [send],
      agents: { default: { approvals: { expiresAfterSeconds: 0.001 } } },
    });
    const first = await harness.run("Do it.", { log });
    const [asked] = first.waiting!.approvals!;
    await expect.poll(() => Date.now() > Date.parse(asked!.expires_at)).toBe(true);
    const decisions = { [asked!.approval_id]: { decision: "approve" as const, by: "maria" } };
    expect(await harness.run("", { log, decisions })).toMatchObject({
      status: "success",
      tool_calls: [{ status: "rejected" }],
    });
    expect(eventsOf(log.events, "approval.decided")).toMatchObject([{ decision: "expire", by: "system" }]);
    expect(sent).toEqual([]);
    const before = types(log.events);
    await harness.run("", { log, decisions });
    expect(types(log.events)).toEqual(before);
  });

  it("a decision about a question that was never asked is refused", async () => {
    const run = new AgentHarness({ env: {} }).run("Do it.", {
      log: memoryLog(),
      decisions: { apr_0: { decision: "approve", by: "maria" } },
    });
    await expect(run).rejects.toThrow("decisions.apr_0: this run asked no such question");
  });

  it("runOrThrow throws what is waited for", async () => {
    const { send } = sender();
    server.script([calls(7)]);
    const error = await harnessOn(server, { tools: [send] })
      .runOrThrow("Do it.")
      .catch((thrown) => thrown);
    expect(error).toBeInstanceOf(HumanApprovalRequired);
    expect(error).toMatchObject({ actionName: "send", actionArgs: { n: 7 } });
    server.script([calls(7)]);
    const paused = harnessOn(server, { tools: [send], agents: { default: { onBudget: "pause", actionBudget: 1 } } });
    await expect(paused.runOrThrow("Do it.")).rejects.toBeInstanceOf(BudgetExhausted);
  });
});
