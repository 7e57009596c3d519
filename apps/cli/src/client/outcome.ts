/** How client commands follow a run, wait for it and show what came of it; each with the exit code a script can use. */
import type { ResultAnswer } from "@drover/protocol";
import { CliError, type ExitCode, exitCodes } from "../exit.ts";
import { duration, money, oneLine, paint, printable } from "../text.ts";
import { followRun, patiently } from "./follow.ts";
import type { DroverClient, Outcome } from "./http.ts";
import { RunView } from "./view.ts";

export interface FollowOptions {
  json?: boolean;
  toolCalls?: boolean;
}

/** Human text, a line each. */
export function print(...lines: string[]): void {
  process.stdout.write(`${lines.join("\n")}\n`);
}

/** One JSON document; on one line where more follow. */
export function printJson(value: unknown, options: { line?: boolean } = {}): void {
  process.stdout.write(`${JSON.stringify(value, null, options.line ? undefined : 2)}\n`);
}

/**
 * Shows the run as it happens, until its end or Ctrl-C, which leaves it going. JSON: a line for each event, then the result's.
 * @returns the exit code of the run's end
 */
export async function followToEnd(
  client: DroverClient,
  id: string,
  options: FollowOptions & { after: number },
): Promise<ExitCode> {
  const view = options.json ? undefined : new RunView((text) => process.stdout.write(text), id);
  const onTrouble = (message: string) => (view ? view.note(message) : warn(message));
  const outcome = await untilInterrupted(id, ofRun(id), async (signal) => {
    try {
      for await (const followed of followRun(client, id, { after: options.after, signal, onTrouble })) {
        if (view) view.show(followed);
        else if ("event" in followed) printJson(followed.event, { line: true });
      }
    } finally {
      view?.close();
    }
    return await patiently(signal, warn, () => client.result(id, options));
  });
  if (options.json && outcome.final) printJson(documentOf(outcome), { line: true });
  return codeOf(outcome);
}

/** Resolves with true when the run is final, false when `limitSeconds` passed before. Ctrl-C ends the waiting and not the run. */
export async function waitToEnd(
  client: DroverClient,
  id: string,
  limitSeconds = Number.POSITIVE_INFINITY,
): Promise<boolean> {
  const until = performance.now() + limitSeconds * 1000;
  return await untilInterrupted(id, ofRun(id), async (signal) => {
    let saidWaiting = false;
    for (;;) {
      const left = (until - performance.now()) / 1000;
      if (left <= 0) return false;
      const { finished_at, waiting_for } = await patiently(signal, warn, () =>
        client.status(id, Math.min(waitSeconds, left), signal),
      );
      if (finished_at !== null) return true;
      if (waiting_for !== undefined && !saidWaiting) warn(`${id} waits: ${whatToDo(id, waiting_for)}`);
      saidWaiting = waiting_for !== undefined;
    }
  });
}

/** One look at a run whose end is waited for, seconds; so soon it is noticed that the run needs somebody. */
const waitSeconds = 5;

/** The command that moves a waiting run. */
export const whatToDo = (id: string, waitingFor: string): string =>
  waitingFor === "approval" ? `drover approvals --run ${id}` : `drover budget --run ${id}, or drover budget`;

/** Prints the result there is: the output on standard output, the rest on standard error. */
export async function showOutcome(client: DroverClient, id: string, options: FollowOptions): Promise<ExitCode> {
  const outcome = await client.result(id, options);
  if (!outcome.final) {
    if (options.json) printJson(await client.status(id));
    else warn(`${id} has not ended yet; follow it with: drover events ${id} --follow`);
    return exitCodes.notFinal;
  }
  const { result } = outcome;
  if (options.json) printJson(documentOf(outcome));
  else {
    if (result.output !== null) print(printable(result.output));
    const facts = paint("dim", factsOf(result), process.stderr);
    if ("problem" in outcome) warn(`${facts}  ${paint("red", reasonOf(outcome.problem.error), process.stderr)}`);
    else if (result.status === "partial")
      warn(`${facts}  ${paint("yellow", `partial: ${result.stop_reason}`, process.stderr)}`);
    else warn(facts);
  }
  return codeOf(outcome);
}

export const warn = (line: string): void => void process.stderr.write(`${line}\n`);

const reasonOf = ({ code, message }: { code: string; message: string }): string => printable(`${code}: ${message}`);

/** The result, with the error of a run that failed or was cancelled. */
const documentOf = (outcome: Extract<Outcome, { final: true }>) =>
  "problem" in outcome ? { ...outcome.result, error: outcome.problem.error } : outcome.result;

function factsOf(result: ResultAnswer): string {
  const tools = result.tools_called.length > 0 ? `, tools: ${oneLine(result.tools_called.join(", "), 300)}` : "";
  return `${duration(result.duration_seconds * 1000)}, ${money(result.cost_usd)}, ${result.tokens_used.total} tokens${tools}`;
}

function codeOf(outcome: Outcome): ExitCode {
  if (!outcome.final) return exitCodes.notFinal;
  if ("problem" in outcome) return exitCodes.failed;
  return outcome.result.status === "partial" ? exitCodes.partial : exitCodes.done;
}

/** @throws CliError at Ctrl-C, which ends the watching and not the run */
/** Ends the waiting, and not what is waited for, with Ctrl-C; `advice` says how to see it and how to end it. */
export async function untilInterrupted<T>(
  id: string,
  advice: string[],
  body: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const stop = new AbortController();
  const onSignal = () => stop.abort(new Error("interrupted"));
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, onSignal);
  try {
    return await body(stop.signal);
  } catch (error) {
    if (!stop.signal.aborted) throw error;
    throw new CliError(exitCodes.interrupted, `${id} goes on`, advice);
  } finally {
    for (const signal of ["SIGINT", "SIGTERM"] as const) process.off(signal, onSignal);
  }
}

const ofRun = (id: string): string[] => [`see it:  drover events ${id} --follow`, `end it:  drover cancel ${id}`];
