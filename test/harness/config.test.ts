/** The configuration file: everything that is wrong with it is named at once, and what is right is taken as it is. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  AgentHarness,
  ConfigError,
  checkConfig,
  defaultAgent,
  defineConfig,
  type HarnessConfig,
  memoryLog,
  type RunOptions,
  ToolRegistry,
} from "@drover/harness";
import { loadConfigFile } from "@drover/harness/worker";
import { afterEach, describe, expect, it } from "vitest";
import { z } from "zod";
import { tool } from "./scripted.ts";

function problemsOf(config: unknown, builtin: { name: string }[] = []): string[] {
  try {
    checkConfig(config, "drover.config.ts", builtin);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    const { problems, message } = error as ConfigError;
    expect(message).toBe(["drover.config.ts is not valid:", ...problems.map((problem) => `  - ${problem}`)].join("\n"));
    return problems;
  }
  return [];
}

const good = tool("good", () => 1);

describe("checkConfig", () => {
  it("names every wrong thing at once", () => {
    const problems = problemsOf(
      {
        agents: {
          "Bad Name": { description: "x" },
          writer: { tools: ["good", "missing", "calculate"], temperature: 3, systemprompt: "typo" },
          other: { model: "no-slash", maxIterations: 51, maxTokens: 0.5 },
        },
        tools: [
          good,
          { ...good },
          { ...good, name: "calculate" },
          { ...good, name: "1st", description: "", effect: "harmless", permission: "root", execute: "no function" },
          { ...good, name: "plain", input: { type: "object" } },
          { ...good, name: "dated", input: z.object({ at: z.date() }) },
          { ...good, name: "text", input: z.string() },
          { ...good, name: "either", input: z.union([z.object({ a: z.string() }), z.object({ b: z.string() })]) },
          { ...good, name: "hasty", timeout: 5, timeoutMs: -1 },
        ],
        models: {
          providers: { house: { type: "openai-compatible", baseUrl: "http://house" }, "no name": {} },
          custom: { deaf: { call: 1 } },
          prices: { "house/x": { input: -1 }, everything: { input: 1 } },
          default: "house/x",
        },
        agent: {},
      },
      [{ name: "calculate" }],
    );
    const wanted = [
      /^agents\.Bad Name: must be lower-case letters/,
      /^agents\.writer\.temperature: /,
      /^agents\.writer: .*"systemprompt"/,
      /^agents\.writer\.tools: there is no tool "missing"$/,
      /^agents\.other\.model: must be provider\/model$/,
      /^agents\.other\.maxIterations: /,
      /^agents\.other\.maxTokens: /,
      /^tools\.1\.name: "good" is taken by another tool$/,
      /^tools\.2\.name: "calculate" is taken by another tool$/,
      /^tools\.3\.name: must be letters/,
      /^tools\.3\.description: .*must not be empty$/,
      /^tools\.3\.effect: .*"pure"/,
      /^tools\.3\.permission: .*"read"/,
      /^tools\.3\.execute: must be a function$/,
      /^tools\.4\.input: must be a zod object schema/,
      /^tools\.5\.input: cannot be told to a model as JSON Schema: Date/,
      /^tools\.6\.input: must be an object schema$/,
      /^tools\.7\.input: must be an object schema$/,
      /^tools\.8\.timeoutMs: /,
      /^tools\.8: .*"timeout"/,
      /^models\.providers\.house\.baseURL: must be an http/,
      /^models\.providers\.house: .*"baseUrl"/,
      /^models\.providers\.no name: must be lower-case/,
      /^models\.custom\.deaf: must be provider\/model$/,
      /^models\.custom\.deaf\.call: must be a function$|^models\.custom\.deaf: /,
      /^models\.prices\.house\/x\.input: /,
      /^models\.prices\.everything: must be provider\/model/,
      /^models: .*"default"/,
      /^\(default export\): .*"agent"/,
    ];
    for (const pattern of wanted) expect(problems).toContainEqual(expect.stringMatching(pattern));
    for (const problem of problems)
      expect(
        wanted.some((pattern) => pattern.test(problem)),
        problem,
      ).toBe(true);
  });

  it.each([
    [undefined],
    [null],
    ["text"],
    [7],
    [[]],
    [{ tools: "none" }],
    [{ agents: [] }],
    [{ tools: [null] }],
    [{ agents: { a: null } }],
  ])("does not stumble over %j", (config) => {
    expect(problemsOf(config).length).toBeGreaterThan(0);
  });

  it("takes what is right as the very same objects", () => {
    const custom = new (class {
      id = "my/model";
      call = async () => ({ ok: false, code: "model_error", retryable: false, message: "", text: "" }) as const;
    })();
    const config = defineConfig({
      agents: { writer: { tools: ["good", "calculate"], temperature: 0, maxIterations: 50 }, default: {} },
      tools: [
        good,
        tool("tree", () => 1, { input: z.record(z.string(), z.number()), timeoutMs: 1, maxOutputBytes: 1 }),
      ],
      models: {
        providers: { house: { type: "openai-compatible", baseURL: "http://127.0.0.1:1/v1", apiKey: "k" } },
        custom: { "my/model": custom },
        prices: { "house/*": { input: 0, output: 0.5 } },
      },
    });
    expect(checkConfig(config, "it", [{ name: "calculate" }])).toBe(config);
    expect(checkConfig({}, "it")).toEqual({});
  });
});

describe("AgentHarness", () => {
  it("refuses a configuration that is not valid", () => {
    expect(() => new AgentHarness({ tools: [good, good], env: {} })).toThrow(/tools\.1\.name: "good" is taken/);
    expect(() => new AgentHarness({ agents: { a: { tools: ["none"] } }, env: {} })).toThrow(ConfigError);
    expect(() => new AgentHarness({ model: "no-slash", env: {} })).toThrow(/provider\/model/);
  });

  it("refuses limits, retries and budgets out of bounds, by their names", () => {
    const make = (config: HarnessConfig) => () => new AgentHarness({ env: {}, ...config });
    expect(make({ limits: { hardSeconds: Number.NaN } })).toThrow(/limits\.hardSeconds: /);
    expect(make({ limits: { softSeconds: 9, hardSeconds: 5 } })).toThrow(/limits\.softSeconds: must be less than/);
    expect(make({ retry: { maxAttempts: 0 } })).toThrow(/retry\.maxAttempts: /);
    for (const budgetUsd of [-1, Number.NaN, Number.POSITIVE_INFINITY])
      expect(make({ budgetUsd })).toThrow(/budgetUsd: must be 0 to/);
  });

  it.each<[string, string, RunOptions]>([
    ["query", "  ", {}],
    ["query", "x".repeat(100_001), {}],
    ["temperature", "x", { temperature: 3 }],
    ["maxTokens", "x", { maxTokens: 0.5 }],
    ["maxIterations", "x", { maxIterations: 1000 }],
    ["maxCostUsd", "x", { maxCostUsd: Number.POSITIVE_INFINITY }],
    ["actionBudget", "x", { actionBudget: -1 }],
    ["model", "x", { model: "no-slash" }],
    ["systemPrompt", "x", { systemPrompt: "x".repeat(100_001) }],
    ["limits.hardSeconds", "x", { limits: { hardSeconds: -1 } }],
    ["limits.softSeconds", "x", { limits: { softSeconds: 3, hardSeconds: 3 } }],
    ["limits.deadline", "x", { limits: { deadline: new Date(Number.NaN) } }],
    ["context", "x", { context: [] as never }],
    ["metadata.my_key", "x", { metadata: { my_key: 1 as never } }],
  ])("refuses a run whose %s is out of bounds, and its log stays empty", async (name, query, options) => {
    const log = memoryLog();
    const run = new AgentHarness({ env: {} }).run(query, { ...options, log });
    await expect(run).rejects.toThrow(ConfigError);
    await expect(run).rejects.toThrow(`  - ${name}`);
    expect(await log.read()).toEqual([]);
  });
});

describe("ToolRegistry", () => {
  it("gives each agent its own tools, always as the same object, and tells a model their schema", () => {
    const registry = new ToolRegistry([good, tool("other", () => 1)]);
    const agent = { tools: ["other"] };
    const box = registry.boxFor("default", agent);
    expect(registry.boxFor("default", agent)).toBe(box);
    expect(box.specs.map(({ name }) => name)).toEqual(["other"]);
    expect(box.get("good")).toBeUndefined();
    expect(registry.boxFor("default", {}).specs.map(({ name }) => name)).toEqual(["good", "other"]);
    expect(box.specs[0]!.inputSchema).toEqual({ type: "object", properties: { n: { type: "number" } } });
    expect(() => registry.register(good)).toThrow("registered already");
  });
});

describe("loadConfigFile", () => {
  const folders: string[] = [];
  const home = process.cwd();
  afterEach(async () => {
    process.chdir(home);
    for (const folder of folders.splice(0)) await rm(folder, { recursive: true });
  });

  async function fileWith(text: string): Promise<string> {
    const folder = await mkdtemp(join(tmpdir(), "drover-config-"));
    folders.push(folder);
    const path = join(folder, "drover.config.ts");
    await writeFile(path, text);
    return path;
  }

  it("takes the default export, with the default agent beside it", async () => {
    const path = await fileWith("export default { agents: { writer: { temperature: 1 as number } } };");
    expect(await loadConfigFile(path, [])).toEqual({
      agents: { default: defaultAgent, writer: { temperature: 1 } },
      path,
    });
  });

  it("lets the file say what the default agent is", async () => {
    const path = await fileWith("export default { agents: { default: { tools: ['calculate'] } } };");
    expect((await loadConfigFile(path, [{ name: "calculate" }])).agents).toEqual({ default: { tools: ["calculate"] } });
  });

  it("finds drover.config.ts in the current folder, and needs none", async () => {
    const path = await fileWith("export default { agents: { here: {} } };");
    process.chdir(join(path, ".."));
    expect(Object.keys((await loadConfigFile(undefined, [])).agents)).toEqual(["default", "here"]);
    await rm(path);
    expect(await loadConfigFile(undefined, [])).toEqual({ agents: { default: defaultAgent }, path: null });
  });

  it.each([
    ["that is not valid", "export default { agents: { X: {} } };", /agents\.X: must be lower-case/],
    ["without a default export", "export const config = {};", /no default export.*defineConfig/],
    ["that cannot be parsed", "export default {", /cannot be loaded: /],
    ["that throws", "throw new Error('on purpose');", /cannot be loaded: on purpose/],
    ["that throws no error", "throw null;", /cannot be loaded: null/],
  ])("says what is wrong with one %s", async (_what, text, wanted) => {
    const path = await fileWith(text);
    const error = await loadConfigFile(path, []).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as ConfigError).message).toMatch(wanted);
  });

  it("says that a file is not there when one is asked for", async () => {
    await expect(loadConfigFile("/no/such/file.ts", [])).rejects.toThrow(
      "DROVER_CONFIG (/no/such/file.ts) is not valid:\n  - there is no such file",
    );
  });
});
