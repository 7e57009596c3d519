/**
 * The logs against the books of the world outside: what is finished is never asked for again, what is asked for again has a new owner or a failure
 * to show for it, and no unsafe call takes effect twice.
 *
 * Excepted, and counted: a process that was stopped between its last look at the fence and its request sends that request when it wakes up,
 * whoever owns the run by then. For unsafe calls there is no exception.
 */
import type { LogEvent } from "@drover/harness";
import { atMs, type Evidence, eventsOf, type RunRow, sentByPaused, type Violation } from "./evidence.ts";
import type { ModelRequest, ToolRequest } from "./ledger.ts";
import { callName, isUnsafe } from "./scenario.ts";

export interface Steps {
  violations: Violation[];
  /** Requests of steps that a fault had cut, made again by the next owner. */
  repeated: number;
  /** Requests sent by processes that had been stopped. */
  late: number;
}

export function checkSteps(evidence: Evidence): Steps {
  const result: Steps = { violations: [], repeated: 0, late: 0 };
  const models = Map.groupBy(evidence.ledger.modelRequests, ({ label }) => label);
  const tools = Map.groupBy(evidence.ledger.toolRequests, ({ label }) => label);
  for (const run of evidence.runs) {
    for (const [turn, requests] of Map.groupBy(models.get(run.label) ?? [], ({ turn }) => turn))
      checkModel(run, turn, requests, evidence, result);
    for (const [name, requests] of Map.groupBy(tools.get(run.label) ?? [], (it) =>
      callName(it.label, it.turn, it.index),
    ))
      checkTool(run, name, requests, evidence, result);
    for (const event of eventsOf(run.log, "tool.result")) {
      const name = callName(run.label, event.data.iteration - 1, event.data.index);
      if (event.data.status === "ok" && !evidence.ledger.effects.has(name))
        result.violations.push({
          rule: "what is recorded took place",
          run: run.id,
          text: `the call ${name} never came to the endpoint`,
        });
    }
  }
  return result;
}

function checkModel(run: RunRow, turn: number, requests: ModelRequest[], evidence: Evidence, result: Steps): void {
  const end = eventsOf(run.log, "model.call").find(({ data }) => data.iteration === turn + 1);
  const before = run.log.findLast((event) => event.type === "tool.result" && event.data.iteration === turn);
  const failures = eventsOf(run.log, "model.failed").filter(({ data }) => data.iteration === turn + 1).length;
  const what = `turn ${turn} of ${run.label}`;
  judge(run, what, requests, { before, end, failures }, evidence, result);
  if (new Set(requests.map(({ hash }) => hash)).size > 1)
    result.violations.push({
      rule: "a repeated call has the same prompt",
      run: run.id,
      text: `${what} was asked for with different prompts`,
    });
}

function checkTool(run: RunRow, name: string, requests: ToolRequest[], evidence: Evidence, result: Steps): void {
  const { turn, index, tool } = requests[0]!;
  const end = eventsOf(run.log, "tool.result").find(({ data }) => data.iteration === turn + 1 && data.index === index);
  const before = eventsOf(run.log, "model.call").find(({ data }) => data.iteration === turn + 1);
  const what = `the ${tool} call ${name}`;
  if (new Set(requests.map(({ idempotencyKey }) => idempotencyKey)).size > 1)
    result.violations.push({
      rule: "a repeated call has the same idempotency key",
      run: run.id,
      text: `${what} came with different keys`,
    });
  if (isUnsafe(tool) && requests.length > 1) {
    const times = requests.map(({ sender, at }) => `by ${sender} at ${new Date(at).toISOString()}`).join(", ");
    result.violations.push({
      rule: "no unsafe effect twice",
      run: run.id,
      text: `${what} took effect ${requests.length} times: ${times}`,
    });
  }
  judge(run, what, requests, { before, end, failures: 0 }, evidence, result);
}

/** A step became possible with `before` and is finished with `end`; each owner in between may ask for it once, and once more for each failure. */
function judge(
  run: RunRow,
  what: string,
  requests: { at: number; sender: string }[],
  step: { before: LogEvent | undefined; end: LogEvent | undefined; failures: number },
  { lives }: Evidence,
  result: Steps,
): void {
  const doneAt = step.end ? atMs(step.end) : Number.POSITIVE_INFINITY;
  const [from, to] = [step.before?.seq ?? 0, step.end?.seq ?? Number.POSITIVE_INFINITY];
  const owners =
    eventsOf(run.log, "run.started").filter(({ seq }) => seq > from && seq < to).length + (from > 0 ? 1 : 0);
  const allowed = owners + step.failures;
  const inTime = requests.filter(({ at }) => at <= doneAt);
  const asleep = inTime.filter(({ sender, at }) => sentByPaused(lives, sender, at));
  result.repeated += Math.max(0, inTime.length - 1 - step.failures);
  result.late += Math.min(asleep.length, Math.max(0, inTime.length - allowed));
  if (inTime.length - asleep.length > allowed)
    result.violations.push({
      rule: "no step is asked for twice by one owner",
      run: run.id,
      text: `${what} was asked for ${inTime.length} times by ${owners} owners with ${step.failures} failures`,
    });
  for (const { at, sender } of requests.filter(({ at }) => at > doneAt))
    if (sentByPaused(lives, sender, at)) result.late++;
    else
      result.violations.push({
        rule: "no finished step is repeated",
        run: run.id,
        text: `${what} was finished at ${step.end!.at} and asked for by ${sender} at ${new Date(at).toISOString()}`,
      });
}
