/** `drover batch`, `webhooks`, `deliveries` and `redeliver` against a running service, and that every field of a submission is a flag. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { submitBody } from "@drover/protocol";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { type Receiver, startReceiver } from "../support/receiver.ts";
import { type Dev, drover, startDev, temporaryFolder } from "./drover.ts";

const folder = await temporaryFolder();
const dataDir = join(folder.path, "data");
let dev: Dev;
let receiver: Receiver;

beforeAll(async () => {
  receiver = await startReceiver();
  dev = await startDev(dataDir, { DROVER_MODEL: "demo/demo", DEMO_WORD_DELAY_MS: "0" });
});
afterAll(async () => {
  await receiver.close();
  await dev.process.kill("SIGTERM");
  await folder.remove();
});

const client = (...args: string[]) => drover([...args, "--data-dir", dataDir]);

describe("every field of a submission is a flag of run", () => {
  const flags = {
    agent: ["--agent", "default"],
    model: ["--model", "a/b"],
    context: ["--context", "{}"],
    system_prompt: ["--system", "x"],
    user_id: ["--user", "x"],
    temperature: ["--temperature", "1"],
    max_tokens: ["--max-tokens", "5"],
    max_iterations: ["--max-iterations", "3"],
    max_cost_usd: ["--max-cost", "1"],
    "budget.actions": ["--action-budget", "5"],
    "budget.at_cap": ["--at-cap", "stop"],
    "limits.soft_seconds": ["--soft", "5"],
    "limits.hard_seconds": ["--hard", "9"],
    "limits.deadline": ["--deadline", "2030-01-01T00:00:00Z"],
    priority: ["--priority", "3"],
    delay_seconds: ["--delay", "1"],
    "retry.max_attempts": ["--max-attempts", "2"],
    "retry.backoff_ms": ["--backoff", "1"],
    "retry.max_backoff_ms": ["--max-backoff", "2"],
    callback_url: ["--callback-url", "http://x"],
    events: ["--event", "query.failed"],
    metadata: ["--metadata", "a=b"],
  };
  interface Schema {
    properties?: Record<string, Schema>;
    $defs?: Record<string, Schema>;
  }
  const fieldsOf = ({ properties = {} }: Schema, path = ""): string[] =>
    Object.entries(properties).flatMap(([name, schema]) =>
      schema.properties ? fieldsOf(schema, `${path}${name}.`) : [path + name],
    );

  it("as its schema has them", async () => {
    const schema = z.toJSONSchema(submitBody, { io: "input" }) as Schema;
    const fields = fieldsOf(schema.$defs?.Submit ?? schema).filter((name) => name !== "query");
    expect(Object.keys(flags).sort()).toEqual(fields.sort());
    // It says what comes, and refuses it.
    const echo = await startReceiver();
    await drover(["run", "2 + 2", ...Object.values(flags).flat(), "--url", echo.url, "--key", "k"]);
    const [request] = echo.requests;
    const sent = JSON.parse(request!.body);
    for (const field of fields)
      expect(
        field.split(".").reduce((value, name) => value?.[name], sent),
        field,
      ).not.toBeUndefined();
    await echo.close();
  });
});

describe("batch", () => {
  it("submits a file, waits, shows every item, and says by its code how it ended", async () => {
    const file = join(folder.path, "queries.jsonl");
    await writeFile(file, '"2 + 2"\n\n{"query": "3 + 3", "user_id": "ann"}\n');
    const ended = await client("batch", "submit", file, "--wait", "--metadata", "job=nightly", "--json");
    expect(ended).toMatchObject({ code: 0, stderr: "" });
    const batch = ended.json<{ batch_id: string; counts: object; data: { query: string }[] }>();
    expect(batch).toMatchObject({ status: "completed", counts: { completed: 2 }, metadata: { job: "nightly" } });
    expect(batch.data.map(({ query }) => query)).toEqual(["2 + 2", "3 + 3"]);

    const shown = await client("batch", "status", batch.batch_id, "--limit", "1");
    expect(shown.stdout).toMatch(/completed\n {2}2 of 2 ended: 2 completed; \$0\.00\n/);
    expect(shown.stdout).toMatch(/run_\w+ {2}completed .* 2 \+ 2\n/);
    expect(shown.stdout).toContain("more: --cursor");
  });

  it("from standard input; cancelled, it ends with 1", async () => {
    const accepted = await drover(["batch", "submit", "-", "--delay", "3600", "--data-dir", dataDir, "--json"], {
      input: '"2 + 2"\n"3 + 3"',
    });
    const { batch_id } = accepted.json<{ batch_id: string }>();
    expect((await client("batch", "cancel", batch_id)).stdout).toContain("2 cancelled");
    expect((await client("batch", "status", batch_id, "--wait")).code).toBe(1);
    expect((await client("batch", "status", `bat_${"0".repeat(32)}`)).code).toBe(5);
  });

  it("names the line that is not JSON, and the item that is refused", async () => {
    const file = join(folder.path, "bad.jsonl");
    await writeFile(file, '"2 + 2"\nWhat is it?\n');
    const bad = await client("batch", "submit", file);
    expect(bad).toMatchObject({ code: 2, stderr: expect.stringContaining("bad.jsonl: line 2 is not JSON") });
    await writeFile(file, '"2 + 2"\n{"query": ""}\n');
    expect(await client("batch", "submit", file)).toMatchObject({
      code: 6,
      stderr: expect.stringContaining("queries[1].query"),
    });
    expect(await client("batch", "submit", join(folder.path, "none"))).toMatchObject({ code: 2 });
  });
});

describe("webhooks", () => {
  it("made, changed, tested, given a new secret, and removed", async () => {
    const made = await client("webhooks", "create", `${receiver.url}/hook`, "--event", "query.completed", "--json");
    expect(made.code).toBe(0);
    const { id, secret } = made.json<{ id: string; secret: string }>();
    expect(secret).toMatch(/^whsec_/);
    expect((await client("webhooks", "list")).stdout).toMatch(new RegExp(`${id} +enabled +query.completed +http`));

    const off = await client("webhooks", "update", id, "--no-enabled", "--description", "ours", "--event", "all");
    expect(off.stdout).toMatch(/disabled\n.*url .*\/hook\n {2}events +all\n {2}description +ours/);
    const moved = await client("webhooks", "update", id, "--enabled", "--to", `${receiver.url}/other`, "--json");
    expect(moved.json()).toMatchObject({ enabled: true, url: `${receiver.url}/other` });

    expect((await client("webhooks", "test", id)).stdout).toMatch(/^dlv_\w+ {2}pending {2}\S+ to http/);
    await receiver.waitFor(1);
    const rotated = await client("webhooks", "rotate", id, "--overlap", "60");
    expect(rotated.stdout).toMatch(/^whsec_\S+\n$/);
    expect(rotated.stdout.trim()).not.toBe(secret);
    expect(await client("webhooks", "remove", id)).toMatchObject({ code: 0, stdout: `${id}  deleted\n` });
    expect(await client("webhooks", "show", id)).toMatchObject({ code: 5 });
  });

  it("what was delivered about a run, and once more", async () => {
    const before = receiver.requests.length;
    const run = await client("run", "2 + 2", "--wait", "--callback-url", `${receiver.url}/callback`, "--json");
    const { task_id } = run.json<{ task_id: string }>();
    await receiver.waitFor(before + 1);
    let shown = "";
    await expect
      .poll(async () => (shown = (await client("deliveries", task_id)).stdout))
      .toMatch(/delivered +query\.completed +1 +HTTP 200/);
    const [delivery] = /dlv_\w+/.exec(shown)!;
    expect((await client("redeliver", delivery)).stdout).toMatch(/pending {2}query\.completed to/);
    await receiver.waitFor(before + 2);
    expect(await client("redeliver", `dlv_${"0".repeat(32)}`)).toMatchObject({ code: 5 });
  });
});
