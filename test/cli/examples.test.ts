/** Each example runs: as a newcomer runs it, and with a model that calls its tool. */
import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type ModelServer, startModelServer } from "../support/model-server.ts";
import { drover, startDev, temporaryFolder } from "./drover.ts";

const run = promisify(execFile);
const examples = new URL("../../examples/", import.meta.url);
const folder = await temporaryFolder();
let models: ModelServer;

beforeAll(async () => {
  models = await startModelServer();
  models.script(({ results, tools }) => {
    if (results.length > 0) return `The tool says: ${results.map((result) => result.content).join()}`;
    const call = tools.includes("roll_dice")
      ? { name: "roll_dice", input: { dice: 2 } }
      : { name: "order_status", input: { order: "1042" } };
    return { toolCalls: [call] };
  });
});

afterAll(async () => {
  await models.close();
  await folder.remove();
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

it("drover.config.ts: its agent answers with its own tool, and with the demo model", async () => {
  const env = { DROVER_CONFIG: new URL("drover.config.ts", examples).pathname, ...models.env() };
  const dataDir = `${folder.path}/data`;
  const dev = await startDev(dataDir, env);
  const ask = (...args: string[]) =>
    drover(["run", ...args, "--agent", "shop", "--wait", "--json", "--data-dir", dataDir]);
  const real = await ask("Where is order 1042?");
  expect(real.code, real.stderr).toBe(0);
  expect(real.json()).toMatchObject({ tools_called: ["order_status"], output: expect.stringContaining("on its way") });
  const demo = await ask("What is 3 * 19.90?", "--model", "demo/demo");
  expect(demo.json()).toMatchObject({ tools_called: ["calculate"], output: expect.stringContaining("59.7") });
  await dev.process.kill("SIGINT");
});
