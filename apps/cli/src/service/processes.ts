/** `drover api`, `drover worker`, `drover migrate`: one duty each, on the database that DATABASE_URL names. */

import { migrateQueue } from "@drover/queue";
import { grantAppRole, latestMigration, migrate } from "@drover/storage";
import { CliError, exitCodes } from "../exit.ts";
import { databaseTrouble } from "./database.ts";

/** Becomes the process; its own signal handling ends it. */
export async function runProcess(name: "api" | "worker"): Promise<number> {
  requireDatabaseUrl();
  await import(new URL("./main.ts", import.meta.resolve(`@drover/${name}`)).href);
  return exitCodes.done;
}

export async function migrateDatabase(options: { json?: boolean }): Promise<number> {
  const url = process.env.DATABASE_DIRECT_URL || requireDatabaseUrl();
  const queueToo = !process.env.REDIS_URL;
  const role = process.env.DROVER_APP_ROLE;
  let ran: string[];
  try {
    ran = await migrate(url);
    if (queueToo) await migrateQueue(url);
    if (role) await grantAppRole(url, role, queueToo ? ["bullmq"] : []);
  } catch (error) {
    throw databaseTrouble(url, error);
  }
  const answer = { ran, schema: latestMigration, queue: queueToo ? "postgres" : "redis", ...(role && { role }) };
  if (options.json) process.stdout.write(`${JSON.stringify(answer, null, 2)}\n`);
  else {
    const did = ran.length > 0 ? `ran ${ran.join(", ")}` : `nothing to do, the schema is at ${latestMigration}`;
    const queue = queueToo ? "; BullMQ's tables are up to date" : "";
    process.stdout.write(`${did}${queue}${role ? `; ${role} may use them` : ""}\n`);
  }
  return exitCodes.done;
}

function requireDatabaseUrl(): string {
  const url = process.env.DATABASE_URL;
  if (!url)
    throw new CliError(
      exitCodes.usage,
      "DATABASE_URL is not set: the URL of a Postgres, postgres://user:password@host/database",
      ["without a Postgres of your own, `drover dev` brings one"],
    );
  if (!URL.canParse(url) || !/^postgres(ql)?:$/.test(new URL(url).protocol))
    throw new CliError(exitCodes.usage, "DATABASE_URL must be a postgres:// or postgresql:// URL");
  return url;
}
