/** The client commands and `drover keys` against one running service: what they print, and the exit codes scripts rely on. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { followRun } from "../../apps/cli/src/client/follow.ts";
import { DroverClient } from "../../apps/cli/src/client/http.ts";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { freePort } from "../support/ports.ts";
import { startProxy } from "../support/proxy.ts";
import { type Dev, drover, startDev, startDrover, temporaryFolder } from "./drover.ts";

const folder = await temporaryFolder();
const dataDir = join(folder.path, "data");
let dev: Dev;
let models: ModelServer;

beforeAll(async () => {
  models = await startModelServer();
  const config = new URL("../../examples/drover.config.ts", import.meta.url).pathname;
  // Replies come in one piece: whether their beginning is seen does not hang on when following began.
  const demo = { DROVER_MODEL: "demo/demo", DEMO_WORD_DELAY_MS: "0" };
  dev = await startDev(dataDir, { ...models.env(), ...demo, DROVER_CONFIG: config });
});

afterAll(async () => {
  await models.close();
  await dev.process.kill("SIGTERM");
  await folder.remove();
});

const client = (...args: string[]) => drover([...args, "--data-dir", dataDir]);
const submitted = async (...args: string[]) =>
  (await client("run", ...args, "--json")).json<{ task_id: string }>().task_id;
const lines = (text: string) =>
  text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));

describe("run", () => {
  it("submits and says how to go on", async () => {
    const ended = await client("run", "What is 1 + 1?");
    expect(ended).toMatchObject({ code: 0, stderr: "" });
    expect(ended.stdout).toMatch(/^run_[0-9a-f]{32} {2}queued\n/);
    expect(ended.stdout).toMatch(/drover events run_\w+ --follow/);
  });

  it("--json prints the service's own answer", async () => {
    const answer = (await client("run", "2+2", "--json")).json();
    expect(answer).toMatchObject({ status: "queued", check_url: `/query/status/${answer.task_id}` });
  });

  it("--wait prints the output alone on standard output", async () => {
    const ended = await client("run", "What is 6 * 7?", "--wait");
    expect(ended.code).toBe(0);
    expect(ended.stdout).toMatch(/^I am .*demo model.*\n- 6 \* 7: 42\n$/);
    expect(ended.stderr).toMatch(/\$0\.00, \d+ tokens, tools: calculate/);
  });

  it("--follow shows every step, in order, and the text once", async () => {
    const ended = await client("run", "What is 6 * 7? Then wait 0.1 s", "--follow");
    expect(ended.code).toBe(0);
    const shown = ["queued", "started", "→ calculate", "← calculate", "→ wait", "← wait", "- 6 * 7: 42", "completed"];
    expect(shown.filter((word) => ended.stdout.split(word).length !== 2)).toEqual([]);
    expect(shown.map((word) => ended.stdout.indexOf(word))).toEqual(
      shown.map((word) => ended.stdout.indexOf(word)).toSorted((a, b) => a - b),
    );
  });

  it("--follow --json prints the answer, every event and the result, a line each", async () => {
    const ended = await client("run", "What is 6 * 7?", "--follow", "--json", "--tool-calls");
    expect(ended).toMatchObject({ code: 0, stderr: "" });
    const [answer, ...rest] = lines(ended.stdout);
    const result = rest.pop();
    expect(answer).toMatchObject({ task_id: expect.stringMatching(/^run_/), status: "queued" });
    expect(rest.map((event) => event.seq)).toEqual(rest.map((_, index) => index + 1));
    expect(rest.at(-1).type).toBe("run.completed");
    expect(result).toMatchObject({ task_id: answer.task_id, tool_calls: [{ tool_name: "calculate" }] });
  });

  it("sends what its options say", async () => {
    const context = join(folder.path, "context.json");
    await writeFile(context, '{"page": 3}');
    const options = ["--agent", "default", "--model", "demo/demo", "--context", `@${context}`, "--system", "Be brief."];
    const more = ["--user", "u-1", "--temperature", "0.5", "--max-iterations", "4", "--max-cost", "2", "--soft", "30"];
    const rest = ["--hard", "60", "--priority", "3", "--metadata", "a=1", "--metadata", "b=x=y"];
    const id = await submitted("What is 1 + 1?", ...options, ...more, ...rest);
    const record = await fetch(`${dev.url}/execution/${id}`, { headers: { authorization: `Bearer ${dev.key}` } });
    expect(await record.json()).toMatchObject({
      query: "What is 1 + 1?",
      context: { page: 3 },
      user_id: "u-1",
      metadata: { a: "1", b: "x=y" },
      settings: {
        model: "demo/demo",
        system_prompt: "Be brief.",
        temperature: 0.5,
        max_iterations: 4,
        max_cost_usd: 2,
        priority: 3,
        limits: { soft_seconds: 30, hard_seconds: 60 },
      },
    });
  });

  it("reads the query from standard input for -, and takes unquoted words", async () => {
    const piped = await drover(["run", "-", "--wait", "--data-dir", dataDir], { input: "What is\n12 * 12?\n" });
    expect(piped.stdout).toContain("144");
    expect((await client("run", "What", "is", "3", "*", "5?", "--wait")).stdout).toContain("15");
  });

  it("with an idempotency key makes one run of two submissions, and refuses another query", async () => {
    const first = await submitted("1 + 2", "--idempotency-key", "once");
    expect(await submitted("1 + 2", "--idempotency-key", "once")).toBe(first);
    const other = await client("run", "1 + 3", "--idempotency-key", "once");
    expect(other).toMatchObject({ code: 6, stderr: expect.stringContaining("idempotency_mismatch") });
  });
});

it("examples/drover.config.ts: its agent answers with its own tool, and with the demo model", async () => {
  models.script([
    { toolCalls: [{ name: "order_status", input: { order: "1042" } }] },
    ({ results }) => results[0]!.content,
  ]);
  const ask = (...args: string[]) => client("run", ...args, "--agent", "shop", "--wait", "--json");
  const real = await ask("Where is order 1042?", "--model", "anthropic/claude-sonnet-4-5");
  expect(real.code, real.stderr).toBe(0);
  expect(real.json()).toMatchObject({ tools_called: ["order_status"], output: expect.stringContaining("on its way") });
  const demo = await ask("What is 3 * 19.90?");
  expect(demo.json()).toMatchObject({ tools_called: ["calculate"], output: expect.stringContaining("59.7") });
});

describe("exit codes of a run's end", () => {
  it("7 for a partial result, with the reason", async () => {
    const ended = await client("run", "What is 2 + 2?", "--max-iterations", "1", "--wait");
    expect(ended).toMatchObject({ code: 7, stderr: expect.stringContaining("partial: iteration_limit") });
    // It has calculated, and wraps up.
    expect(ended.stdout).toContain("2 + 2: 4");
  });

  it("1 for a failed run, with its error, followed or waited for", async () => {
    const id = await submitted("hello", "--model", "openai/nothing");
    const followed = await client("events", id, "--follow");
    expect(followed).toMatchObject({ code: 1, stdout: expect.stringContaining("failed (invalid_input)") });
    const result = await client("result", id, "--json");
    expect(result.code).toBe(1);
    expect(result.json()).toMatchObject({ status: "error", error: { code: "invalid_input" } });
  });

  it("8 while it has not ended, and 1 once it is cancelled", async () => {
    const id = await submitted("2+2", "--delay", "600");
    expect(await client("result", id)).toMatchObject({ code: 8, stdout: "" });
    expect(await client("result", id, "--wait", "--timeout", "0.1")).toMatchObject({ code: 8 });
    expect(await client("run", "2+2", "--delay", "600", "--wait", "--timeout", "0.1", "--json")).toMatchObject({
      code: 8,
    });
    expect(await client("cancel", id)).toMatchObject({ code: 0, stdout: `${id}  cancelled\n` });
    expect(await client("cancel", id, "--json")).toMatchObject({ code: 0 });
    expect(await client("result", id)).toMatchObject({ code: 1 });
    expect((await client("status", id)).stdout).toMatch(/cancelled/);
  });

  it("130 for Ctrl-C while following: the run goes on, and it says so", async () => {
    const follower = startDrover(["run", "Wait 60 seconds", "--follow", "--data-dir", dataDir]);
    await follower.waitForLine("→ wait");
    const { code } = await follower.kill("SIGINT");
    expect(code).toBe(130);
    const id = /run_[0-9a-f]{32}/.exec(follower.output())![0];
    expect(follower.output()).toContain(`${id} goes on`);
    expect(follower.output()).toContain(`drover cancel ${id}`);
    expect((await client("status", id, "--json")).json()).toMatchObject({ status: "running" });
    expect(await client("cancel", id)).toMatchObject({ code: 0, stdout: expect.stringContaining("told to stop") });
    expect(await client("events", id, "--follow")).toMatchObject({
      code: 1,
      stdout: expect.stringContaining("cancelled"),
    });
  });
});

describe("looking", () => {
  it("status, events and list say the same run, for people and as JSON", async () => {
    const id = await submitted("What is 9 * 9?", "--metadata", "look=yes");
    await client("result", id, "--wait");
    const status = await client("status", id);
    expect(status.stdout).toMatch(new RegExp(`^${id} {2}completed\n`));
    expect(status.stdout).toContain("81");
    expect((await client("status", id, "--json")).json()).toMatchObject({ task_id: id, result: { status: "success" } });

    expect((await client("events", id)).stdout).toMatch(/queued[\s\S]*→ calculate[\s\S]*completed/);
    const after = lines((await client("events", id, "--json", "--after", "2")).stdout);
    expect(after[0].seq).toBe(3);

    const list = await client("list", "--metadata", "look=yes", "--status", "completed", "--status", "partial");
    expect(list.stdout).toMatch(new RegExp(`^TASK .*\n${id} +completed +default .* \\$0\\.00\n$`));
    expect((await client("list", "--limit", "1", "--json")).json()).toMatchObject({ data: [{ task_id: id }] });
    expect(await client("list", "--metadata", "look=no")).toMatchObject({ code: 0, stdout: "no runs\n" });
  });
});

describe("what goes wrong", () => {
  it("2: usage, before anything is asked", async () => {
    const wrong = [
      ["bogus"],
      ["run"],
      ["run", "2+2", "--priority", "high"],
      ["run", "2+2", "--context", "{"],
      ["run", "2+2", "--context", "@/no/such/file"],
      ["run", "2+2", "--metadata", "novalue"],
      ["run", "2+2", "--follow", "--wait"],
      ["run", "2+2", "--wait", "--timeout", "-1"],
      ["status", "run_1", "--url", "ftp://example.com"],
      ["keys", "create", "--role", "king"],
    ];
    const all = await Promise.all(wrong.map((args) => drover(args, { env: { DROVER_URL: "http://127.0.0.1:1" } })));
    for (const [index, ended] of all.entries()) {
      expect(ended, wrong[index]!.join(" ")).toMatchObject({ code: 2, stdout: "" });
      expect(ended.stderr, wrong[index]!.join(" ")).not.toContain("at file:");
    }
  });

  it("3: nobody there, or somebody else", async () => {
    const url = `http://127.0.0.1:${await freePort()}`;
    const nobody = await drover(["list", "--url", url]);
    expect(nobody).toMatchObject({ code: 3, stdout: "" });
    expect(nobody.stderr).toContain(`cannot reach the service at ${url} (connection refused)`);
    expect(nobody.stderr).toContain("npm start");
  });

  it("4: no key, a wrong key, a key whose role does not allow it", async () => {
    const none = await drover(["list", "--url", dev.url]);
    expect(none).toMatchObject({ code: 4, stderr: expect.stringContaining("DROVER_API_KEY") });
    const wrong = await client("list", "--key", "drv_wrong");
    expect(wrong).toMatchObject({ code: 4, stderr: expect.stringContaining("auth_failed") });
    const { key } = (await client("keys", "create", "--role", "approver", "--json")).json<{ key: string }>();
    const forbidden = await drover(["run", "2+2", "--url", dev.url], { env: { DROVER_API_KEY: key } });
    expect(forbidden).toMatchObject({ code: 4, stderr: expect.stringContaining("forbidden") });
  });

  it("5: no such run, or another tenant's", async () => {
    const id = await submitted("2+2");
    const { key } = (await client("keys", "create", "--tenant", "other", "--json")).json<{ key: string }>();
    const commands = ["status", "result", "events", "cancel"].flatMap((command) => [
      [command, `run_${"0".repeat(32)}`, "--key", dev.key!],
      [command, "nonsense", "--key", dev.key!],
      [command, id, "--key", key],
    ]);
    commands.push(["events", id, "--follow", "--key", key]);
    const all = await Promise.all(commands.map((args) => client(...args)));
    for (const [index, ended] of all.entries())
      expect(ended, commands[index]!.slice(0, 2).join(" ")).toMatchObject({ code: 5, stdout: "" });
  });

  it("6: every field the service refuses, by name", async () => {
    const ended = await client("run", "2+2", "--priority", "99", "--max-iterations", "0", "--temperature", "9");
    expect(ended.code).toBe(6);
    for (const field of ["priority", "max_iterations", "temperature"]) expect(ended.stderr).toMatch(`  ${field}: `);
  });

  it("keeps the local service's key from every other address", async () => {
    const elsewhere = dev.url.replace("127.0.0.1", "localhost");
    expect(await client("list", "--url", elsewhere)).toMatchObject({ code: 4 });
    expect(await client("list", "--url", `${dev.url}/`)).toMatchObject({ code: 0 });
  });
});

describe("a bad connection", () => {
  it("while following is taken up again where it was: every event once, and it says so", async () => {
    const proxy = await startProxy(Number(new URL(dev.url).port));
    const id = await submitted("Wait 4 seconds, then 3 * 3");
    const url = `http://127.0.0.1:${proxy.port}`;
    const follower = startDrover(["events", id, "--follow", "--json", "--url", url, "--key", dev.key!]);
    await follower.waitForLine("model.call");
    proxy.refuse(true);
    proxy.cut();
    await client("status", id);
    proxy.refuse(false);
    expect(await follower.exited).toMatchObject({ code: 0 });
    const events = follower.lines.map((line) => JSON.parse(line)).filter((line) => line.seq !== undefined);
    expect(events.map((event) => event.seq)).toEqual(events.map((_, index) => index + 1));
    expect(events.at(-1).type).toBe("run.completed");
    expect(follower.output()).toContain("connection lost");
    await proxy.close();
  });

  it("that fell silent is given up and made anew", async () => {
    const proxy = await startProxy(Number(new URL(dev.url).port));
    const id = await submitted("Wait 1 second, then 3 * 3");
    const service = new DroverClient({ url: `http://127.0.0.1:${proxy.port}`, key: dev.key });
    const seen: number[] = [];
    const troubles: string[] = [];
    const signal = new AbortController().signal;
    for await (const followed of followRun(service, id, {
      signal,
      silentMs: 700,
      onTrouble: (text) => troubles.push(text),
    })) {
      if (!("event" in followed)) continue;
      seen.push(followed.event.seq);
      if (followed.event.type === "model.call" && seen.length < 5) proxy.forget();
    }
    expect(seen).toEqual(seen.map((_, index) => index + 1));
    expect(troubles[0]).toContain("no sign of life");
    await proxy.close();
  });
});

describe("keys", () => {
  it("create, list, revoke, next to the running service", async () => {
    const made = (await client("keys", "create", "--tenant", "acme", "--name", "ci", "--json")).json<{
      id: string;
      key: string;
    }>();
    expect(made).toEqual({
      id: expect.stringMatching(/^key_/),
      key: expect.stringMatching(/^drv_/),
      tenant: "acme",
      role: "submitter",
    });
    expect(await client("list", "--key", made.key)).toMatchObject({ code: 0, stdout: "no runs\n" });

    const list = await client("keys", "list", "--tenant", "acme");
    expect(list.stdout).toMatch(new RegExp(`${made.id} +acme +submitter .* ci\n`));
    expect(list.stdout).not.toContain(made.key);
    expect((await client("keys", "list", "--json")).json<{ data: object[] }>().data.length).toBeGreaterThan(1);

    expect(await client("keys", "revoke", made.id)).toMatchObject({ code: 0 });
    expect((await client("keys", "list", "--tenant", "acme", "--json")).json()).toMatchObject({
      data: [{ id: made.id, revoked_at: expect.stringMatching(/^20/) }],
    });
    expect(await client("keys", "revoke", "key_none")).toMatchObject({ code: 5 });
    expect(await client("keys", "create", "--tenant", "No Such")).toMatchObject({ code: 2, stdout: "" });
  });

  it("shows a new key on standard output alone, for people too", async () => {
    const made = await client("keys", "create", "--role", "operator");
    expect(made.stdout).toMatch(/^drv_\S+\n$/);
    expect(made.stderr).toMatch(/^key_\w+, operator of tenant default/);
  });
});
