/** `drover batch`: many queries submitted as one, how they stand, and their end. */
import { readFile } from "node:fs/promises";
import { text as readAll } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import type { BatchAnswer } from "@drover/protocol";
import { CliError, exitCodes } from "../exit.ts";
import { money, oneLine, paint, table } from "../text.ts";
import { patiently } from "./follow.ts";
import type { DroverClient } from "./http.ts";
import { print, printJson, untilInterrupted, warn } from "./outcome.ts";
import { type PageOptions, pageOf } from "./page.ts";
import { type SettingOptions, settingsOf } from "./settings.ts";

interface WaitOptions {
  json?: boolean;
  wait?: boolean;
  /** Seconds to wait at most. */
  timeout?: number;
}

export async function submit(
  client: DroverClient,
  file: string,
  options: SettingOptions & WaitOptions,
): Promise<number> {
  const body = { queries: await queriesOf(file), ...(await settingsOf(options)) };
  const accepted = await client.submitBatch(body, options.idempotencyKey);
  if (options.wait) return await toEnd(client, accepted.batch_id, options);
  if (options.json) printJson(accepted);
  else
    print(`${accepted.batch_id}  ${accepted.total} queries`, "", `  drover batch status ${accepted.batch_id} --wait`);
  return exitCodes.done;
}

/** JSON Lines: a query, or what `POST /query` takes, on each. @throws CliError naming the line that is not */
async function queriesOf(file: string): Promise<unknown[]> {
  const text =
    file === "-"
      ? await readAll(process.stdin)
      : await readFile(file, "utf8").catch((error: Error) => {
          throw new CliError(exitCodes.usage, `cannot read ${file} (${error.message})`);
        });
  return text.split("\n").flatMap((line, index) => {
    if (line.trim() === "") return [];
    try {
      return [JSON.parse(line) as unknown];
    } catch (error) {
      const wanted = 'a JSON string, or an object such as {"query":"What is 2 + 2?"}';
      throw new CliError(exitCodes.usage, `${file}: line ${index + 1} is not JSON (${(error as Error).message})`, [
        `each line is ${wanted}`,
      ]);
    }
  });
}

export type BatchOptions = WaitOptions & PageOptions;

export async function status(client: DroverClient, id: string, options: BatchOptions): Promise<number> {
  if (options.wait) return await toEnd(client, id, options);
  show(await client.batch(id, pageOf(options)), options);
  return exitCodes.done;
}

export async function cancel(client: DroverClient, id: string, options: BatchOptions): Promise<number> {
  show(await client.cancelBatch(id), options);
  return exitCodes.done;
}

/** Waits for the end and shows it. Exit code 1 when an item failed or was cancelled, 7 when one ended early. */
async function toEnd(client: DroverClient, id: string, options: BatchOptions): Promise<number> {
  const until = performance.now() + (options.timeout ?? Number.POSITIVE_INFINITY) * 1000;
  const advice = [`see it:  drover batch status ${id}`, `end it:  drover batch cancel ${id}`];
  const ended = await untilInterrupted(id, advice, async (signal) => {
    for (let pauseMs = 250, told = -1; ; pauseMs = Math.min(2 * pauseMs, longestPauseMs)) {
      const batch = await patiently(signal, warn, () => client.batch(id, pageOf(options), signal));
      if (batch.finished_at !== null || performance.now() >= until) return batch;
      if (batch.completed_count !== told && process.stderr.isTTY) warn(`${batch.completed_count} of ${batch.total}`);
      told = batch.completed_count;
      await delay(Math.max(0, Math.min(pauseMs, until - performance.now())), undefined, { signal });
    }
  });
  show(ended, options);
  if (ended.finished_at === null) return exitCodes.notFinal;
  const { failed, cancelled, partial } = ended.counts;
  if (failed + cancelled > 0) return exitCodes.failed;
  return partial > 0 ? exitCodes.partial : exitCodes.done;
}

/** The service has no long poll for a batch. */
const longestPauseMs = 2000;

function show(batch: BatchAnswer, { json }: { json?: boolean }): void {
  if (json) {
    printJson(batch);
    return;
  }
  const counts = Object.entries(batch.counts).flatMap(([name, count]) => (count > 0 ? [`${count} ${name}`] : []));
  const rows = batch.data.map(({ task_id, status, cost_usd, query }) => [
    task_id,
    status,
    money(cost_usd),
    oneLine(query, 60),
  ]);
  print(
    `${batch.batch_id}  ${paint("bold", batch.status)}`,
    `  ${batch.completed_count} of ${batch.total} ended: ${counts.join(", ")}; ${money(batch.total_cost_usd)}`,
    "",
    ...table([["TASK", "STATUS", "COST", "QUERY"], ...rows]),
  );
  if (batch.next_cursor !== null) print(paint("dim", `more: --cursor ${batch.next_cursor}`));
}
