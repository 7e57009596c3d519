/** One execution of a tool within its limits: its time, its output's size and shape, and the run's own end. */

import { asThrown, messageOf } from "@drover/telemetry";
import { isIsolated, type Place } from "../isolation/isolated.ts";
import { ProcessLost } from "../isolation/tool-process.ts";
import type { AnyTool } from "../library/tool.ts";
import { defaultTimeoutMs, NothingDone, type ToolContext } from "../library/tool.ts";
import type { RunControl } from "../loop/control.ts";
import type { ToolProblem, ToolResult } from "../loop/events.ts";
import type { ToolRecord } from "../loop/fold.ts";
import type { DoorOptions, Outcome } from "./door.ts";
import { firstBytes, shape, type Written, written } from "./output.ts";
import { openStray } from "./stray.ts";

export { defaultTimeoutMs };

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
  if (!isIsolated(tool))
    return await ending(tool, record, door, async () => {
      const late = () => door.onLate?.({ tool: tool.name });
      const run = (signal: AbortSignal) => tool.execute(input, contextOf(record, idempotencyKey, signal, door));
      return await shape(tool, await within(tool, door, run, late));
    });
  let place: Place;
  try {
    // The tool's own time has not begun yet.
    place = await tool.place(door.control.cut);
  } catch (error) {
    return notStarted(record, door.control) ?? noPlace(messageOf(error), record);
  }
  try {
    // It may have waited for long.
    await door.assertOwned?.();
    return (
      notStarted(record, door.control) ??
      (await ending(tool, record, door, () =>
        within(tool, door, async (signal) => {
          const { written } = await place.run("execute", [input], contextOf(record, idempotencyKey, signal, door));
          return written;
        }),
      ))
    );
  } finally {
    place.leave();
  }
}

/** For a call that waited for its process until it was too late. Throws when the run was stopped. */
function notStarted(record: ToolRecord, control: RunControl): Outcome | undefined {
  if (control.signal.aborted) throw new Interrupted(String(control.cause));
  if (!control.cut.aborted) return;
  const output = "Not started: the run reached its time limit.";
  return { status: "skipped", output, problem: "time", ...pointsOfEarlier(record) };
}

/** There is no process for it: nothing was done. */
const noPlace = (why: string, record: ToolRecord): Outcome => ({
  ...failed(why, record.orphanedAt === undefined ? "nothing_done" : "tool"),
  ...pointsOfEarlier(record),
});

/** What an earlier owner began may have taken effect. */
const pointsOfEarlier = ({ orphanedAt, reserved }: ToolRecord) =>
  orphanedAt === undefined ? {} : { points: reserved };

async function ending(
  tool: AnyTool,
  record: ToolRecord,
  door: DoorOptions,
  run: () => Promise<Written>,
): Promise<Outcome> {
  const charged = { points: record.reserved };
  const free = tool.effect === "pure" ? {} : charged;
  try {
    const output = await run();
    const kept = await keep(output, tool.maxOutputBytes ?? defaultMaxOutputBytes, door);
    return { ...shownOf(output, tool.maxOutputBytes, kept), ...charged, own: true };
  } catch (error) {
    if (error instanceof Interrupted) throw error;
    const doubt = tool.effect === "pure" ? "" : " It may have taken effect all the same.";
    if (error instanceof TimedOut || error instanceof ProcessLost) {
      const message = error instanceof TimedOut ? `The tool was ${error.message}.` : error.message;
      if (tool.effect !== "unsafe") return { ...failed(`${message}${doubt}`), ...free };
      return { ...failed(message), status: "uncertain", ...charged, doubtful: true };
    }
    if (error instanceof NothingDone) return { ...failed(messageOf(error), "nothing_done"), own: true };
    return { ...failed(messageOf(error)), ...free, own: true };
  }
}

type Artifact = NonNullable<ToolResult["artifact"]>;

/**
 * What is more than the model is shown, kept whole (up to a bound). Undefined: it is shown whole, nobody keeps it, or keeping it failed, which
 * is no reason to fail a call that took place. Where policies look at results nothing is kept: they would not have seen it.
 */
async function keep(output: Written, maxBytes: number, door: DoorOptions): Promise<Artifact | undefined> {
  const { artifacts, policies, control } = door;
  if (isShown(output, maxBytes) || !artifacts || policies.some(({ stages }) => stages.includes("result"))) return;
  const stopped = Promise.withResolvers<undefined>();
  const stop = () => stopped.resolve(undefined);
  if (control.signal.aborted) stop();
  control.signal.addEventListener("abort", stop);
  try {
    const id = await Promise.race([artifacts.put(output.text), stopped.promise]);
    if (id === undefined) return;
    const type = output.json && output.whole ? "application/json" : "text/plain";
    return { id, bytes: output.bytes, type, ...(!output.whole && { cut: true }) };
  } catch {
    return;
  } finally {
    control.signal.removeEventListener("abort", stop);
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
 * stopped: at once, whatever the tool makes of its signal. What it returns or throws after that is dropped, and told to `onLate`, unless it
 * only says that it was aborted.
 */
export async function within<T>(
  tool: Pick<AnyTool, "name" | "timeoutMs">,
  { runId, control }: Pick<DoorOptions, "runId" | "control">,
  work: (signal: AbortSignal) => T | Promise<T>,
  onLate?: () => void,
): Promise<T> {
  const timeoutMs = tool.timeoutMs ?? defaultTimeoutMs;
  const stray = openStray({ runId, what: `The tool ${tool.name}` });
  const own = new AbortController();
  const givenUp = Promise.withResolvers<never>();
  givenUp.promise.catch(() => {});
  const timer = setTimeout(() => own.abort(`timed out after ${timeoutMs / 1000} s`), Math.min(timeoutMs, 2 ** 31 - 1));
  const onCut = () => own.abort("stopped, the run is at its time limit");
  const onAbort = () => givenUp.reject(new TimedOut(String(own.signal.reason)));
  own.signal.addEventListener("abort", onAbort);
  control.cut.addEventListener("abort", onCut);
  const working = Promise.resolve().then(() => stray.run(() => work(own.signal)));
  try {
    return await Promise.race([working, givenUp.promise, stray.failed]);
  } catch (thrown) {
    const error = asThrown(thrown);
    if (error instanceof TimedOut)
      working.then(onLate, (given) => {
        const late = asThrown(given);
        if (late !== own.signal.reason && (late as Error | undefined)?.name !== "AbortError") onLate?.();
      });
    if (control.signal.aborted) throw new Interrupted(String(control.cause), { cause: error });
    if (own.signal.aborted) throw error instanceof TimedOut ? error : new TimedOut(String(own.signal.reason));
    throw error;
  } finally {
    stray.close();
    clearTimeout(timer);
    own.signal.removeEventListener("abort", onAbort);
    control.cut.removeEventListener("abort", onCut);
  }
}

/** An output as the log and the model get it: JSON, cut at `maxBytes`, and said to be cut. */
export function bound(output: unknown, maxBytes = defaultMaxOutputBytes): Outcome {
  try {
    return shownOf(written(output), maxBytes);
  } catch (error) {
    return failed(messageOf(error));
  }
}

const isShown = ({ whole, bytes }: Written, maxBytes: number): boolean => whole && bytes <= maxBytes;

function shownOf(output: Written, maxBytes = defaultMaxOutputBytes, artifact?: Artifact): Outcome {
  const { text, bytes, json, whole } = output;
  if (isShown(output, maxBytes)) return { status: "ok", output: json ? jsonOf(text) : text };
  const kept = artifact && `; ${whole ? "the whole is" : `the first ${bytes} are`} kept as artifact ${artifact.id}`;
  const note = `[cut: ${whole ? "" : "more than "}${bytes} bytes, the first ${maxBytes} are shown${kept ?? ""}]`;
  const shown = `${firstBytes(text, maxBytes)}\n${note}`;
  return { status: "ok", output: shown, truncated: true, ...(artifact && { artifact }) };
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
