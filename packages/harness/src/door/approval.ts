/** Asking a person: the question is an event of the log, its answer another one, and the run gives up its slot in between. */
import { toWireId, uuidv7 } from "@drover/protocol";
import { type AuditEntry, contentHash } from "../audit/trail.ts";
import type { AgentDefinition } from "../library/agent.ts";
import type { AnyTool } from "../library/tool.ts";
import type { ApprovalDecision, ApprovalRequest } from "../loop/events.ts";
import type { DoorOptions } from "./door.ts";
import { parseInput } from "./execute.ts";

/** Names exactly what would run: the tool, its version, its arguments as they would be carried out. */
export function callHash(tool: Pick<AnyTool, "name" | "version">, input: unknown): string {
  return contentHash([tool.name, tool.version ?? "1", input]);
}

const daySeconds = 86_400;

/** How long a person has, and what silence means, by an agent's definition. */
export function approvalsOf({ approvals }: Pick<AgentDefinition, "approvals">): DoorOptions["approvals"] {
  return {
    expiresAfterMs: (approvals?.expiresAfterSeconds ?? daySeconds) * 1000,
    onExpiry: approvals?.onExpiry ?? "reject",
  };
}

type Question = Omit<ApprovalRequest, "approval_id" | "expires_at" | "on_expiry">;

/** Records the question and returns its id. It is open until somebody decides or it expires. */
export async function askPerson(
  question: Question,
  door: Pick<DoorOptions, "append" | "approvals" | "now" | "agentName">,
): Promise<string> {
  const approval_id = toWireId("approval", uuidv7());
  const { expiresAfterMs, onExpiry } = door.approvals;
  const expires_at = new Date((door.now?.() ?? Date.now()) + expiresAfterMs).toISOString();
  const { subject, tool_name, hash } = question;
  await door.append(
    { type: "approval.requested", data: { approval_id, ...question, expires_at, on_expiry: onExpiry } },
    {
      actor: `agent:${door.agentName}`,
      action: "approval.requested",
      data: { approval: approval_id, subject, ...(tool_name && { tool: tool_name }), hash },
    },
  );
  return approval_id;
}

/** What a decision makes of its question. */
export const statusAfter = {
  approve: "approved",
  retry: "approved",
  done: "approved",
  reject: "rejected",
  fail: "rejected",
  expire: "expired",
} as const satisfies Record<ApprovalDecision["decision"], string>;

/** A decision as the trail has it. */
export function decisionEntry(
  asked: Pick<ApprovalRequest, "approval_id" | "tool_name" | "hash">,
  { decision, by, hash }: ApprovalDecision,
): AuditEntry {
  return {
    actor: by,
    action: `approval.${statusAfter[decision]}`,
    data: {
      approval: asked.approval_id,
      decision,
      ...(asked.tool_name !== undefined && { tool: asked.tool_name }),
      hash: hash ?? asked.hash,
    },
  };
}

/** What somebody wants to say to a question. */
export interface WantedDecision {
  decision: "approve" | "reject" | "retry" | "done" | "fail";
  by: string;
  note?: string;
  /** Approve with these arguments instead. */
  editedInput?: unknown;
  /** With `done`: what the call returned. */
  result?: unknown;
}

const answers: Record<ApprovalRequest["subject"], readonly WantedDecision["decision"][]> = {
  call: ["approve", "reject"],
  uncertain: ["retry", "done", "fail", "approve", "reject"],
  input: ["approve", "reject"],
  result: ["approve", "reject"],
  output: ["approve", "reject"],
};

/**
 * A decision as the log takes it, or what is wrong with it, by field. Edited arguments are held against the tool's schema, and what runs
 * is bound to their hash. To an uncertain call `approve` means `retry` and `reject` means `fail`.
 */
export async function checkDecision(
  asked: Pick<ApprovalRequest, "subject" | "tool_name">,
  wanted: WantedDecision,
  tool: AnyTool | undefined,
): Promise<{ decision: ApprovalDecision } | { problem: { path: string; message: string } }> {
  const { by, note, editedInput, result } = wanted;
  const allowed = answers[asked.subject];
  if (!allowed.includes(wanted.decision))
    return problem("decision", `must be one of ${allowed.join(", ")}: the question is about ${named[asked.subject]}`);
  const plain = asked.subject === "uncertain" ? meant[wanted.decision] : wanted.decision;
  if (result !== undefined && plain !== "done") return problem("result", "goes with the decision `done` only");
  const base = { decision: plain, by, ...(note !== undefined && { note }), ...(result !== undefined && { result }) };
  if (editedInput === undefined) return { decision: base };
  if (asked.subject !== "call" || plain !== "approve")
    return problem("edited_input", "goes with the approval of a tool call only");
  if (!tool) return problem("edited_input", `cannot be checked: this process has no tool "${asked.tool_name}"`);
  const parsed = await parseInput(tool, editedInput);
  if ("problem" in parsed) return problem("edited_input", parsed.problem);
  return { decision: { ...base, edited_input: editedInput, hash: callHash(tool, parsed.input) } };
}

const meant = { approve: "retry", reject: "fail", retry: "retry", done: "done", fail: "fail" } as const;
const named: Record<ApprovalRequest["subject"], string> = {
  call: "a tool call",
  uncertain: "a call that may have taken effect",
  input: "an input",
  result: "a tool's result",
  output: "an answer",
};
const problem = (path: string, message: string) => ({ problem: { path, message } });
