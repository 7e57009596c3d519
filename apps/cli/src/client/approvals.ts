/** `drover approvals`, `approve` and `reject`: what people are asked, and their answers. */
import type { ApprovalAnswer } from "@drover/protocol";
import { CliError, exitCodes } from "../exit.ts";
import { legible, oneLine, paint, table } from "../text.ts";
import { commandsFor } from "./event-lines.ts";
import type { DroverClient } from "./http.ts";
import { readJson } from "./json-argument.ts";
import { print, printJson } from "./outcome.ts";

export interface ApprovalsOptions {
  json?: boolean;
  status: string;
  run?: string;
  limit?: number;
  cursor?: string;
}

/** One question whole, or a table of them. */
export async function approvals(
  client: DroverClient,
  id: string | undefined,
  options: ApprovalsOptions,
): Promise<number> {
  if (id !== undefined) {
    const asked = await client.approval(id);
    if (options.json) printJson(asked);
    else print(...wholeOf(asked));
    return exitCodes.done;
  }
  const query = new URLSearchParams();
  if (options.status !== "all") query.set("status", options.status);
  if (options.limit !== undefined) query.set("limit", String(options.limit));
  if (options.cursor !== undefined) query.set("cursor", options.cursor);
  const page = await client.approvals(options.run, query);
  if (options.json) printJson(page);
  else if (page.data.length === 0)
    print(options.status === "all" ? "nothing was asked" : `nothing is ${options.status}`);
  else {
    const rows = page.data.map((asked) => [
      asked.id,
      asked.status,
      asked.task_id,
      asked.tool_name === null ? asked.subject : oneLine(asked.tool_name, 64),
      new Date(asked.expires_at).toLocaleString("sv-SE"),
      oneLine(legible(textOf(asked.input, 0)), 60),
    ]);
    print(...table([["APPROVAL", "STATUS", "TASK", "ABOUT", "EXPIRES", "INPUT"], ...rows]));
    if (page.next_cursor !== null) print(paint("dim", `more: --cursor ${page.next_cursor}`));
  }
  return exitCodes.done;
}

export interface DecideOptions {
  json?: boolean;
  note?: string;
  input?: string;
  done?: boolean;
  result?: string;
}

export async function approve(client: DroverClient, id: string, options: DecideOptions): Promise<number> {
  if (options.result !== undefined && !options.done)
    throw new CliError(exitCodes.usage, "--result is what the call returned: it goes with --done");
  return await decide(client, id, options, {
    decision: options.done ? "done" : "approve",
    ...(options.input !== undefined && { edited_input: await readJson("--input", options.input) }),
    ...(options.result !== undefined && { result: await readJson("--result", options.result) }),
  });
}

export async function reject(client: DroverClient, id: string, options: DecideOptions): Promise<number> {
  return await decide(client, id, options, { decision: "reject" });
}

async function decide(client: DroverClient, id: string, { json, note }: DecideOptions, body: object): Promise<number> {
  const decided = await client.decide(id, { ...body, ...(note !== undefined && { note }) });
  if (json) printJson(decided);
  else print(`${decided.id}  ${decided.status}`, `${decided.task_id}  ${decided.run_status}`);
  return exitCodes.done;
}

function wholeOf(asked: ApprovalAnswer): string[] {
  const facts: [string, string | null | undefined][] = [
    ["task", asked.task_id],
    ["agent", oneLine(asked.agent, 64)],
    ["about", asked.subject],
    ["tool", asked.tool_name && oneLine(asked.tool_name, 64)],
    ["why", oneLine(asked.reason, 1000)],
    ["asked", asked.requested_at],
    ["expires", asked.status === "pending" ? asked.expires_at : null],
    ["decided", asked.decided_at && `${asked.decided_at} by ${oneLine(asked.decided_by, 64)}: ${asked.decision}`],
    ["note", asked.note && oneLine(asked.note, 2000)],
  ];
  const content = (name: string, value: unknown) => ["", `${name}:`, legible(textOf(value, 2))];
  return [
    `${asked.id}  ${paint("bold", asked.status)}`,
    ...facts.flatMap(([name, value]) => (value ? [`  ${name.padEnd(12)}${value}`] : [])),
    ...content("input", asked.input),
    ...(asked.edited_input === undefined ? [] : content("approved with", asked.edited_input)),
    ...(asked.status === "pending" ? ["", ...commandsFor(asked.id, asked.subject)] : []),
  ];
}

const textOf = (value: unknown, indent: number): string =>
  typeof value === "string" ? value : (JSON.stringify(value, null, indent) ?? "");
