/** Where a run needs a person: what the command line shows of it, and deciding, raising, retrying and undoing from there. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { type Dev, drover, startDev, startDrover, temporaryFolder, until } from "./drover.ts";

const folder = await temporaryFolder();
const dataDir = join(folder.path, "data");
let dev: Dev;
let models: ModelServer;

beforeAll(async () => {
  models = await startModelServer();
  const config = new URL("./asking.config.ts", import.meta.url).pathname;
  dev = await startDev(dataDir, {
    ...models.env(),
    DROVER_MODEL: "anthropic/claude-sonnet-4-5",
    DROVER_CONFIG: config,
  });
});
beforeEach(() => models.reset());
afterAll(async () => {
  await models.close();
  await dev.process.kill("SIGTERM");
  await folder.remove();
});

const client = (...args: string[]) => drover([...args, "--data-dir", dataDir]);
const mails = () =>
  models.script((call) =>
    call.turn === 0
      ? { toolCalls: [{ name: "send_mail", input: { to: "ann@example.com" } }] }
      : `It was ${call.results[0]!.content}.`,
  );
const prices = (count: number) =>
  models.script((call) =>
    call.turn < count ? { toolCalls: [{ name: "set_price", input: { price: call.turn } }] } : "done",
  );

/** A run that waits, and the process that follows it. */
async function follow(...args: string[]) {
  const process = startDrover(["run", "Do it", "--follow", ...args, "--data-dir", dataDir]);
  await process.waitForLine(/ waiting /);
  const taskId = /run_[0-9a-f]{32}/.exec(process.output())![0];
  return { process, taskId };
}

describe("a run that asks", () => {
  it("shows what it asks and what to type; typed, it goes on to its end", async () => {
    mails();
    const { process, taskId } = await follow();
    const [id] = /apr_[0-9a-f]{32}/.exec(process.output())!;
    expect(process.output()).toMatch(/approval +\? send_mail \{"to":"ann@example.com"\}/);
    expect(process.output()).toContain(`drover approve ${id}`);
    expect(process.output()).toContain(`drover reject ${id}`);

    const listed = await client("approvals");
    expect(listed.stdout).toMatch(new RegExp(`${id} +pending +${taskId} +send_mail .*ann@example.com`));
    const whole = await client("approvals", id!);
    expect(whole.stdout).toContain('"to": "ann@example.com"');
    expect(whole.stdout).toContain("cannot be undone");

    const decided = await client("approve", id!, "--input", '{"to":"bob@example.com"}', "--note", "her new address");
    expect(decided).toMatchObject({ code: 0, stderr: "" });
    expect(decided.stdout).toContain(`${id}  approved`);
    expect(await process.exited).toMatchObject({ code: 0 });
    expect(process.output()).toMatch(/approved by key_\w+, with other arguments .*bob@example.com.*: her new address/);
    expect(process.output()).toContain("sent to bob@example.com.");

    const again = await client("approve", id!);
    expect(again.code).toBe(6);
    expect(again.stderr).toMatch(/conflict: It is approved already, by key_/);
    expect((await client("approvals", "--run", taskId, "--status", "all", "--json")).json()).toMatchObject({
      data: [{ id, status: "approved", edited_input: { to: "bob@example.com" } }],
    });
    expect((await client("approvals", "--run", taskId)).stdout).toBe("nothing is pending\n");
  });

  it("rejected: the model hears why, and no mail is sent", async () => {
    mails();
    const { process } = await follow();
    await client("reject", /apr_[0-9a-f]{32}/.exec(process.output())![0], "--note", "Ann has moved away");
    expect(await process.exited).toMatchObject({ code: 0 });
    expect(process.output()).toMatch(/rejected by key_\w+: Ann has moved away/);
    expect(process.output()).not.toContain("sent to");
  });

  it("waited for, says on standard error that it needs somebody; its status has the command", async () => {
    mails();
    const process = startDrover(["run", "Do it", "--wait", "--data-dir", dataDir]);
    await until(() => /waits: drover approvals --run run_/.test(process.output()));
    const taskId = /run_[0-9a-f]{32}/.exec(process.output())![0];
    expect((await client("status", taskId)).stdout).toContain(`approval  (drover approvals --run ${taskId})`);
    const { data } = (await client("approvals", "--run", taskId, "--json")).json<{ data: { id: string }[] }>();
    await client("approve", data[0]!.id);
    expect(await process.exited).toMatchObject({ code: 0 });
  });

  it("arguments from a file that do not fit the tool are refused by their field", async () => {
    mails();
    const { process } = await follow();
    const [id] = /apr_[0-9a-f]{32}/.exec(process.output())!;
    const file = join(folder.path, "input.json");
    await writeFile(file, '{"to":"nobody"}');
    const refused = await client("approve", id!, "--input", `@${file}`);
    expect(refused.code).toBe(6);
    expect(refused.stderr).toMatch(/edited_input: .*to: /);
    expect((await client("approve", id!, "--input", "{")).code).toBe(2);
    expect((await client("approve", id!, "--result", "1")).code).toBe(2);
    expect((await client("approve", "apr_x")).code).toBe(5);
    await client("reject", id!);
    await process.exited;
  });
});

describe("budget", () => {
  it("of a run: it waits at the cap, shows the command, and goes on when it is raised", async () => {
    prices(2);
    const { process, taskId } = await follow("--action-budget", "5", "--at-cap", "pause");
    await process.waitForLine(`drover budget --run ${taskId} --actions N`);
    const raised = await client("budget", "--run", taskId, "--actions", "10");
    expect(raised).toMatchObject({ code: 0 });
    expect(raised.stdout).toMatch(new RegExp(`^${taskId} {2}\\w+\n$`));
    expect(await process.exited).toMatchObject({ code: 0 });
    expect(process.output()).toMatch(/raised to 10 points by key_/);
    expect(process.output()).toMatch(/resumed +there is budget again/);
  });

  it("of the tenant: shown, set, lifted", async () => {
    expect((await client("budget", "--day", "12.5", "--json")).json()).toMatchObject({
      day_usd: 12.5,
      month_usd: null,
    });
    expect((await client("budget")).stdout).toMatch(/^day \(UTC\) +\$12\.50 +\$/m);
    expect((await client("budget", "--day", "none")).stdout).toMatch(/^day \(UTC\) +none/m);
  });

  it.each([
    [["--actions", "5"], /--run/],
    [["--run", "run_x"], /--max-cost/],
    [["--run", "run_x", "--day", "5"], /leave out --run/],
    [["--day", "much"], /number/],
  ])("%j is wrong usage", async (args, message) => {
    const ended = await client("budget", ...args);
    expect(ended.code).toBe(2);
    expect(ended.stderr).toMatch(message);
  });
});

describe("rollback", () => {
  it("undoes, waits, and says what was undone; asked again it is the same run", async () => {
    prices(2);
    const { task_id: taskId } = (await client("run", "Do it", "--wait", "--json")).json<{ task_id: string }>();
    const ended = await client("rollback", taskId, "--wait");
    expect(ended.code).toBe(0);
    expect(ended.stdout).toContain("2 of 2 effects undone");
    const again = (await client("rollback", taskId, "--json")).json();
    expect(again).toMatchObject({ status: "completed" });
    expect((await client("status", String(again.task_id))).stdout).toContain(`undoes      ${taskId}`);
  });
});

describe("retry", () => {
  it("takes a run that did not complete up again, and shows whose retry it is", async () => {
    models.script((call) =>
      call.turn === 0 ? { toolCalls: [{ name: "set_price", input: { price: 5 } }] } : { status: 400 },
    );
    const { task_id: taskId } = (await client("run", "Do it", "--wait", "--json")).json<{ task_id: string }>();
    models.script(() => "the price is set");
    const once = ["--max-iterations", "3", "--idempotency-key", "again"];
    const accepted = (await client("retry", taskId, ...once, "--json")).json<{ task_id: string; status: string }>();
    expect(accepted.status).toBe("queued");
    const ended = await client("retry", taskId, ...once, "--wait");
    expect(ended).toMatchObject({ code: 0, stdout: "the price is set\n" });
    expect((await client("status", accepted.task_id)).stdout).toContain(`retry of    ${taskId}`);
    expect((await client("events", accepted.task_id)).stdout).toMatch(new RegExp(`copied +\\d events of ${taskId}`));
    const refused = await client("retry", accepted.task_id);
    expect(refused.code).toBe(6);
    expect(refused.stderr).toContain("completed");
  });
});
