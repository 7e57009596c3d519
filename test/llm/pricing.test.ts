import { createModels, type Model, type ModelsOptions, modelConfig } from "@drover/llm";
import { createLogger } from "@drover/telemetry";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type ModelServer, type ScriptedUsage, startModelServer } from "../support/model-server.ts";

let server: ModelServer;
beforeAll(async () => {
  server = await startModelServer();
});
afterAll(() => server.close());

let usage: ScriptedUsage | null;
beforeEach(() => {
  server.reset();
  server.script(() => ({ text: "ok", usage }));
});

const lines: { level: number; model?: string; msg: string }[] = [];
const logger = createLogger({ name: "test", to: { write: (line: string) => void lines.push(JSON.parse(line)) } });
beforeEach(() => {
  lines.length = 0;
});

function modelOf(id: string, options: ModelsOptions = {}, env: Record<string, string> = {}): Model {
  return createModels(modelConfig.parse({ ...server.env(), ...env }), { logger, ...options }).resolve(id);
}

async function costOf(model: Model): Promise<number | null> {
  const request = { messages: [{ role: "user", content: "hello" } as const], tools: [] };
  const result = await model.call(request, { signal: new AbortController().signal });
  if (!result.ok) throw new Error(result.message);
  return result.costNanos;
}

describe("our own price table", () => {
  it("prices plain, cached, written and produced tokens apart", async () => {
    usage = { input: 1_000_000, cached: 300_000, cacheWrite: 100_000, output: 10_000 };
    // claude-sonnet-4-6: 3 in, 0.30 from the cache, 3.75 into it, 15 out, in USD per million tokens.
    const usd = 0.6 * 3 + 0.3 * 0.3 + 0.1 * 3.75 + 0.01 * 15;
    expect(await costOf(modelOf("anthropic/claude-sonnet-4-6"))).toBe(Math.round(usd * 1e9));
  });

  it("knows the default model of every provider with a key", async () => {
    usage = { input: 1000, output: 100 };
    for (const key of ["ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY"]) {
      const { ANTHROPIC_BASE_URL, OPENAI_BASE_URL, GOOGLE_GENERATIVE_AI_BASE_URL } = server.env();
      const urls = { ANTHROPIC_BASE_URL, OPENAI_BASE_URL, GOOGLE_GENERATIVE_AI_BASE_URL };
      const models = createModels(modelConfig.parse({ ...urls, [key]: "sk-0123456789" }), { logger });
      const cost = await costOf(models.resolve(models.default));
      expect(cost, models.default).toBeGreaterThan(0);
      expect(Number.isInteger(cost)).toBe(true);
    }
    expect(lines).toEqual([]);
  });

  it("prices the tokens of a long prompt by its own tier", async () => {
    usage = { input: 100_000, output: 0 };
    const short = await costOf(modelOf("anthropic/claude-sonnet-4-5"));
    usage = { input: 300_000, output: 0 };
    const long = await costOf(modelOf("anthropic/claude-sonnet-4-5"));
    expect([short, long]).toEqual([0.3e9, 1.8e9]);
  });
});

describe("a price that is not known", () => {
  it("is null, with one warning per model", async () => {
    usage = { input: 1000, output: 100 };
    const models = createModels(modelConfig.parse(server.env()), { logger });
    for (let n = 0; n < 3; n++) expect(await costOf(models.resolve("anthropic/claude-unheard-of"))).toBeNull();
    expect(await costOf(models.resolve("ollama/qwen3"))).toBeNull();
    expect(lines.map(({ level, model }) => ({ level, model }))).toEqual([
      { level: 40, model: "anthropic/claude-unheard-of" },
      { level: 40, model: "ollama/qwen3" },
    ]);
    expect(lines[0]!.msg).toContain("MODEL_PRICES");
  });

  it("is not that of a model of the same name elsewhere", async () => {
    usage = { input: 1000, output: 100 };
    const providers = { house: { type: "openai-compatible", baseURL: server.url("openai-compatible") } } as const;
    expect(await costOf(modelOf("house/gpt-4o", { providers }))).toBeNull();
  });
});

describe("prices of one's own", () => {
  it("go before ours, also by provider, the exact model first", async () => {
    usage = { input: 1000, cached: 200, output: 100 };
    const MODEL_PRICES = '{"ollama/*":{"input":0,"output":0},"ollama/big":{"input":1,"output":2}}';
    expect(await costOf(modelOf("ollama/qwen3", {}, { MODEL_PRICES }))).toBe(0);
    expect(await costOf(modelOf("ollama/big", {}, { MODEL_PRICES }))).toBe((1000 * 1 + 100 * 2) * 1000);
    const prices = { "ollama/big": { input: 1, cached: 0.25, output: 0 }, "openai/*": { input: 3, output: 1 } };
    expect(await costOf(modelOf("ollama/big", { prices }, { MODEL_PRICES }))).toBe((800 * 1 + 200 * 0.25) * 1000);
    expect(await costOf(modelOf("openai/gpt-4o", { prices }))).toBe((1000 * 3 + 100) * 1000);
    expect(lines).toEqual([]);
  });

  it("are none without a price for replies", async () => {
    usage = { input: 1000, output: 100 };
    expect(await costOf(modelOf("openai/gpt-4o", { prices: { "openai/*": { input: 3 } } }))).toBeNull();
  });

  it("do not turn a missing usage into a cost", async () => {
    usage = null;
    expect(await costOf(modelOf("openai/gpt-4o", { prices: { "openai/*": { input: 3, output: 1 } } }))).toBeNull();
  });
});
