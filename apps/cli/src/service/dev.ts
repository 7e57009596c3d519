/** `drover dev`: the service on this machine until it is told to stop. What `npm start` runs. */
import { DataDir } from "../data-dir.ts";
import { exitCodes } from "../exit.ts";
import { paint } from "../text.ts";
import { watchInterrupts } from "./interrupts.ts";
import { logLines } from "./log-lines.ts";
import { type Service, startService } from "./service.ts";

export interface DevOptions {
  port?: string;
  host?: string;
  redis?: string;
  dataDir?: string;
  json?: boolean;
}

/** The environment of `dev` with its options over it. */
export function withOptions(env: NodeJS.ProcessEnv, options: DevOptions): NodeJS.ProcessEnv {
  return {
    ...env,
    ...(options.port !== undefined && { PORT: options.port }),
    ...(options.host !== undefined && { HOST: options.host }),
    ...(options.redis !== undefined && { REDIS_URL: options.redis }),
  };
}

/** Resolves with the exit code when everything it started is gone. */
export async function dev(options: DevOptions): Promise<number> {
  const interrupts = watchInterrupts();
  const json = options.json ?? !process.stdout.isTTY;
  const log = logLines({ json, write: (text) => void process.stdout.write(text) });
  const dataDir = new DataDir(options.dataDir);
  let service: Service;
  try {
    // Over quickly when it is insisted: what was started so far ends with this process.
    interrupts.insisted.addEventListener("abort", exitNow);
    service = await startService({
      dataDir,
      env: withOptions(process.env, options),
      signal: interrupts.asked,
      onLine: (name, line) => log.write(name, line),
      onNews: (message, level) => log.say(message, undefined, level),
    });
  } catch (error) {
    if (!interrupts.asked.aborted) throw error;
    log.say("stopped before it was ready");
    return exitCodes.done;
  } finally {
    interrupts.insisted.removeEventListener("abort", exitNow);
  }
  const about = {
    url: service.url,
    docs: `${service.url}/docs`,
    queues: `${service.url}/admin/queues`,
    supervisor: process.pid,
    ...service.pids(),
  };
  const key = service.isFirstStart ? { api_key: service.key } : {};
  if (json) log.say("ready", { ...about, ...key });
  else log.say(greeting(service, dataDir));

  const failure = await Promise.race([service.failed, aborted(interrupts.asked)]);
  if (failure !== undefined) log.say(failure, undefined, "error");
  log.say(`stopping; running steps get up to ${service.graceSeconds} s, Ctrl-C again ends them at once`);
  const kill = aborted(interrupts.insisted).then(() => service.kill());
  await Promise.race([service.stop(), kill]);
  log.say("stopped");
  return failure === undefined ? exitCodes.done : exitCodes.failed;
}

const exitNow = () => process.exit(exitCodes.interrupted);

function aborted(signal: AbortSignal): Promise<undefined> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve(undefined);
    signal.addEventListener("abort", () => resolve(undefined));
  });
}

function greeting(service: Service, dataDir: DataDir): string {
  const { url, key, isFirstStart } = service;
  const head = (text: string) => paint("bold", text.padEnd(11));
  const where = dataDir.isDefault ? "" : ` --data-dir ${dataDir.path}`;
  const lines = [
    "",
    paint("green", "Drover is ready."),
    "",
    `  ${head("API")}${url}`,
    `  ${head("Reference")}${url}/docs`,
    `  ${head("Queues")}${url}/admin/queues  ${paint("dim", "(Bull Board; the API key is the password, with any user name)")}`,
  ];
  if (isFirstStart)
    lines.push(
      `  ${head("API key")}${paint("yellow", key!)}`,
      `  ${head("")}${paint("dim", `shown this once; ${dataDir.shownKeyFile} keeps it for the drover commands on this machine`)}`,
      "",
      "  Submit a query:",
      `    curl -s ${url}/query -H 'Authorization: Bearer ${key}' \\`,
      `      -H 'Content-Type: application/json' -d '{"query": "What is 17 * 23?"}'`,
    );
  else {
    const kept = key === undefined ? "" : `, ${dataDir.shownKeyFile} keeps it`;
    const which = process.env.DROVER_BOOTSTRAP_KEY ? "that of DROVER_BOOTSTRAP_KEY" : `made at the first start${kept}`;
    lines.push(`  ${head("API key")}${which}; another: ${paint("cyan", `npx drover keys create${where}`)}`, "");
  }
  lines.push(
    `  ${isFirstStart ? "Or from another terminal" : "Try from another terminal"}:`,
    `    ${paint("cyan", `npx drover run "What is 17 * 23?" --follow${where}`)}`,
    "  The secret that webhooks are signed with:",
    `    ${paint("cyan", `curl -s ${url}/webhooks/secret -H "Authorization: Bearer $(cat ${dataDir.shownKeyFile})"`)}`,
    "",
    paint("dim", "  Ctrl-C stops everything."),
    "",
  );
  return lines.join("\n");
}
