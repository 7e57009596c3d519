/** Which service the client commands talk to, and with which key. */
import { DataDir } from "../data-dir.ts";
import { CliError, exitCodes } from "../exit.ts";
import type { Target } from "./http.ts";

const defaultUrl = "http://127.0.0.1:8080";

export interface TargetOptions {
  url?: string;
  key?: string;
  dataDir?: string;
}

/**
 * `--url`, else `DROVER_URL`, else the service that `drover dev` runs on the data folder, else port 8080 of this machine. The key that
 * `dev` keeps in that folder, or was given, goes to that very service only, never to another address.
 */
export async function findTarget(options: TargetOptions, env: NodeJS.ProcessEnv = process.env): Promise<Target> {
  const dataDir = new DataDir(options.dataDir, env);
  const given = options.url || env.DROVER_URL || undefined;
  const running = await dataDir.recorded();
  const url = checkUrl(given ?? running?.url ?? defaultUrl);
  let key = options.key || env.DROVER_API_KEY || undefined;
  if (key === undefined && running && url === checkUrl(running.url))
    key = env.DROVER_BOOTSTRAP_KEY || (await dataDir.readKey());
  return { url, key };
}

function checkUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol !== "http:" && url?.protocol !== "https:")
    throw new CliError(exitCodes.usage, `"${text}" is not the URL of a service, such as ${defaultUrl}`);
  return url.href.replace(/\/+$/, "");
}
