import { createModels, type Model, ModelConfigError, type ModelsOptions, modelConfig } from "@drover/llm";
import type { DroverError } from "@drover/protocol";
import { scrub } from "@drover/telemetry";
import { afterEach, describe, expect, it, vi } from "vitest";
import { startModelServer } from "../support/model-server.ts";

const models = (env: Record<string, string> = {}, options: ModelsOptions = {}) =>
  createModels(modelConfig.parse(env), options);

function configError(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(ModelConfigError);
    expect((error as DroverError).code).toBe("invalid_input");
    return (error as Error).message;
  }
  throw new Error("nothing was thrown");
}

describe("the default model", () => {
  const keys = {
    ANTHROPIC_API_KEY: "a-key",
    OPENAI_API_KEY: "o-key",
    GOOGLE_GENERATIVE_AI_API_KEY: "g-key",
    OLLAMA_BASE_URL: "http://localhost:11434",
  };
  it("is that of the first provider with a key", () => {
    const order = ["anthropic", "openai", "google", "ollama", "demo"];
    const entries = Object.entries(keys);
    for (const [n, provider] of order.entries()) {
      expect(models(Object.fromEntries(entries.slice(n))).default).toMatch(new RegExp(`^${provider}/`));
    }
  });

  it("is the demo without any key, and DROVER_MODEL whatever is set", () => {
    expect(models().default).toBe("demo/demo");
    expect(models({ ANTHROPIC_API_KEY: "" }).default).toBe("demo/demo");
    expect(models({ ...keys, DROVER_MODEL: "ollama/qwen3:8b" }).default).toBe("ollama/qwen3:8b");
  });

  it("can always be resolved when it was chosen by a key", () => {
    for (const [key, value] of Object.entries(keys)) {
      const made = models({ [key]: value });
      expect(made.resolve(made.default).id).toBe(made.default);
    }
  });
});

describe("resolve", () => {
  it("gives the same model for the same id", () => {
    const made = models({ ANTHROPIC_API_KEY: "a-key" });
    expect(made.resolve("anthropic/claude-sonnet-5")).toBe(made.resolve("anthropic/claude-sonnet-5"));
    expect(made.resolve("anthropic/claude-sonnet-5")).not.toBe(made.resolve("anthropic/claude-opus-5"));
  });

  it("takes model names with slashes and colons in them", () => {
    expect(models().resolve("ollama/hf.co/some/model:Q4_K_M").id).toBe("ollama/hf.co/some/model:Q4_K_M");
  });

  it.each(["", "claude", "/x", "anthropic/", "anthropic/a b", "__proto__", `ollama/${"x".repeat(300)}`])(
    "refuses %j",
    (id) => {
      expect(configError(() => models({ ANTHROPIC_API_KEY: "a-key" }).resolve(id))).toContain("provider/model");
    },
  );

  it.each(["nobody/model", "constructor/model", "__proto__/x"])("names the providers there are for %j", (id) => {
    const providers = { house: { type: "openai-compatible", baseURL: "http://127.0.0.1:1/v1" } } as const;
    const message = configError(() => models({}, { providers }).resolve(id));
    expect(message).toContain("anthropic, openai, google, ollama, demo, house");
  });

  it("names the variable of a missing key", () => {
    expect(configError(() => models().resolve("anthropic/claude-sonnet-5"))).toContain("ANTHROPIC_API_KEY");
    expect(configError(() => models().resolve("openai/gpt-5"))).toContain("OPENAI_API_KEY");
    expect(configError(() => models().resolve("google/gemini"))).toContain("GOOGLE_GENERATIVE_AI_API_KEY");
    expect(configError(() => models().resolve("demo/other"))).toContain("demo/demo");
  });
});

describe("additions of a user's own", () => {
  const echo: Model = { id: "mine/echo", call: () => Promise.reject(new Error("not called")) };

  it("are found by their id, before the built-in ones", () => {
    const made = models(
      { ANTHROPIC_API_KEY: "a-key" },
      { models: { "mine/echo": echo, "anthropic/claude-opus-5": echo } },
    );
    expect(made.resolve("mine/echo")).toBe(echo);
    expect(made.resolve("anthropic/claude-opus-5")).toBe(echo);
  });

  it("are refused with names that cannot work", () => {
    const provider = { type: "openai-compatible", baseURL: "http://127.0.0.1:1/v1" } as const;
    expect(configError(() => models({}, { providers: { openai: provider } }))).toContain("taken");
    expect(configError(() => models({}, { providers: { "My House": provider } }))).toContain("My House");
    expect(configError(() => models({}, { providers: { house: { ...provider, baseURL: "nowhere" } } }))).toContain(
      "house",
    );
    expect(configError(() => models({}, { models: { echo } }))).toContain("provider/model");
  });
});

describe("keys and addresses", () => {
  afterEach(() => vi.unstubAllEnvs());

  it("come from the configuration only, never from the environment", async () => {
    const server = await startModelServer();
    const other = await startModelServer();
    for (const [name, value] of Object.entries(other.env())) vi.stubEnv(name, value.replace(/0{10,}$/, "stray"));
    server.script(() => "ok");
    const made = models(server.env());
    const ids = ["anthropic/claude-sonnet-5", "openai/gpt-5", "google/gemini-3.8-flash", "ollama/qwen3"];
    for (const id of ids) {
      const request = { messages: [{ role: "user", content: "hello" } as const], tools: [] };
      expect((await made.resolve(id).call(request, { signal: new AbortController().signal })).ok).toBe(true);
    }
    expect([server.count, other.count]).toEqual([4, 0]);
    for (const { headers } of server.calls) expect(JSON.stringify(headers)).not.toContain("stray");
    // Unset in the configuration is unset, whatever the environment says.
    expect(configError(() => models().resolve("openai/gpt-5"))).toContain("OPENAI_API_KEY");
    await server.close();
    await other.close();
  });

  it("may be written with and without the API's version", async () => {
    const server = await startModelServer();
    server.script(() => "ok");
    const { origin } = new URL(server.url("anthropic"));
    const request = { messages: [{ role: "user", content: "hello" } as const], tools: [] };
    const call = async (url: string) => {
      const made = models({ ANTHROPIC_API_KEY: "a-key", ANTHROPIC_BASE_URL: url });
      return made.resolve("anthropic/claude-sonnet-5").call(request, { signal: new AbortController().signal });
    };
    expect((await call(`${server.url("anthropic")}/`)).ok).toBe(true);
    // A bare host gets the version: the server's answer names the path it was asked for.
    expect(await call(origin)).toMatchObject({ ok: false, message: expect.stringContaining("POST /v1/messages") });
    await server.close();
  });

  it("are scrubbed from every log line once their provider is used", () => {
    const key = "unusual-key-without-a-known-shape";
    models({ OPENAI_API_KEY: key }).resolve("openai/gpt-5");
    expect(scrub(`the key is ${key}`)).not.toContain(key);
  });
});

describe("the configuration", () => {
  it("describes every variable", () => {
    for (const [name, schema] of Object.entries(modelConfig.shape)) expect(schema.description, name).toBeTruthy();
  });

  it.each([
    ["DROVER_MODEL", "claude"],
    ["OPENAI_BASE_URL", "localhost:8080"],
    ["MODEL_IDLE_TIMEOUT_SECONDS", "0"],
    ["MODEL_IDLE_TIMEOUT_SECONDS", "soon"],
    ["MODEL_PRICES", "{"],
    ["MODEL_PRICES", '{"openai/gpt-5":{"inptu":1}}'],
    ["MODEL_PRICES", '{"gpt-5":{"input":1}}'],
    ["DEMO_WORD_DELAY_MS", "-1"],
  ])("refuses %s=%s and names it", (name, value) => {
    const { error } = modelConfig.safeParse({ [name]: value });
    expect(error?.issues.map((issue) => issue.path[0])).toEqual([name]);
  });
});
