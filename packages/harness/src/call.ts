/**
 * The one door to a side effect: every tool call of every kind passes here. validate -> record the intent -> execute in its
 * limits -> record the outcome. A failure is a result that the model sees; only a lost log or a stopped run leaves by throwing.
 */
import type { RunControl } from "./control.ts";
import type { EventData, NewEvent } from "./events.ts";
import type { ToolRecord } from "./fold.ts";
import type { AnyTool, Toolbox } from "./registry.ts";

export interface DoorOptions {
  runId: string;
  tenant: string;
  workspace: string;
  toolbox: Toolbox;
  control: RunControl;
  /** Resolves once the event is durable. */
  append(event: NewEvent): Promise<void>;
  /** Throws when this process may no longer act for the run; may wait until it knows. Asked directly before an idempotent or unsafe effect. */
  assertOwned?(): void | Promise<void>;
}

type Outcome = Pick<EventData["tool.result"], "status" | "output" | "truncated">;

const defaultTimeoutMs = 60_000;
const defaultMaxOutputBytes = 65_536;
const longestMessage = 4000;
/** Deeper JSON is kept as its text: what comes after (providers' SDKs, Postgres) reads JSON recursively. */
const deepestOutput = 100;

/** Thrown out of a call when the run was stopped before the tool ended: no outcome is recorded. */
export class Interrupted extends Error {}

/** Carries out one call and records it. After a crash in between, `effect` decides what resuming may do. */
export async function callTool(record: ToolRecord, options: DoorOptions): Promise<void> {
  const startedAt = performance.now();
  const outcome = await passDoor(record, options);
  await recordOutcome(record, outcome, performance.now() - startedAt, options);
}

/** Whether resuming this call needs a person: it must not run twice, it may have begun, nobody knows how it ended. */
export function isUncertain(record: ToolRecord, toolbox: Toolbox): boolean {
  return record.intended && !record.result && toolbox.get(record.call.name)?.effect !== "idempotent";
}

async function passDoor(record: ToolRecord, options: DoorOptions): Promise<Outcome> {
  const { call } = record;
  if (call.invalid !== undefined) return failure(call.invalid);
  const tool = options.toolbox.get(call.name);
  if (!tool)
    return failure(
      `There is no tool "${call.name}". Tools: ${options.toolbox.specs.map((spec) => spec.name).join(", ") || "none"}.`,
    );
  let input: unknown;
  try {
    // A tool may change what it is given; the conversation must not change with it.
    const parsed = await tool.input.safeParseAsync(structuredClone(call.input));
    if (!parsed.success) {
      const problems = parsed.error.issues.map((issue) => `${issue.path.join(".") || "input"}: ${issue.message}`);
      return failure(`The arguments are not valid. ${problems.join("; ")}`);
    }
    input = parsed.data;
  } catch (error) {
    return failure(`The arguments could not be checked: ${messageOf(error)}`);
  }
  const begun = record.intended;
  const tooLate = notToBeStarted(options.control, begun);
  if (tooLate) return tooLate;
  const idempotencyKey = record.idempotencyKey ?? `${options.runId}:${record.iteration}:${record.index}`;
  if (tool.effect !== "pure") {
    if (!begun) {
      const { iteration, index } = record;
      await options.append({
        type: "tool.intent",
        data: { iteration, index, call_id: call.id, tool_name: call.name, idempotency_key: idempotencyKey },
      });
    }
    await options.assertOwned?.();
    const overtaken = notToBeStarted(options.control, begun);
    if (overtaken) return overtaken;
  }
  return await execute(tool, input, record, idempotencyKey, options);
}

/** What stands in for the outcome of a call for which it is too late. Throws when the run was stopped. */
function notToBeStarted(control: RunControl, begun: boolean): Outcome | undefined {
  if (control.signal.aborted) throw new Interrupted(String(control.cause));
  if (!control.softReached && !control.cut.aborted) return undefined;
  const output = begun
    ? "Not tried again after a crash: the run reached its time limit. It may have taken effect."
    : "Not started: the run reached its time limit.";
  return { status: "skipped", output };
}

async function execute(
  tool: AnyTool,
  input: unknown,
  record: ToolRecord,
  idempotencyKey: string,
  options: DoorOptions,
): Promise<Outcome> {
  const { control } = options;
  const timeoutMs = tool.timeoutMs ?? defaultTimeoutMs;
  const own = new AbortController();
  let giveUp!: (error: Error) => void;
  const givenUp = new Promise<never>((_, reject) => {
    giveUp = reject;
  });
  const timer = setTimeout(() => own.abort(`timed out after ${timeoutMs / 1000} s`), Math.min(timeoutMs, 2 ** 31 - 1));
  const onCut = () => own.abort("stopped, the run is at its time limit");
  const onAbort = () => giveUp(new Interrupted(String(own.signal.reason)));
  own.signal.addEventListener("abort", onAbort);
  control.cut.addEventListener("abort", onCut);
  try {
    const work = Promise.resolve().then(() =>
      tool.execute(input, {
        runId: options.runId,
        tenant: options.tenant,
        callId: record.call.id,
        idempotencyKey,
        signal: own.signal,
        workspace: options.workspace,
      }),
    );
    return bound(await Promise.race([work, givenUp]), tool.maxOutputBytes ?? defaultMaxOutputBytes);
  } catch (error) {
    if (control.signal.aborted) throw new Interrupted(String(control.cause), { cause: error });
    if (own.signal.aborted) {
      const doubt = tool.effect === "pure" ? "" : " It may have taken effect all the same.";
      return failure(`The tool was ${own.signal.reason}.${doubt}`);
    }
    return failure(messageOf(error));
  } finally {
    clearTimeout(timer);
    own.signal.removeEventListener("abort", onAbort);
    control.cut.removeEventListener("abort", onCut);
    // A tool that ignores its signal may still reject long after: nobody listens any more, and that is right.
    givenUp.catch(() => {});
  }
}

function bound(output: unknown, maxBytes: number): Outcome {
  let text: string | undefined;
  try {
    text = typeof output === "string" ? output.toWellFormed() : JSON.stringify(output ?? null);
  } catch (error) {
    return failure(`The tool's output is not JSON: ${messageOf(error)}`);
  }
  if (text === undefined) return failure("The tool's output is not JSON.");
  const bytes = Buffer.byteLength(text);
  if (bytes <= maxBytes) return { status: "ok", output: typeof output === "string" ? text : jsonOf(text) };
  const kept = Buffer.from(text)
    .subarray(0, maxBytes)
    .toString("utf8")
    .replace(/\uFFFD+$/, "");
  return { status: "ok", output: `${kept}\n[cut: ${bytes} bytes, the first ${maxBytes} are shown]`, truncated: true };
}

/** The output as the log will give it back, so that a resumed prompt is the same: no Date, no class, no `undefined` in it. */
function jsonOf(text: string): unknown {
  const value: unknown = JSON.parse(text);
  return isDeeper(value, deepestOutput) ? text : value;
}

function isDeeper(value: unknown, than: number): boolean {
  if (typeof value !== "object" || value === null) return false;
  return than === 0 || Object.values(value).some((inner) => isDeeper(inner, than - 1));
}

async function recordOutcome(
  record: ToolRecord,
  outcome: Outcome,
  durationMs: number,
  options: Pick<DoorOptions, "append">,
): Promise<void> {
  const { iteration, index, call } = record;
  await options.append({
    type: "tool.result",
    data: { iteration, index, call_id: call.id, tool_name: call.name, ...outcome, duration_ms: Math.round(durationMs) },
  });
}

function failure(message: string): Outcome {
  return { status: "error", output: message.slice(0, longestMessage).toWellFormed() };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message || error.name : String(error);
}
