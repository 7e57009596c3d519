/** The client commands that look at runs or end them: `status`, `result`, `events`, `list`, `cancel`. */
import type { StatusAnswer } from "@drover/protocol";
import { CliError, exitCodes } from "../exit.ts";
import { duration, money, oneLine, paint, printable, table } from "../text.ts";
import type { DroverClient } from "./http.ts";
import { type FollowOptions, followToEnd, print, printJson, showOutcome, waitToEnd, whatToDo } from "./outcome.ts";
import { RunView } from "./view.ts";

export interface LookOptions extends FollowOptions {
  wait?: boolean;
  /** Seconds to wait at most. */
  timeout?: number;
  follow?: boolean;
  after?: number;
}

/** The exit code says whether the service answered, not how the run stands: that is in the answer. */
export async function status(client: DroverClient, id: string, options: LookOptions): Promise<number> {
  await waitIfAsked(client, id, options);
  const answer = await client.status(id);
  if (options.json) printJson(answer);
  else print(...statusLines(answer));
  return exitCodes.done;
}

export async function result(client: DroverClient, id: string, options: LookOptions): Promise<number> {
  await waitIfAsked(client, id, options);
  return await showOutcome(client, id, options);
}

export async function events(client: DroverClient, id: string, options: LookOptions): Promise<number> {
  let after = options.after ?? 0;
  if (options.follow) return await followToEnd(client, id, { ...options, after });
  const view = options.json ? undefined : new RunView((text) => process.stdout.write(text), id);
  for (;;) {
    const page = await client.events(id, after);
    for (const event of page.data) {
      if (view) view.show({ event });
      else printJson(event, { line: true });
      after = event.seq;
    }
    if (page.data.length === 0 || page.next_cursor === null) return exitCodes.done;
  }
}

export async function cancel(client: DroverClient, id: string, options: LookOptions): Promise<number> {
  const answer = await client.cancel(id);
  if (options.json) printJson(answer);
  else if (answer.cancel_requested) print(`${id}  ${answer.status}, its worker has been told to stop`);
  else print(`${id}  ${answer.status}${answer.status === "cancelled" ? "" : " before it could be cancelled"}`);
  return exitCodes.done;
}

export interface ListOptions {
  json?: boolean;
  status?: string[];
  agent?: string;
  user?: string;
  metadata?: Record<string, string>;
  createdAfter?: string;
  createdBefore?: string;
  limit?: number;
  cursor?: string;
}

export async function list(client: DroverClient, options: ListOptions): Promise<number> {
  const query = new URLSearchParams();
  const add = (name: string, value: string | number | undefined) =>
    value !== undefined && query.append(name, String(value));
  add("status", options.status?.join(","));
  add("agent", options.agent);
  add("user_id", options.user);
  for (const [key, value] of Object.entries(options.metadata ?? {})) add(`metadata.${key}`, value);
  add("created_after", options.createdAfter);
  add("created_before", options.createdBefore);
  add("limit", options.limit);
  add("cursor", options.cursor);
  const page = await client.list(query);
  if (options.json) printJson(page);
  else if (page.data.length === 0) print("no runs");
  else {
    const rows = page.data.map((run) => [
      run.task_id,
      run.stop_reason ? `${run.status} (${run.stop_reason})` : run.status,
      oneLine(run.agent, 64),
      new Date(run.created_at).toLocaleString("sv-SE"),
      money(run.cost_usd),
    ]);
    print(...table([["TASK", "STATUS", "AGENT", "CREATED", "COST"], ...rows]));
    if (page.next_cursor !== null) print(paint("dim", `more: --cursor ${page.next_cursor}`));
  }
  return exitCodes.done;
}

async function waitIfAsked(client: DroverClient, id: string, options: LookOptions): Promise<void> {
  if (!options.wait || (await waitToEnd(client, id, options.timeout))) return;
  if (options.json) printJson(await client.status(id));
  throw new CliError(exitCodes.notFinal, `${id} has not ended yet; it goes on`);
}

const waitsFor = ({ waiting_for, waiting_level }: StatusAnswer) =>
  waiting_level === undefined ? waiting_for : `${waiting_for} (${waiting_level})`;

function statusLines(run: StatusAnswer): string[] {
  const { progress, result, error } = run;
  const since = (from: string, to: string | null) => duration((to ? Date.parse(to) : Date.now()) - Date.parse(from));
  const facts: [string, string | false | undefined | null][] = [
    ["agent", oneLine(run.agent, 64)],
    ["undoes", run.of_run],
    ["retry of", run.retry_of],
    ["waiting for", run.waiting_for && `${waitsFor(run)}  (${whatToDo(run.task_id, run.waiting_for)})`],
    ["why", run.reason && `${oneLine(run.reason.text, 300)} Since ${run.reason.since}.`],
    ["attempt", run.attempt > 1 && String(run.attempt)],
    ["next try", run.next_attempt_at],
    ["cancel", run.cancel_requested && "asked for, its worker has been told"],
    [
      "progress",
      `${progress.steps} steps in ${progress.iterations} turns, last event ${progress.last_event ?? "none"}`,
    ],
    ["cost", `${money(run.cost_usd)}, ${run.tokens_used.total} tokens`],
    ["created", run.created_at],
    ["took", run.started_at && since(run.started_at, run.finished_at)],
    ["user", run.user_id && oneLine(run.user_id)],
    ["metadata", Object.keys(run.metadata).length > 0 && oneLine(run.metadata, 200)],
    ["error", error && `${error.code}: ${oneLine(error.message, 300)}`],
    ["so far", !result && progress.partial_output !== null && oneLine(progress.partial_output, 200)],
  ];
  const lines = facts.flatMap(([name, value]) => (value ? [`  ${name.padEnd(12)}${value}`] : []));
  const reason = run.stop_reason ? ` (${run.stop_reason})` : "";
  const output = result?.output != null ? ["", printable(result.output)] : [];
  return [`${run.task_id}  ${paint("bold", run.status)}${reason}`, ...lines, ...output];
}
