/** `drover retention`: says what is no longer kept, and removes it, in whichever database is meant. Workers do the same by themselves, once an hour. */
import { ConfigurationError, loadConfig } from "@drover/protocol";
import { type Due, type Retention, readRetention, retain, retentionConfig, retentionOf } from "@drover/runs";
import { CliError, exitCodes } from "../exit.ts";
import { table } from "../text.ts";
import { withDatabase } from "./keys.ts";

export async function retention(options: { dataDir?: string; dryRun?: boolean; json?: boolean }): Promise<number> {
  const kept = fromEnvironment();
  return await withDatabase(options, async (pool) => {
    const due = await readRetention(pool, kept);
    const removed = new Map<string, number>();
    const failed: string[] = [];
    if (!options.dryRun) {
      for (let more = true; more && failed.length === 0; ) {
        const pass = await retain(pool, kept, (part, error) => failed.push(`${part}: ${(error as Error).message}`));
        for (const [part, rows] of pass.removed) removed.set(part, (removed.get(part) ?? 0) + rows);
        more = pass.more;
        if (more) process.stderr.write(`${[...removed.values()].reduce((sum, rows) => sum + rows, 0)} rows so far\n`);
      }
    }
    const rows = due.map(({ part, keptDays, rows: count, note }) => ({
      part,
      kept_days: keptDays,
      due: count,
      ...(!options.dryRun && { removed: removed.get(part) ?? 0 }),
      ...(note !== undefined && { note }),
    }));
    if (options.json) print(JSON.stringify({ dry_run: options.dryRun === true, failed, data: rows }, null, 2));
    else show(due, options.dryRun ? undefined : removed);
    if (failed.length > 0)
      throw new CliError(exitCodes.failed, `not all could be removed: ${failed[0]}; repeat it`, failed.slice(1));
    return exitCodes.done;
  });
}

function show(due: Due[], removed: Map<string, number> | undefined): void {
  print(
    ...table([
      ["WHAT", "KEPT", removed ? "REMOVED" : "DUE"],
      ...due.map(({ part, keptDays, rows }) => [
        part,
        `${keptDays} days`,
        String(removed ? (removed.get(part) ?? 0) : rows),
      ]),
    ]),
  );
  for (const { part, note } of due) if (note !== undefined) print(`${part}: ${note}`);
  if (!removed) print("nothing was removed; without --dry-run it is");
}

function fromEnvironment(): Retention {
  try {
    return retentionOf(loadConfig(retentionConfig, process.env));
  } catch (error) {
    if (error instanceof ConfigurationError) throw new CliError(exitCodes.usage, error.message);
    throw error;
  }
}

const print = (...lines: string[]): void => void process.stdout.write(`${lines.join("\n")}\n`);
