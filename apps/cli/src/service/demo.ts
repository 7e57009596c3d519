/**
 * `drover demo`: one run from its submission to its verified webhook, everything over HTTP. Uses the service that runs on the data
 * folder when there is one, else starts one and stops it again.
 */
import { once } from "node:events";
import type { LogEvent } from "@drover/harness";
import type { ResultAnswer } from "@drover/protocol";
import { readableLine } from "@drover/telemetry";
import { followRun } from "../client/follow.ts";
import { DroverClient } from "../client/http.ts";
import { findTarget } from "../client/target.ts";
import { drawTimeline } from "../client/timeline.ts";
import { RunView } from "../client/view.ts";
import { DataDir } from "../data-dir.ts";
import { CliError, exitCodes } from "../exit.ts";
import { duration, money, paint, printable } from "../text.ts";
import { type DevOptions, withOptions } from "./dev.ts";
import { type Interrupts, watchInterrupts } from "./interrupts.ts";
import { freePortNear } from "./port.ts";
import { type ReceivedWebhook, type Receiver, startReceiver, verifyWebhook } from "./receiver.ts";
import { startService } from "./service.ts";

/** The service the demo talks to. */
interface Stage {
  url: string;
  key: string | undefined;
  /** Started by the demo, and stopped by it. */
  isOwn: boolean;
  /** Resolves with the reason when it has failed. */
  failed: Promise<string>;
  stop(): Promise<void>;
  kill(): Promise<void>;
}

interface Seen {
  result: ResultAnswer;
  events: LogEvent[];
  webhook: ReceivedWebhook;
  verified: boolean;
  tamperedRefused: boolean;
}

/** The run and its webhook take a few seconds; this ends a demo that hangs. */
const longestMs = 60_000;
const defaultPort = 8080;

/** Resolves with the exit code when nothing it started is left. */
export async function demo(options: DevOptions): Promise<number> {
  const say = (...lines: string[]) => void (options.json || process.stdout.write(`${lines.join("\n")}\n`));
  const interrupts = watchInterrupts();
  // Whatever runs then ends with this process.
  interrupts.insisted.addEventListener("abort", () => process.exit(exitCodes.interrupted));
  const dataDir = new DataDir(options.dataDir);
  const logs: string[] = [];
  let stage: Stage | undefined;
  let receiver: Receiver | undefined;
  try {
    say(paint("bold", "Drover demo: one run, from its submission to its verified webhook"), "");
    stage = (await join(dataDir)) ?? (await start(dataDir, options, interrupts, logs, say));
    receiver = await startReceiver();
    const failed = new AbortController();
    void stage.failed.then((reason) => failed.abort(new CliError(exitCodes.failed, reason)));
    const over = AbortSignal.any([interrupts.asked, failed.signal, timeLimit()]);
    const seen = await show(stage, receiver, over, say, options.json === true);
    if (options.json) printDocument(seen, stage.url);
    if (!seen.verified || !seen.tamperedRefused)
      throw new CliError(exitCodes.failed, "the webhook's signature is not right");
    await stage.stop();
    say(...goodbye(stage, dataDir));
    return exitCodes.done;
  } catch (error) {
    if (interrupts.asked.aborted) {
      await stage?.kill();
      throw new CliError(exitCodes.interrupted, "interrupted; what the demo started is gone");
    }
    if (logs.length > 0) process.stderr.write(`\nWhat the service wrote last:\n${logs.join("\n")}\n\n`);
    throw error;
  } finally {
    await Promise.all([receiver?.close(), stage?.stop()]);
    interrupts.release();
  }
}

/** The service that runs already. */
async function join(dataDir: DataDir): Promise<Stage | undefined> {
  const running = await dataDir.running();
  if (!running) return undefined;
  const target = await findTarget({ url: running.url, dataDir: dataDir.path });
  const nothing = async () => {};
  return { ...target, isOwn: false, failed: new Promise(() => {}), stop: nothing, kill: nothing };
}

async function start(
  dataDir: DataDir,
  options: DevOptions,
  interrupts: Interrupts,
  logs: string[],
  say: (...lines: string[]) => void,
): Promise<Stage> {
  const startedAt = performance.now();
  const env = withOptions(process.env, options);
  // A busy port is no reason not to show anything, unless it was asked for.
  if (!env.PORT) env.PORT = String(await freePortNear(defaultPort, env.HOST || "127.0.0.1"));
  // Slow enough to be seen.
  env.DEMO_WORD_DELAY_MS ||= "25";
  const service = await startService({
    dataDir,
    env,
    signal: interrupts.asked,
    onLine: (name, line) => {
      logs.push(readableLine(name, line));
      if (logs.length > 20) logs.shift();
    },
    onNews: (message, level = "info") => say(level === "info" ? message : paint("yellow", message)),
  });
  say(`${paint("green", "ready")} after ${duration(performance.now() - startedAt)}: ${service.url}`, "");
  return { ...service, isOwn: true };
}

/** Submits, follows, receives and checks, telling what it does. */
async function show(
  stage: Stage,
  receiver: Receiver,
  over: AbortSignal,
  say: (...lines: string[]) => void,
  quiet: boolean,
): Promise<Seen> {
  const client = new DroverClient(stage);
  const body = {
    query: `What is 17 * 23, and 2^20 / 1024? Then wait 1 second, then read ${receiver.url}/weather`,
    model: "demo/demo",
    callback_url: `${receiver.url}/hook`,
    metadata: { from: "demo" },
  };
  say(heading(1, "Submit a query", `POST ${stage.url}/query`));
  say(...Object.entries(body).map(([name, value]) => `   ${name.padEnd(13)}${text(value)}`));
  const { task_id } = await client.submit(body);
  say(`   ${paint("green", "accepted")}     ${task_id}`, "");

  say(heading(2, "Follow it live", `GET /query/${task_id}/events`));
  const view = new RunView((text) => void (quiet || process.stdout.write(text)));
  const events: LogEvent[] = [];
  for await (const followed of followRun(client, task_id, { signal: over })) {
    view.show(followed);
    if ("event" in followed) events.push(followed.event);
  }
  const endedAt = performance.now();
  const outcome = await client.result(task_id, { toolCalls: true });
  if (!outcome.final || "problem" in outcome) {
    const why = outcome.final ? `${outcome.problem.error.code}: ${outcome.problem.error.message}` : "it has not ended";
    throw new CliError(exitCodes.failed, `the demo's run did not complete (${why})`);
  }
  const { result } = outcome;

  say("", heading(3, "Receive its signed webhook", body.callback_url));
  const webhook = await Promise.race([receiver.received, rejecting(over)]);
  const secret = await client.webhookSecret();
  const { type } = JSON.parse(webhook.body) as { type: string };
  say(
    `   received     ${type}, ${duration(performance.now() - endedAt)} after the end, webhook-id ${webhook.headers["webhook-id"]}`,
  );
  const verdict = verifyWebhook(webhook, secret);
  say(
    verdict.ok
      ? `   ${paint("green", "verified")}     its signature, with the standardwebhooks library and the secret of GET /webhooks/secret`
      : `   ${paint("red", "not verified")} ${verdict.why}`,
  );
  const tampered = verifyWebhook({ ...webhook, body: webhook.body.replace(type, "query.tampered") }, secret);
  say(
    `   ${tampered.ok ? paint("red", "accepted") : paint("green", "refused ")}     the same with a changed body${tampered.ok ? "" : ` (${tampered.why})`}`,
    "",
  );

  const { tokens_used: tokens } = result;
  say(heading(4, "The result", `GET /query/result/${task_id}`));
  say(
    ...printable(result.output ?? "")
      .split("\n")
      .map((line) => `   ${line}`),
    "",
  );
  say(
    `   ${result.status}, ${money(result.cost_usd)} (the demo model is free), ${tokens.total} tokens (${tokens.input} in, ${tokens.output} out), ` +
      `${result.iterations} turns, ${duration(result.duration_seconds * 1000)}`,
    "",
    `   ${paint("bold", "Timeline")}`,
    ...drawTimeline(events).map((line) => `   ${line}`),
    "",
  );
  return { result, events, webhook, verified: verdict.ok, tamperedRefused: !tampered.ok };
}

const heading = (number: number, title: string, detail: string): string =>
  `${paint("bold", `${number}. ${title}`)}  ${paint("dim", detail)}`;

const text = (value: unknown): string => (typeof value === "string" ? value : JSON.stringify(value));

function goodbye({ url, isOwn }: Stage, dataDir: DataDir): string[] {
  const where = isOwn
    ? `The service listened on ${url} and is stopped again; its data stays in ${dataDir.path}.`
    : `The service at ${url} was running already, and goes on.`;
  const next: [string, string][] = [
    ...(isOwn ? [["npm start", "the same service, to stay"] as [string, string]] : []),
    ['npx drover run "What is 6 * 7?" --follow', "from another terminal, while it runs"],
    ["npx drover list", "this run is among them"],
    [`${url}/docs`, isOwn ? "the API's reference, after npm start" : "the API's reference"],
    [
      "ANTHROPIC_API_KEY=… npm start",
      "a real model (also OPENAI_API_KEY, GOOGLE_GENERATIVE_AI_API_KEY, OLLAMA_BASE_URL)",
    ],
  ];
  return [where, "", "Next:", ...next.map(([what, why]) => `   ${paint("cyan", what.padEnd(42))} ${why}`)];
}

function printDocument({ result, events, webhook, verified, tamperedRefused }: Seen, url: string): void {
  const { headers, body } = webhook;
  const received = {
    id: headers["webhook-id"],
    body: JSON.parse(body) as unknown,
    verified,
    tampered_refused: tamperedRefused,
  };
  process.stdout.write(
    `${JSON.stringify({ url, task_id: result.task_id, result, webhook: received, events }, null, 2)}\n`,
  );
}

function timeLimit(): AbortSignal {
  const limit = new AbortController();
  const reason = new CliError(exitCodes.failed, `the demo did not come to its end within ${longestMs / 1000} s`);
  setTimeout(() => limit.abort(reason), longestMs).unref();
  return limit.signal;
}

async function rejecting(signal: AbortSignal): Promise<never> {
  if (!signal.aborted) await once(signal, "abort");
  throw signal.reason;
}
