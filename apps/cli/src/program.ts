/** Every command with its options and help. What a command does is loaded when it is used, so that `--help` is quick. */
import { createRequire } from "node:module";
import { Command, InvalidArgumentError, Option } from "commander";
import type { DroverClient } from "./client/http.ts";
import type { LookOptions } from "./client/look.ts";
import { exitCodes, exitMeanings } from "./exit.ts";

const { version } = createRequire(import.meta.url)("../package.json") as { version: string };

/** `onExit` gets the code of the command that ran. */
export function createProgram(onExit: (code: number) => void): Command {
  const program = new Command("drover")
    .description("Background jobs for AI agents: durable runs, limits, retries, signed webhooks.")
    .version(version)
    .exitOverride()
    .showHelpAfterError("(--help shows how it is used)")
    .configureHelp({ sortSubcommands: false, helpWidth: Math.min(process.stdout.columns ?? 100, 110) })
    .addHelpText("after", `\n${exitCodeHelp()}\n\nMore: docs/cli.md`);

  const run = (action: () => Promise<number>) => action().then(onExit);
  processCommands(program, run);
  clientCommands(program, run);
  return program;
}

type Run = (action: () => Promise<number>) => Promise<void>;

// ------------------------------------------------------------------------------------------------------ processes

function processCommands(program: Command, run: Run): void {
  const service = (name: string) =>
    program
      .command(name)
      .option("--port <port>", "port of the API (PORT)")
      .option("--host <address>", "address of the API (HOST, default 127.0.0.1)")
      .option("--redis <url>", "BullMQ on this Redis (REDIS_URL); without: on Postgres")
      .addOption(dataDir());

  service("dev")
    .helpGroup("Service:")
    .summary("run the whole service here until Ctrl-C")
    .description(
      "Runs the whole service on this machine until Ctrl-C: Postgres (embedded in the data folder unless DATABASE_URL is set), " +
        "one API and one worker process. `npm start` runs this.",
    )
    .option("--json", "log lines as JSON, as when standard output is no terminal")
    .addHelpText(
      "after",
      examples("drover dev", "drover dev --port 9000 --data-dir /tmp/try", "drover dev --redis redis://127.0.0.1:6379"),
    )
    .action((options) => run(async () => (await import("./service/dev.ts")).dev(options)));

  service("demo")
    .helpGroup("Service:")
    .summary("see one run from submission to verified webhook")
    .description(
      "Starts the service, submits a query over HTTP, follows it live, receives and verifies its signed webhook, and stops again. " +
        "Uses the built-in demo model: no account, no network. `npm run demo` runs this.",
    )
    .option("--json", "one JSON document with all of it at the end")
    .action((options) => run(async () => (await import("./service/demo.ts")).demo(options)));

  for (const [name, summary] of [
    ["api", "run one API process"],
    ["worker", "run one worker process"],
  ] as const)
    program
      .command(name)
      .helpGroup("Service:")
      .summary(summary)
      .description(
        `${summary[0]!.toUpperCase()}${summary.slice(1)}, configured by the environment; DATABASE_URL must be set and migrated. SIGTERM stops it in good order.`,
      )
      .addHelpText("after", examples(`DATABASE_URL=postgres://… drover ${name}`))
      .action(() => run(async () => (await import("./service/processes.ts")).runProcess(name)));

  program
    .command("migrate")
    .helpGroup("Service:")
    .summary("bring the database to this version's schema")
    .description(
      "Brings the database of DATABASE_URL (or DATABASE_DIRECT_URL, where that is a transaction pooler) to this version's schema, " +
        "BullMQ's tables included unless REDIS_URL is set. Safe to repeat and to run in several places at once. With DROVER_APP_ROLE " +
        "it lets that role use them: what the processes need, and of the audit trail only inserts.",
    )
    .option("--json", "the answer as JSON")
    .action((options) => run(async () => (await import("./service/processes.ts")).migrateDatabase(options)));

  program
    .command("retention")
    .helpGroup("Service:")
    .summary("remove what is no longer kept, or say what that would be")
    .description(
      "Removes what is older than RETENTION_CONTENTS_DAYS, RETENTION_TOTALS_DAYS and RETENTION_AUDIT_DAYS say, in the database that is found as for " +
        "`drover keys`. Workers do it by themselves, once an hour; dropping whole months of logs needs the owner of the tables, and so does this command where " +
        "workers run under DROVER_APP_ROLE.",
    )
    .option("--dry-run", "remove nothing; count what is due")
    .addOption(dataDir())
    .option("--json", "the answer as JSON: { dry_run, failed, data: [{ part, kept_days, due, removed, note }] }")
    .addHelpText(
      "after",
      examples("drover retention --dry-run", "RETENTION_CONTENTS_DAYS=7 drover retention --dry-run"),
    )
    .action((options) => run(async () => (await import("./service/retention.ts")).retention(options)));

  const keys = program
    .command("keys")
    .helpGroup("Service:")
    .description(
      "API keys, straight in the database: DATABASE_URL, else that of the service that `drover dev` runs on the data folder, else its " +
        "embedded Postgres, started for the moment.",
    );
  keys
    .command("create")
    .description("Make a key, and its tenant when there is none of that name. The key is shown this once.")
    .option("--tenant <name>", "whose key it is", "default")
    .addOption(
      new Option("--role <role>", "what it may do")
        .choices(["submitter", "approver", "operator", "admin"])
        .default("submitter"),
    )
    .option("--name <text>", "a note for the list")
    .addOption(dataDir())
    .option("--json", "the answer as JSON: { id, key, tenant, role }")
    .addHelpText(
      "after",
      examples("drover keys create --tenant acme --name ci", "drover keys create --role admin --json"),
    )
    .action((options) => run(async () => (await import("./service/keys.ts")).create(options)));
  keys
    .command("list")
    .description("List the keys; the keys themselves are not stored.")
    .option("--tenant <name>", "of this tenant only")
    .addOption(dataDir())
    .option("--json", "the answer as JSON")
    .action((options) => run(async () => (await import("./service/keys.ts")).list(options)));
  keys
    .command("revoke")
    .description("Revoke a key for good. It stops working within seconds.")
    .argument("<id>", "key_…, as `drover keys list` shows it")
    .addOption(dataDir())
    .option("--json", "the answer as JSON")
    .action((id, options) => run(async () => (await import("./service/keys.ts")).revoke(id, options)));

  auditCommands(program, run);
}

function auditCommands(program: Command, run: Run): void {
  const commands = program
    .command("audit")
    .helpGroup("Service:")
    .description("The audit trail, straight in the database, which is found as for `drover keys`, or from an export.");
  commands
    .command("verify")
    .description(
      "Verify that nobody changed the trail, and name each tenant's first bad entry. With --from-file no database is needed.",
    )
    .option("--tenant <name>", "of this tenant only")
    .addOption(new Option("--from-file <file>", "an export, - for standard input").conflicts("dataDir"))
    .option(
      "--checkpoint <file>",
      "checkpoints the trail must agree with, as `checkpoints --json` printed them earlier",
    )
    .option("--public-key <file>", "who may sign checkpoints (default: the key of DROVER_AUDIT_KEY)")
    .addOption(dataDir())
    .option("--json", "the answer as JSON: { ok, signatures_checked, data: [a tenant's trail] }")
    .addHelpText(
      "after",
      examples(
        "drover audit verify --public-key audit.pem",
        "drover audit verify --from-file trail.jsonl --checkpoint anchored.json --public-key audit.pem",
      ),
    )
    .action((options) => run(async () => (await import("./service/audit.ts")).verify(options)));
  commands
    .command("export")
    .description("Print the trail, an entry a line as JSON, as it is hashed.")
    .option("--tenant <name>", "of this tenant only")
    .option("--out <file>", "into this file, which is there once it is whole")
    .addOption(dataDir())
    .action((options) => run(async () => (await import("./service/audit.ts")).exportTrail(options)));
  commands
    .command("checkpoints")
    .description("List the signed checkpoints. Keep them where nobody who can write to the database can.")
    .option("--tenant <name>", "of this tenant only")
    .addOption(dataDir())
    .option("--json", "the answer as JSON")
    .action((options) => run(async () => (await import("./service/audit.ts")).checkpoints(options)));
  commands
    .command("keygen")
    .description(
      "Make a key pair for checkpoints: the private key for the workers' environment, the public one for `verify`.",
    )
    .option("--json", "the answer as JSON: { key_id, private_key, public_key }")
    .action((options) => run(async () => (await import("./service/audit.ts")).keygen(options)));
}

// --------------------------------------------------------------------------------------------------------- clients

function clientCommands(program: Command, run: Run): void {
  const client = (name: string, summary: string, parent = program) =>
    parent
      .command(name)
      .helpGroup(parent === program ? "Client:" : "Commands:")
      .summary(summary)
      .description(`${summary[0]!.toUpperCase()}${summary.slice(1)}.`)
      .option("--json", "JSON on standard output")
      .addOption(of("--url <url>", "where it is (DROVER_URL; default: the one `drover dev` runs here)"))
      .addOption(of("--key <key>", "API key (DROVER_API_KEY; default: the one `drover dev` keeps; visible to `ps`)"))
      .addOption(dataDir().helpGroup("Service:"));
  const of = (flags: string, description: string) => new Option(flags, description).helpGroup("Service:");
  const connect = async (options: object): Promise<DroverClient> => {
    // A reader that has seen enough (`drover list | head`) is no error.
    process.stdout.on("error", () => process.exit(exitCodes.done));
    const [{ DroverClient }, { findTarget }] = await Promise.all([
      import("./client/http.ts"),
      import("./client/target.ts"),
    ]);
    return new DroverClient(await findTarget(options));
  };
  const wait = (command: Command) =>
    command
      .addOption(new Option("--wait", "wait for the end").conflicts("follow"))
      .option("--timeout <seconds>", "with --wait: at most so long", positive);

  const settings = (command: Command) =>
    command
      .option("--agent <name>", "which agent runs it")
      .option("--model <provider/model>", "in place of the agent's model")
      .option("--context <json>", "data for the agent: a JSON object, or @file")
      .option("--system <text>", "in place of the agent's system prompt")
      .option("--user <id>", "whom the query is for")
      .option("--temperature <number>", "of the model", number)
      .option("--max-tokens <n>", "of one reply of the model", number)
      .option("--max-iterations <n>", "model turns at most", number)
      .option("--max-cost <usd>", "end when the model calls have cost so much", number)
      .option("--action-budget <points>", "points its tool calls may take together", number)
      .addOption(
        new Option(
          "--at-cap <what>",
          "at a cap of money or points: wrap up and end, or wait until it is raised",
        ).choices(["stop", "pause"]),
      )
      .option("--soft <seconds>", "active time after which the agent wraps up", number)
      .option("--hard <seconds>", "active time after which the run is ended", number)
      .option("--deadline <time>", "absolute limit, such as 2026-11-21T09:30:00Z")
      .option("--priority <0..9>", "9 is the most urgent", number)
      .option("--delay <seconds>", "start so much later", number)
      .option("--max-attempts <n>", "tries of one step", number)
      .option("--backoff <ms>", "before the second try; doubles", number)
      .option("--max-backoff <ms>", "between two tries at most", number)
      .option("--callback-url <url>", "gets a signed webhook when the run ends")
      .option("--event <type>", "what the callback hears of, such as query.waiting; may be repeated", several)
      .option("--metadata <key=value>", "kept with the run, searchable; may be repeated", pairs)
      .option("--idempotency-key <key>", "the same key and query again make nothing new");

  settings(wait(client("run", "submit a query")))
    .argument("<query...>", "what the agent is to do; - reads it from standard input")
    .option("--follow", "show what happens, as it happens, until the end")
    .option("--tool-calls", "with --wait or --follow and --json: the tool calls in the result")
    .addHelpText(
      "after",
      examples(
        'drover run "What is 17 * 23?" --follow',
        'drover run "Summarise the report" --context @report.json --wait --json',
        'drover run "Nightly check" --agent checker --delay 3600 --callback-url https://example.com/hooks --metadata job=nightly',
        "cat question.txt | drover run - --wait --timeout 60",
      ),
    )
    .action((words: string[], options) =>
      run(async () => (await import("./client/run.ts")).run(await connect(options), words, options)),
    );

  const look = (name: "status" | "result" | "events" | "cancel", summary: string) =>
    client(name, summary)
      .argument("<id>", "run_…")
      .action((id: string, options: LookOptions) =>
        run(async () => (await import("./client/look.ts"))[name](await connect(options), id, options)),
      );
  wait(look("status", "show how a run stands"));
  wait(look("result", "print a run's output"))
    .option("--tool-calls", "with --json: the tool calls too")
    .addHelpText(
      "after",
      examples("drover result run_0193… > answer.txt", "drover result run_0193… --wait --timeout 60 --json"),
    );
  look("events", "print a run's log")
    .option("--follow", "go on as it happens, until the end")
    .option("--after <seq>", "only events after this one", number)
    .addHelpText("after", examples("drover events run_0193… --follow", "drover events run_0193… --json | jq .type"));
  look("cancel", "cancel a run");

  wait(client("retry", "take up a run that failed, ended early or was cancelled, from its last good step"))
    .argument("<id>", "run_…")
    .option("--model <provider/model>", "in place of the one it had")
    .option("--max-iterations <n>", "model turns at most, those before not counted", number)
    .option("--max-cost <usd>", "end when its own model calls have cost so much", number)
    .option("--soft <seconds>", "active time after which the agent wraps up", number)
    .option("--hard <seconds>", "active time after which the run is ended", number)
    .option("--deadline <time>", "absolute limit, such as 2026-11-21T09:30:00Z")
    .option("--idempotency-key <key>", "the same key and retry again make nothing new")
    .addHelpText(
      "after",
      examples("drover retry run_0193… --wait", "drover retry run_0193… --max-iterations 20 --json"),
    )
    .action((id: string, options) =>
      run(async () => (await import("./client/intervene.ts")).retry(await connect(options), id, options)),
    );

  wait(client("rollback", "undo what a run did"))
    .argument("<id>", "run_…, which has ended")
    .addHelpText("after", examples("drover rollback run_0193… --wait"))
    .action((id: string, options) =>
      run(async () => (await import("./client/intervene.ts")).rollback(await connect(options), id, options)),
    );

  client("approvals", "show what people are asked")
    .argument("[id]", "apr_…: this one, whole")
    .addOption(
      new Option("--status <status>", "of the list")
        .choices(["pending", "approved", "rejected", "expired", "all"])
        .default("pending"),
    )
    .option("--run <id>", "about this run only")
    .option("--limit <n>", "entries of one page", number)
    .option("--cursor <cursor>", "the next page, as the one before says")
    .addHelpText(
      "after",
      examples("drover approvals", "drover approvals apr_0193…", "drover approvals --run run_0193… --status all"),
    )
    .action((id: string | undefined, options) =>
      run(async () => (await import("./client/approvals.ts")).approvals(await connect(options), id, options)),
    );
  const decide = (name: "approve" | "reject", summary: string) =>
    client(name, summary)
      .argument("<id>", "apr_…")
      .option("--note <text>", "kept with the decision; the model sees why it was rejected")
      .action((id: string, options) =>
        run(async () => (await import("./client/approvals.ts"))[name](await connect(options), id, options)),
      );
  decide("approve", "let what is asked happen; of a call that may have taken effect: run it again")
    .option("--input <json>", "call it with these arguments instead: JSON, or @file")
    .addOption(new Option("--done", "of a call that may have taken effect: it did").conflicts("input"))
    .option("--result <json>", "with --done: what the call returned; JSON, or @file")
    .addHelpText(
      "after",
      examples(
        "drover approve apr_0193…",
        `drover approve apr_0193… --input '{"to":"ann@example.com"}' --note "her new address"`,
      ),
    );
  decide("reject", "refuse what is asked; of a call that may have taken effect: end the run").addHelpText(
    "after",
    examples('drover reject apr_0193… --note "Ann has moved away"'),
  );

  client("budget", "show or set what the tenant may spend, or raise a run's budget")
    .option("--run <id>", "raise this run's")
    .option("--max-cost <usd>", "with --run: what its model calls may cost", number)
    .option("--actions <points>", "with --run: points its tool calls may take together", number)
    .option("--day <usd>", "of all runs in a UTC day; none: no cap", numberOrNone)
    .option("--month <usd>", "of all runs in a UTC month; none: no cap", numberOrNone)
    .addHelpText(
      "after",
      examples("drover budget", "drover budget --day 50 --month none", "drover budget --run run_0193… --max-cost 2.50"),
    )
    .action((options) =>
      run(async () => (await import("./client/intervene.ts")).budget(await connect(options), options)),
    );

  client("list", "list runs, newest first")
    .option(
      "--status <status>",
      "queued, running, waiting, completed, partial, failed, cancelled; may be repeated",
      several,
    )
    .option("--agent <name>")
    .option("--user <id>")
    .option("--metadata <key=value>", "may be repeated", pairs)
    .option("--created-after <time>", "such as 2026-11-21T09:30:00Z")
    .option("--created-before <time>")
    .option("--limit <n>", "runs of one page", number)
    .option("--cursor <cursor>", "the next page, as the one before says")
    .addHelpText(
      "after",
      examples("drover list --status failed --limit 10", "drover list --metadata job=nightly --json"),
    )
    .action((options) => run(async () => (await import("./client/look.ts")).list(await connect(options), options)));

  const page = (command: Command) =>
    command
      .option("--limit <n>", "entries of one page", number)
      .option("--cursor <cursor>", "the next page, as the one before says");

  const batch = program.command("batch").helpGroup("Client:").description("Many queries submitted as one.");
  settings(wait(client("submit", "submit the queries of a file", batch)))
    .argument("<file>", "JSON Lines: on each a query, or an object as POST /query takes it; - is standard input")
    .addHelpText(
      "after",
      examples(
        "drover batch submit queries.jsonl --agent checker --wait",
        "jq -c .questions[] all.json | drover batch submit -",
      ),
    )
    .action((file: string, options) =>
      run(async () => (await import("./client/batch.ts")).submit(await connect(options), file, options)),
    );
  for (const [name, summary] of [
    ["status", "show how a batch stands, and its items page by page"],
    ["cancel", "cancel every item of a batch that has not ended"],
  ] as const)
    (name === "status" ? page(wait(client(name, summary, batch))) : client(name, summary, batch))
      .argument("<id>", "bat_…")
      .action((id: string, options) =>
        run(async () => (await import("./client/batch.ts"))[name](await connect(options), id, options)),
      );

  const webhooks = program
    .command("webhooks")
    .helpGroup("Client:")
    .description("Webhook endpoints: addresses that get a tenant's signed messages.");
  page(client("list", "list the endpoints, newest first", webhooks)).action((options) =>
    run(async () => (await import("./client/webhooks.ts")).list(await connect(options), options)),
  );
  const endpoint = (command: Command) =>
    command
      .option("--event <type>", "what it hears of, such as query.failed, or all; may be repeated", several)
      .option("--description <text>", "a note for people")
      .option("--thin-over <bytes>", "larger messages go without their output; none: never", numberOrNone);
  endpoint(client("create", "make an endpoint; its secret is shown this once", webhooks))
    .argument("<url>", "where its messages go")
    .addOption(
      new Option("--signature <kind>", "hmac, with a shared secret, or ed25519, with a key pair").choices([
        "hmac",
        "ed25519",
      ]),
    )
    .addHelpText("after", examples("drover webhooks create https://example.com/hooks --event query.failed"))
    .action((url: string, options) =>
      run(async () => (await import("./client/webhooks.ts")).create(await connect(options), url, options)),
    );
  endpoint(client("update", "change, enable or disable an endpoint", webhooks))
    .argument("<id>", "whk_…")
    .option("--to <url>", "where its messages go from now on")
    .option("--enabled", "send again")
    .option("--no-enabled", "send nothing more; what is still owed is not delivered")
    .action((id: string, options) =>
      run(async () => (await import("./client/webhooks.ts")).update(await connect(options), id, options)),
    );
  for (const [name, summary] of [
    ["show", "show an endpoint"],
    ["remove", "remove an endpoint and its deliveries"],
    ["test", "send a test message to an endpoint"],
    ["rotate", "give an endpoint a new secret"],
  ] as const) {
    const command = client(name, summary, webhooks).argument("<id>", "whk_…");
    if (name === "rotate") command.option("--overlap <seconds>", "sign with the old one too for so long", number);
    command.action((id: string, options) =>
      run(async () => (await import("./client/webhooks.ts"))[name](await connect(options), id, options)),
    );
  }

  page(client("deliveries", "show what was delivered about a run, newest first"))
    .argument("<id>", "run_…")
    .action((id: string, options) =>
      run(async () => (await import("./client/webhooks.ts")).deliveries(await connect(options), id, options)),
    );
  client("redeliver", "deliver a message once more")
    .argument("<id>", "dlv_…, as `drover deliveries` shows it")
    .action((id: string, options) =>
      run(async () => (await import("./client/webhooks.ts")).redeliver(await connect(options), id, options)),
    );
}

// --------------------------------------------------------------------------------------------------------- pieces

const dataDir = () =>
  new Option("--data-dir <folder>", "folder of the local service (DROVER_DATA_DIR, default .drover)");

function number(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("It must be a number.");
  return value;
}

function positive(text: string): number {
  const value = number(text);
  if (value <= 0) throw new InvalidArgumentError("It must be more than 0.");
  return value;
}

const numberOrNone = (text: string): number | "none" => (text === "none" ? text : number(text));

function pairs(text: string, before: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf("=");
  if (at < 1) throw new InvalidArgumentError("It must be key=value.");
  return { ...before, [text.slice(0, at)]: text.slice(at + 1) };
}

const several = (text: string, before: string[] = []): string[] => [...before, text];

const examples = (...lines: string[]): string => `\nExamples:\n${lines.map((line) => `  $ ${line}`).join("\n")}`;

function exitCodeHelp(): string {
  const rows = Object.entries(exitCodes).map(
    ([name, code]) => `  ${String(code).padStart(3)}  ${exitMeanings[name as keyof typeof exitCodes]}`,
  );
  return ["Exit codes:", ...rows].join("\n");
}
