/** `drover run`: submit a query, and wait for or follow its end. */
import { text as readAll } from "node:stream/consumers";
import type { AcceptedAnswer } from "@drover/protocol";
import { exitCodes } from "../exit.ts";
import type { DroverClient } from "./http.ts";
import { type FollowOptions, followToEnd, print, printJson, showOutcome, waitToEnd } from "./outcome.ts";
import { type SettingOptions, settingsOf } from "./settings.ts";

export interface RunOptions extends FollowOptions, SettingOptions {
  follow?: boolean;
  wait?: boolean;
  /** Seconds to wait at most. */
  timeout?: number;
}

export async function run(client: DroverClient, words: string[], options: RunOptions): Promise<number> {
  const query = words.length === 1 && words[0] === "-" ? await readAll(process.stdin) : words.join(" ");
  const accepted = await client.submit({ query, ...(await settingsOf(options)) }, options.idempotencyKey);
  if (options.follow) {
    if (options.json) printJson(accepted, { line: true });
    else process.stderr.write(`${accepted.task_id}\n`);
    return await followToEnd(client, accepted.task_id, { ...options, after: 0 });
  }
  if (options.wait) {
    const ended = await waitToEnd(client, accepted.task_id, options.timeout);
    return ended ? await showOutcome(client, accepted.task_id, options) : notYet(accepted, options);
  }
  if (options.json) printJson(accepted);
  else print(...whatNext(accepted));
  return exitCodes.done;
}

function whatNext({ task_id, status }: AcceptedAnswer): string[] {
  return [`${task_id}  ${status}`, "", `  drover events ${task_id} --follow`, `  drover result ${task_id}`];
}

function notYet(accepted: AcceptedAnswer, options: RunOptions): number {
  if (options.json) printJson(accepted);
  else process.stderr.write(`${accepted.task_id} has not ended yet; it goes on\n`);
  return exitCodes.notFinal;
}
