/**
 * A call that may have taken effect, and nobody saw how it ended: its intent is in the log and its outcome is not. The tool's own
 * `verify` is asked, then a person. It never runs again by itself.
 */

import { contentHash } from "../audit/trail.ts";
import type { AnyTool, Verified } from "../library/tool.ts";
import type { ToolRecord } from "../loop/fold.ts";
import { askPerson, decisionEntry } from "./approval.ts";
import type { DoorOptions, Passed } from "./door.ts";
import { bound, contextOf, defaultTimeoutMs, Interrupted, parseInput, within } from "./execute.ts";

/** What is to be done with it; undefined: it is known that it did not take effect, or a person wants it again. */
export async function resolveUncertain(
  record: ToolRecord,
  tool: AnyTool | undefined,
  door: DoorOptions,
  why = "A worker died inside this call, which must not run twice. Whether it took effect is not known.",
): Promise<Passed | undefined> {
  const asked = record.asked.uncertain;
  if (asked) {
    const { decision } = asked;
    if (!decision) return { kind: "waiting" };
    if (decision.decision === "retry" || decision.decision === "approve") return;
    if (decision.decision === "done") return done(record, decision.result ?? "It took effect.");
    // A refusal ends the run; the loop has seen to it before.
    return { kind: "waiting" };
  }
  const quietMs = stillAtIt(record, tool, door);
  if (quietMs > 0) return { kind: "later", ms: quietMs };

  const answer = tool?.verify ? await verify(record, tool, door) : "unknown";
  const said = typeof answer === "object" ? "done" : answer;
  if (tool?.verify) {
    const { iteration, index } = record;
    await door.append({ type: "tool.verified", data: { iteration, index, tool_name: tool.name, answer: said } });
  }
  if (said === "not_done") return;
  if (said === "done") return done(record, typeof answer === "object" ? answer.output : "It took effect.");

  if (door.asking === "refuse") return { kind: "waiting" };
  const { iteration, index, call } = record;
  const input = await intendedInput(record, tool);
  const about = { iteration, index, tool_name: call.name, input, reason: why };
  const hash = contentHash([call.name, input]);
  const approval_id = await askPerson({ subject: "uncertain", ...about, hash }, door);
  if (door.asking === "park") return { kind: "waiting" };
  const decision = { decision: "retry" as const, by: door.asking.approvedBy };
  const entry = decisionEntry({ approval_id, tool_name: call.name, hash }, decision);
  await door.append({ type: "approval.decided", data: { approval_id, ...decision } }, entry);
  return;
}

/** How long the last owner may still be inside the call, ms: one lease after its last heartbeat, and the call's own limit. */
function stillAtIt({ orphanedAt }: ToolRecord, tool: AnyTool | undefined, door: DoorOptions): number {
  if (orphanedAt === undefined) return 0;
  return orphanedAt + (tool?.timeoutMs ?? defaultTimeoutMs) - (door.now?.() ?? Date.now());
}

async function verify(record: ToolRecord, tool: AnyTool, door: DoorOptions): Promise<Verified> {
  const input = await intendedInput(record, tool);
  const idempotencyKey = record.idempotencyKey ?? "";
  await door.assertOwned?.();
  try {
    const answer = await within<Verified>(tool, door, (signal) =>
      tool.verify!({ input, idempotencyKey }, contextOf(record, idempotencyKey, signal, door)),
    );
    return isVerified(answer) ? answer : "unknown";
  } catch (error) {
    if (error instanceof Interrupted || door.control.signal.aborted) throw error;
    return "unknown";
  }
}

const isVerified = (answer: unknown): answer is Verified =>
  answer === "done" ||
  answer === "not_done" ||
  answer === "unknown" ||
  (typeof answer === "object" && answer !== null && (answer as { done?: unknown }).done === true);

/** The arguments as the intent has them. */
async function intendedInput(record: ToolRecord, tool: AnyTool | undefined): Promise<unknown> {
  const given = record.intendedInput ?? record.call.input;
  if (!tool) return given;
  const parsed = await parseInput(tool, given);
  return "input" in parsed ? parsed.input : given;
}

function done(record: ToolRecord, output: unknown): Passed {
  return { kind: "outcome", outcome: { ...bound(output), own: true, points: record.reserved } };
}
