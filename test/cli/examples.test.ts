/** The examples that are programs run, as a newcomer runs them and with a model that calls their tool. `client.test.ts` has the configuration. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type ModelServer, startModelServer } from "../support/model-server.ts";

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
