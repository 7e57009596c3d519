/**
 * The one door to a side effect: every tool call of every kind passes here, in the library and in the worker. validate -> sanitise ->
 * permit -> reserve budget -> approve -> record the intent -> execute in its limits -> settle or refund -> record the outcome -> audit.
 * A failure is a result that the model sees; only a lost log or a stopped run leaves by throwing.
 */

import { given } from "@drover/protocol";
import { messageOf } from "@drover/telemetry";
import { type AuditEntry, contentHash } from "../audit/trail.ts";
import type { AnyTool } from "../library/tool.ts";
import { traitsOf } from "../library/tool.ts";
import type { RunControl } from "../loop/control.ts";
import type { ToolProblem, ToolResult, ToolStatus } from "../loop/events.ts";
import { pointsLeft, type ToolRecord } from "../loop/fold.ts";
import { applyPolicies, type ChainAnswer } from "../policy/policy.ts";
import { askPerson, callHash, decisionEntry } from "./approval.ts";
import type { DoorAnswer, DoorOptions, Outcome, Passed } from "./door.ts";
import { execute, Interrupted, parseInput, shortened } from "./execute.ts";
import { resolveUncertain } from "./uncertain.ts";

/** Carries out one call as far as it gets now. After a crash in between, `effect` decides what resuming may do. */
export async function callTool(record: ToolRecord, door: DoorOptions): Promise<DoorAnswer> {
  const startedAt = performance.now();
  const passed = record.held ? await decideHeld(record, record.held, door) : await passDoor(record, door);
  if (passed.kind !== "outcome") {
    // Nothing is set aside for what does not go on now.
    if (!record.intended) record.reserved = 0;
    return passed;
  }
  return await recordOutcome(record, passed.outcome, Math.round(performance.now() - startedAt), door);
}

async function passDoor(record: ToolRecord, door: DoorOptions): Promise<Passed> {
  const tool = door.toolbox.get(record.call.name);
  if (record.intended && tool?.effect !== "idempotent") {
    const resolved = await resolveUncertain(record, tool, door);
    if (resolved) return resolved;
  }
  // One answer for both: who may not know of a tool does not learn that it is there.
  if (!tool) return denied(`Permission denied: there is no tool "${record.call.name}" that this agent may call.`);

  const validated = await validate(record, tool, door);
  if ("kind" in validated) return validated;
  const { input, needed } = validated;

  if (!record.intended) {
    const tooOften = callsProblem(record, tool, door);
    if (tooOften) return outcome("error", tooOften, "limit");
    const points = tool.budgetCost ?? 0;
    const tooDear = () => points > pointsLeft(door.state);
    if (tooDear()) return { kind: "exhausted" };
    const tooFast = rateProblem(tool, await door.toolbox.waitMs(tool, door.tenant));
    if (tooFast) return tooFast;
    // Others were quicker.
    if (tooDear()) return { kind: "exhausted" };
    record.reserved = points;
  }

  const begun = record.intended;
  // Looked at before a person is asked for what would not be started any more, and after.
  const kept =
    notToBeStarted(begun, record, door.control) ??
    (await approve(record, tool, input, needed, door)) ??
    notToBeStarted(begun, record, door.control);
  if (kept) return kept;
  if (!begun) {
    // Counted when it is made: once, however long a person took.
    const tooFast = rateProblem(tool, await door.toolbox.admit(tool, door.tenant));
    if (tooFast) return tooFast;
  }
  const idempotencyKey = record.idempotencyKey ?? `${door.runId}:${record.iteration}:${record.index}`;
  if (tool.effect !== "pure") {
    // A second try of an unsafe call is a second intent: what was found out about the first says nothing about it.
    if (!begun || tool.effect === "unsafe") await recordIntent(record, tool, input, idempotencyKey, door);
  }
  await door.assertOwned?.();
  const overtaken = notToBeStarted(begun, record, door.control);
  if (overtaken) return overtaken;
  const work = () => execute(tool, input, idempotencyKey, record, door);
  const ended = await (door.inside ? door.inside(tool.name, work) : work());
  return ended.doubtful ? await clearUp(record, tool, ended, door) : { kind: "outcome", outcome: ended };
}

/**
 * A call that must not run twice was given up while it was under way: as after a crash, the tool's own `verify` is asked, then a person. At the run's end there
 * is no time for that, and its result stays uncertain.
 */
async function clearUp(record: ToolRecord, tool: AnyTool, given: Outcome, door: DoorOptions): Promise<Passed> {
  const { doubtful: _, ...ended } = given;
  const output = `${ended.output} It may have taken effect all the same.`;
  if (door.control.cut.aborted) return { kind: "outcome", outcome: { ...ended, output } };
  const why = `This call must not run twice, and was given up while it was under way: ${ended.output} Whether it took effect is not known.`;
  const resolved = await resolveUncertain(record, tool, door, why);
  if (resolved) return resolved;
  return outcome("error", `${ended.output} It did not take effect.`, "nothing_done");
}

interface Validated {
  input: unknown;
  /** Why a person is needed, by the policies. */
  needed: string | undefined;
}

/** validate -> sanitise: the arguments fit the schema, and what the policies take out of them is out. */
async function validate(record: ToolRecord, tool: AnyTool, door: DoorOptions): Promise<Validated | Passed> {
  const { call, edited } = record;
  if (call.invalid !== undefined) return outcome("error", call.invalid, "arguments");
  const given = edited ? edited.input : call.input;
  const parsed = await parseInput(tool, given);
  if ("problem" in parsed) return outcome("error", parsed.problem, "arguments");
  if (door.policies.length === 0) return { input: parsed.input, needed: undefined };

  const checked = applyPolicies(door.policies, given, {
    stage: "arguments",
    tool: traitsOf(tool),
    seen: door.state.seen,
  });
  const { call: asked } = record.asked;
  const seenBefore = record.intended || (asked && !(asked.decision && "edited_input" in asked.decision));
  if (!seenBefore) await recordFindings(checked, record, "arguments", door);
  if (checked.action === "block") {
    const reason = `Blocked by the policy ${blocker(checked)}.`;
    return { kind: "outcome", outcome: { status: "denied", output: reason, problem: "policy" } };
  }
  const needed = checked.action === "ask" ? checked.findings.find(({ action }) => action === "ask")?.reason : undefined;
  if (checked.value === given) return { input: parsed.input, needed };
  const clean = await parseInput(tool, checked.value);
  if ("problem" in clean) return outcome("error", `After a policy's redaction: ${clean.problem}`, "policy");
  return { input: clean.input, needed };
}

/** Whether the run has called it too often. */
function callsProblem(record: ToolRecord, tool: AnyTool, door: DoorOptions): string | undefined {
  if (tool.maxCallsPerRun === undefined) return;
  const before = door.state.turns
    .flatMap((turn) => turn.calls)
    .filter((other) => other.call.name === tool.name && isBefore(other, record) && wasCarriedOut(other));
  if (before.length < tool.maxCallsPerRun) return;
  return `Not called: "${tool.name}" may be called ${tool.maxCallsPerRun} times in one run.`;
}

/** Whether the tenant has called it too often, in this process. */
function rateProblem(tool: AnyTool, waitMs: number): Passed | undefined {
  if (waitMs === 0) return;
  const again = `Try again in ${Math.ceil(waitMs / 1000)} s.`;
  return outcome("error", `Not called: "${tool.name}" was called too often. ${again}`, "limit");
}

const isBefore = (a: ToolRecord, b: ToolRecord): boolean =>
  a.iteration < b.iteration || (a.iteration === b.iteration && a.index < b.index);

/** Calls of the same turn that have no result yet count: they are carried out side by side. */
const wasCarriedOut = ({ result }: ToolRecord): boolean =>
  !result || result.problem === undefined || result.problem === "tool" || result.problem === "withheld";

/** Whether it may go on as far as people are concerned; undefined: it may. */
async function approve(
  record: ToolRecord,
  tool: AnyTool,
  input: unknown,
  policyAsks: string | undefined,
  door: DoorOptions,
): Promise<Passed | undefined> {
  const hash = callHash(tool, input);
  const approval = record.asked.call;
  const decision = approval?.decision;
  if (approval && !decision) return { kind: "waiting" };
  if (decision?.decision === "reject") {
    const said = decision.note ? `: ${decision.note}` : ".";
    return outcome("rejected", `A person rejected this call${said}`, "rejected");
  }
  if (decision?.decision === "expire")
    return outcome("rejected", "Nobody approved this call in time, so it was not made.", "expired");
  // What runs is what was approved: another version of the tool, or other arguments, are asked about anew.
  if (decision && (decision.hash ?? approval.request.hash) === hash) return;
  const reason = decision
    ? "The tool or its arguments are no longer what was approved."
    : await whyAsk(tool, input, policyAsks, door);
  if (reason === undefined) return;
  if (door.asking === "refuse") return outcome("skipped", "Not called: a person must approve it.", "rejected");
  if (typeof door.asking === "object") {
    await preApprove(record, hash, reason, input, door.asking.approvedBy, door);
    return;
  }
  const { iteration, index } = record;
  await askPerson({ subject: "call", iteration, index, tool_name: tool.name, input, reason, hash }, door);
  return { kind: "waiting" };
}

async function whyAsk(
  tool: AnyTool,
  input: unknown,
  policyAsks: string | undefined,
  { runId, tenant }: DoorOptions,
): Promise<string | undefined> {
  if (tool.permission === "irreversible") return `${tool.name} cannot be undone.`;
  if (policyAsks !== undefined) return `A policy asks: ${policyAsks}`;
  if (!tool.needsApproval) return;
  try {
    return (await tool.needsApproval(input, { runId, tenant })) ? `${tool.name} asks for these arguments.` : undefined;
  } catch (error) {
    return `Whether ${tool.name} must ask could not be told: ${messageOf(error)}`;
  }
}

async function preApprove(
  record: ToolRecord,
  hash: string,
  reason: string,
  input: unknown,
  by: string,
  door: DoorOptions,
): Promise<void> {
  const { iteration, index, call } = record;
  const approval_id = await askPerson(
    { subject: "call", iteration, index, tool_name: call.name, input, reason, hash },
    door,
  );
  const entry = decisionEntry({ approval_id, tool_name: call.name, hash }, { decision: "approve", by });
  await door.append({ type: "approval.decided", data: { approval_id, decision: "approve", by } }, entry);
}

/** What stands in for the outcome of a call for which it is too late. Throws when the run was stopped. */
function notToBeStarted(begun: boolean, record: ToolRecord, control: RunControl): Passed | undefined {
  if (control.signal.aborted) throw new Interrupted(String(control.cause));
  if (!control.softReached && !control.cut.aborted) return;
  if (!begun) return outcome("skipped", "Not started: the run reached its time limit.", "time");
  const output = "Not tried again after a crash: the run reached its time limit. It may have taken effect.";
  return { kind: "outcome", outcome: { status: "skipped", output, problem: "time", points: record.reserved } };
}

async function recordIntent(
  record: ToolRecord,
  tool: AnyTool,
  input: unknown,
  idempotencyKey: string,
  door: DoorOptions,
): Promise<void> {
  const { iteration, index, call, reserved } = record;
  const asWritten = contentHash(call.input) === contentHash(input);
  await door.append({
    type: "tool.intent",
    data: {
      iteration,
      index,
      call_id: call.id,
      tool_name: tool.name,
      idempotency_key: idempotencyKey,
      ...(reserved > 0 && { points: reserved }),
      ...(!asWritten && { input }),
    },
  });
}

/** An outcome that the model does not see until a person has said so. */
async function decideHeld(record: ToolRecord, held: ToolResult, door: DoorOptions): Promise<Passed> {
  const approval = record.asked.result;
  if (!approval) {
    const { iteration, index, tool_name } = held;
    const reason = `A policy asks before the model sees what ${tool_name} returned.`;
    const about = { iteration, index, tool_name, input: held.output, hash: contentHash(held.output), reason };
    await askPerson({ subject: "result", ...about }, door);
  }
  const decision = approval?.decision;
  if (!decision) return { kind: "waiting" };
  const { status, output, truncated, problem, points } = held;
  if (decision.decision === "approve")
    return { kind: "outcome", outcome: { status, output, own: true, ...given({ truncated, problem, points }) } };
  const said = decision.note ? `: ${decision.note}` : ".";
  const withheld = `The call was made; a person withheld its result${said}`;
  return {
    kind: "outcome",
    outcome: { status: "denied", output: withheld, problem: "withheld", ...given({ points }) },
  };
}

/** settle or refund -> record the outcome -> audit; on the way, the policies look at what came back. */
async function recordOutcome(
  record: ToolRecord,
  outcome: Outcome,
  durationMs: number,
  door: DoorOptions,
): Promise<DoorAnswer> {
  const tool = door.toolbox.get(record.call.name);
  let ended = outcome;
  if (tool && outcome.own && !record.held && door.policies.length > 0) {
    const checked = applyPolicies(door.policies, outcome.output, {
      stage: "result",
      tool: traitsOf(tool),
      seen: door.state.seen,
    });
    await recordFindings(checked, record, "result", door);
    const withheld = (why: string): Outcome => ({
      ...given({ points: outcome.points }),
      status: "denied",
      output: `The call was made; its result is withheld ${why}.`,
      problem: "withheld",
    });
    if (checked.action === "block") ended = withheld(`by the policy ${blocker(checked)}`);
    else if (checked.action === "ask" && door.asking === "refuse") ended = withheld("until a person has looked at it");
    else if (checked.value !== outcome.output) ended = { ...outcome, output: checked.value };
    if (checked.action === "ask" && door.asking === "park") {
      const held = resultOf(record, ended, durationMs, tool);
      await door.append({ type: "tool.held", data: held });
      await decideHeld(record, held, door);
      return { kind: "waiting" };
    }
  }
  const result = resultOf(record, ended, record.held?.duration_ms ?? durationMs, tool);
  await door.append(
    { type: "tool.result", data: result },
    {
      actor: `agent:${door.agentName}`,
      action: "tool.called",
      data: {
        tool: record.call.name,
        status: result.status,
        ...(result.problem && { problem: result.problem }),
        arguments: contentHash(record.intendedInput ?? record.edited?.input ?? record.call.input),
        result: contentHash(result.output),
        ...(record.asked.call && { approval: record.asked.call.request.approval_id }),
      },
    },
  );
  return { kind: "recorded", result };
}

/** Ends an open call that the action budget has no points for. */
export async function skipForBudget(record: ToolRecord, door: DoorOptions): Promise<void> {
  const output = "Not called: the action budget of this task is used up.";
  await recordOutcome(record, { status: "skipped", output, problem: "budget" }, 0, door);
}

function resultOf(record: ToolRecord, ended: Outcome, durationMs: number, tool: AnyTool | undefined): ToolResult {
  const { iteration, index, call } = record;
  const { own, points, doubtful: _, ...outcome } = ended;
  return {
    iteration,
    index,
    call_id: call.id,
    tool_name: call.name,
    ...outcome,
    duration_ms: durationMs,
    ...(points && { points }),
    ...(own && tool?.untrusted && { untrusted: true }),
    ...(own && tool?.private && { private: true }),
  };
}

async function recordFindings(
  { findings }: ChainAnswer,
  { iteration, index, call }: ToolRecord,
  stage: "arguments" | "result",
  door: DoorOptions,
): Promise<void> {
  for (const finding of findings)
    await door.append(
      { type: "policy.applied", data: { stage, ...finding, iteration, index, tool_name: call.name } },
      policyEntry(finding, { stage, tool: call.name }, door.agentName),
    );
}

/** Blocks stand in the audit trail. */
export function policyEntry(
  finding: ChainAnswer["findings"][number],
  about: Record<string, unknown>,
  agentName: string,
): AuditEntry | undefined {
  if (finding.action !== "block") return;
  const { policy, reason } = finding;
  return { actor: `agent:${agentName}`, action: "policy.blocked", data: { policy, reason, ...about } };
}

const blocker = ({ findings }: ChainAnswer): string => {
  const { policy, reason } = findings.find(({ action }) => action === "block")!;
  return `${policy}: ${reason}`;
};

function outcome(status: ToolStatus, output: string, problem: ToolProblem): Passed {
  return { kind: "outcome", outcome: { status, output: shortened(output), problem } };
}

const denied = (message: string): Passed => outcome("denied", message, "permission");
