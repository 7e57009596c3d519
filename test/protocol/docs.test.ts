import { readFile } from "node:fs/promises";
import { errorCodes, stopReasons } from "@drover/protocol";
import { expect, test } from "vitest";
import { configTable, errorsPage, errorsPath, readmePath, withConfigTable } from "../../scripts/docs.ts";

const hint = "run `npm run docs`";

test("docs/errors.md is what the error table says", async () => {
  expect(await readFile(errorsPath, "utf8"), hint).toBe(errorsPage());
});

test("the page has every code, those of a run too", () => {
  const [ofRequests, ofRuns] = errorsPage().split("## Of a run");
  for (const code of errorCodes) expect(ofRequests! + ofRuns!).toMatch(new RegExp(`^\\| \`${code}\` +\\|`, "m"));
  for (const code of stopReasons) expect(ofRuns).toMatch(new RegExp(`^\\| \`${code}\` +\\|`, "m"));
});

test("the README's configuration table is what the schemas say", async () => {
  const readme = await readFile(readmePath, "utf8");
  expect(readme, hint).toBe(withConfigTable(readme));
});

test("the table has every variable that scripts rely on, once and with its meaning", () => {
  const rows = configTable().split("\n").slice(2);
  const names = rows.map((row) => row.split("`")[1]);
  expect(new Set(names).size).toBe(names.length);
  for (const name of [
    "PORT",
    "HOST",
    "WORKER_PORT",
    "DATABASE_URL",
    "DATABASE_DIRECT_URL",
    "DROVER_DATA_DIR",
    "REDIS_URL",
    "DROVER_BOOTSTRAP_KEY",
    "DROVER_MODEL",
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "GOOGLE_GENERATIVE_AI_API_KEY",
    "OLLAMA_BASE_URL",
    "DROVER_CONFIG",
    "WORKER_CONCURRENCY",
    "SHUTDOWN_GRACE_SECONDS",
    "LEASE_SECONDS",
    "SOFT_TIME_LIMIT_SECONDS",
    "HARD_TIME_LIMIT_SECONDS",
    "DROVER_WEBHOOK_SECRET",
    "DROVER_EGRESS_ALLOW",
    "METRICS_TOKEN",
    "LOG_LEVEL",
  ])
    expect(names).toContain(name);
  for (const row of rows) expect(row).toMatch(/^\| `[A-Z_]+` +\| .{5,} \| (`[^`]+`)? *\|$/);
});

test("a README without its markers is not guessed at", () => {
  expect(() => withConfigTable("# Drover")).toThrow("README.md needs the lines");
});
