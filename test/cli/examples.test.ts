/** The examples that are programs run, as a newcomer runs them and with a model that calls their tool. `client.test.ts` has the configuration. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { startDev, temporaryFolder } from "./drover.ts";

const run = promisify(execFile);
const examples = new URL("../../examples/", import.meta.url);
let models: ModelServer;

beforeAll(async () => {
  models = await startModelServer();
  models.script([{ toolCalls: [{ name: "roll_dice", input: { dice: 2 } }] }, "There you are."]);
});

afterAll(async () => {
  await models.close();
});

it("harness.ts runs without a key, with the demo model", async () => {
  const env = { PATH: process.env.PATH };
  const { stdout } = await run(process.execPath, [new URL("harness.ts", examples).pathname, "What is 6 * 7?"], { env });
  expect(JSON.parse(stdout)).toMatchObject({ status: "success", tools_called: ["calculate"], cost_usd: 0 });
  expect(stdout).toContain("42");
});

it("harness.ts with a real provider's API calls its own tool", async () => {
  const env = { PATH: process.env.PATH, ...models.env(), DROVER_MODEL: "anthropic/claude-sonnet-4-5" };
  const { stdout } = await run(process.execPath, [new URL("harness.ts", examples).pathname], { env });
  expect(JSON.parse(stdout)).toMatchObject({ status: "success", tools_called: ["roll_dice"] });
});

it("actions.ts goes from read to an approved irreversible action, and is stopped where it must be", async () => {
  const { stdout } = await run(process.execPath, [new URL("actions.ts", examples).pathname], {
    env: { PATH: process.env.PATH },
  });
  const lines = stdout.split("\n");
  const said = (word: string) => lines.find((line) => line.startsWith(`${word}:`));
  expect(said("read")).toContain("balance: 100");
  expect(said("write")).toContain("now: 80");
  expect(said("admin")).toContain("frozen");
  expect(said("blocked")).toContain("no-casinos");
  expect(said("asks")).toContain("4 points left");
  expect(said("approved")).toContain("sent: 20");
  expect(said("budget")).toContain("more points than are left");
});

it("approval.ts waits for a person over HTTP, and the run goes on with what was approved", async () => {
  models.reset();
  models.script([{ toolCalls: [{ name: "send_payment", input: { to: "Ann", amount: 20 } }] }, "Ann has her 20."]);
  const folder = await temporaryFolder();
  const dev = await startDev(folder.path, {
    ...models.env(),
    DROVER_MODEL: "anthropic/claude-sonnet-4-5",
    DROVER_CONFIG: new URL("approval.config.ts", examples).pathname,
  });
  const env = { PATH: process.env.PATH, DROVER_URL: dev.url, DROVER_API_KEY: dev.key! };
  const { stdout } = await run(process.execPath, [new URL("approval.ts", examples).pathname, "Pay Ann 20."], { env });
  expect(stdout).toMatch(/asked: send_payment \{"to":"Ann","amount":20\}/);
  expect(stdout).toContain("completed Ann has her 20.");
  await dev.process.kill("SIGTERM");
  await folder.remove();
});
