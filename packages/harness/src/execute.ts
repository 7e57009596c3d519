/** One execution of a tool within its limits: its time, its output's size and shape, and the run's own end. */
import type { RunControl } from "./control.ts";
import type { DoorOptions, Outcome } from "./door.ts";
import type { ToolProblem } from "./events.ts";
import type { ToolRecord } from "./fold.ts";
import type { AnyTool } from "./registry.ts";
import { NothingDone, type ToolContext } from "./tool.ts";

export const defaultTimeoutMs = 60_000;
const defaultMaxOutputBytes = 65_536;
const longestMessage = 4000;
/** Deeper JSON is kept as its text: what comes after (providers' SDKs, Postgres) reads JSON recursively. */
const deepestOutput = 100;

/** Thrown out of a call when the run was stopped before the tool ended: no outcome is recorded. */
export class Interrupted extends Error {}

/** Thrown by `within` when the tool's own time, or the run's, was up. */
class TimedOut extends Error {}

/** A tool's arguments by its schema. A tool may change what it is given; the conversation must not change with it. */
export async function parseInput(tool: AnyTool, given: unknown): Promise<{ input: unknown } | { problem: string }> {
  try {
    const parsed = await tool.input.safeParseAsync(structuredClone(given));
    if (parsed.success) return { input: parsed.data };
    const problems = parsed.error.issues.map((issue) => `${issue.path.join(".") || "input"}: ${issue.message}`);
    return { problem: `The arguments are not valid. ${problems.join("; ")}` };
  } catch (error) {
    return { problem: `The arguments could not be checked: ${messageOf(error)}` };
  }
}

/** Runs the tool and says how it ended, and what it is charged: a call that cannot have had an effect costs nothing. */
export async function execute(
  tool: AnyTool,
  input: unknown,
  idempotencyKey: string,
  record: ToolRecord,
  door: DoorOptions,
): Promise<Outcome> {
  const charged = { points: record.reserved };
  const free = tool.effect === "pure" ? {} : charged;
  try {
    const output = await within(tool, door.control, (signal) =>
      tool.execute(input, contextOf(record, idempotencyKey, signal, door)),
    );
    const shown = await declared(tool, output);
    return { ...shown, ...(shown.status === "ok" ? charged : free), own: true };
  } catch (error) {
    if (error instanceof Interrupted) throw error;
    if (error instanceof TimedOut) {
      const doubt = tool.effect === "pure" ? "" : " It may have taken effect all the same.";
      return { ...failed(`The tool was ${error.message}.${doubt}`), ...free };
    }
    if (error instanceof NothingDone) return { ...failed(messageOf(error), "nothing_done"), own: true };
    return { ...failed(messageOf(error)), ...free, own: true };
  }
}

export function contextOf(
  record: ToolRecord,
  idempotencyKey: string,
  signal: AbortSignal,
  { runId, tenant, workspace }: DoorOptions,
): ToolContext {
  return { runId, tenant, callId: record.call.id, idempotencyKey, signal, workspace };
}

/**
 * Resolves with what `work` returns within the tool's time. Throws `TimedOut` when its time or the run's is up, `Interrupted` when the run was
 * stopped: at once, whatever the tool makes of its signal.
 */
export async function within<T>(
  tool: Pick<AnyTool, "timeoutMs">,
  control: RunControl,
  work: (signal: AbortSignal) => T | Promise<T>,
): Promise<T> {
  const timeoutMs = tool.timeoutMs ?? defaultTimeoutMs;
  const own = new AbortController();
  const givenUp = Promise.withResolvers<never>();
  // A tool that ignores its signal may still reject long after: nobody listens any more, and that is right.
  givenUp.promise.catch(() => {});
  const timer = setTimeout(() => own.abort(`timed out after ${timeoutMs / 1000} s`), Math.min(timeoutMs, 2 ** 31 - 1));
  const onCut = () => own.abort("stopped, the run is at its time limit");
  const onAbort = () => givenUp.reject(new TimedOut(String(own.signal.reason)));
  own.signal.addEventListener("abort", onAbort);
  control.cut.addEventListener("abort", onCut);
  try {
    return await Promise.race([Promise.resolve().then(() => work(own.signal)), givenUp.promise]);
  } catch (error) {
    if (control.signal.aborted) throw new Interrupted(String(control.cause), { cause: error });
    if (own.signal.aborted) throw error instanceof TimedOut ? error : new TimedOut(String(own.signal.reason));
    throw error;
  } finally {
    clearTimeout(timer);
    own.signal.removeEventListener("abort", onAbort);
    control.cut.removeEventListener("abort", onCut);
  }
}

/** The output by the tool's own schema, where it has one. */
async function declared(tool: AnyTool, output: unknown): Promise<Outcome> {
  let shown = output;
  if (tool.output) {
    const parsed = await tool.output.safeParseAsync(output);
    if (!parsed.success) {
      const problems = parsed.error.issues.map((issue) => `${issue.path.join(".") || "output"}: ${issue.message}`);
      return failed(`The tool returned something else than it declares. ${problems.join("; ")}`);
    }
    shown = parsed.data;
  }
  return bound(shown, tool.maxOutputBytes);
}

/** An output as the log and the model get it: JSON, cut at `maxBytes`, and said to be cut. */
export function bound(output: unknown, maxBytes = defaultMaxOutputBytes): Outcome {
  let text: string | undefined;
  try {
    text = typeof output === "string" ? output.toWellFormed() : JSON.stringify(output ?? null);
  } catch (error) {
    return failed(`The tool's output is not JSON: ${messageOf(error)}`);
  }
  if (text === undefined) return failed("The tool's output is not JSON.");
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

function failed(message: string, problem: ToolProblem = "tool"): Outcome {
  return { status: "error", output: shortened(message), problem };
}

/** A message of a length a model can be given. */
export const shortened = (message: string): string => message.slice(0, longestMessage).toWellFormed();

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message || error.name : String(error);
}
