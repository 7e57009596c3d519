/** The providers Drover knows by name: where their key is, where they are, which model is theirs by default, how to build it. */
import { createAnthropic } from "@ai-sdk/anthropic";
import { createGoogle } from "@ai-sdk/google";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import type { LanguageModelV4 } from "@ai-sdk/provider";
import type { ModelConfig } from "./config.ts";
import type { BuiltInProvider } from "./known.ts";
import type { PricedAs } from "./pricing.ts";
import type { ProviderModelOptions } from "./provider-model.ts";

/** A provider ready to be called. */
export interface Provider {
  /** What messages for people call its key: a variable, or the place in the code. Undefined where none is needed. */
  keyFrom: string | undefined;
  key: string | undefined;
  pricedAs: PricedAs | undefined;
  build(model: string): LanguageModelV4;
  call?: Pick<ProviderModelOptions, "providerOptions" | "cacheMark">;
}

export const defaultModels: Record<BuiltInProvider, string> = {
  anthropic: "claude-sonnet-5",
  openai: "gpt-5.6-terra",
  google: "gemini-3.8-flash",
  ollama: "qwen3",
};

/** The variable that makes a provider usable, and so the default: its key, for Ollama its address. */
export const decidingVariables = {
  anthropic: "ANTHROPIC_API_KEY",
  openai: "OPENAI_API_KEY",
  google: "GOOGLE_GENERATIVE_AI_API_KEY",
  ollama: "OLLAMA_BASE_URL",
} as const satisfies Record<BuiltInProvider, keyof ModelConfig>;

type Fetch = typeof globalThis.fetch;

/**
 * Null when the provider's key is not set. Keys and URLs are always given, so that no SDK looks into `process.env` for
 * them.
 */
export function builtInProvider(name: BuiltInProvider, config: ModelConfig, fetch: Fetch): Provider | null {
  if (name === "ollama") {
    const baseURL = withPath(config.OLLAMA_BASE_URL || "http://127.0.0.1:11434", "/v1");
    return compatibleProvider({ name, baseURL, fetch, pricedAs: undefined });
  }
  const keyFrom = decidingVariables[name];
  const apiKey = config[keyFrom];
  if (!apiKey) return null;
  const ready = { keyFrom, key: apiKey, pricedAs: { providerId: name } };
  switch (name) {
    case "anthropic": {
      const baseURL = withPath(config.ANTHROPIC_BASE_URL || "https://api.anthropic.com", "/v1");
      const provider = createAnthropic({ apiKey, baseURL, fetch });
      const cacheMark = { anthropic: { cacheControl: { type: "ephemeral" } } };
      return { ...ready, build: (model) => provider(model), call: { cacheMark } };
    }
    case "openai": {
      const baseURL = withPath(config.OPENAI_BASE_URL || "https://api.openai.com", "/v1");
      const provider = createOpenAI({ apiKey, baseURL, fetch });
      // Nothing of a run may live on OpenAI's side only: the log is the truth, and stored items expire.
      return { ...ready, build: (model) => provider(model), call: { providerOptions: { openai: { store: false } } } };
    }
    case "google": {
      const baseURL = withPath(
        config.GOOGLE_GENERATIVE_AI_BASE_URL || "https://generativelanguage.googleapis.com",
        "/v1beta",
      );
      const provider = createGoogle({ apiKey, baseURL, fetch });
      return { ...ready, build: (model) => provider(model) };
    }
  }
}

/** Any server that speaks OpenAI's chat completions: Ollama, vLLM, LM Studio, OpenRouter, Hugging Face ... */
export function compatibleProvider(options: {
  name: string;
  baseURL: string;
  apiKey?: string | undefined;
  fetch: Fetch;
  pricedAs: PricedAs | undefined;
}): Provider {
  const { name, baseURL, apiKey, fetch, pricedAs } = options;
  const provider = createOpenAICompatible({ name, baseURL, fetch, includeUsage: true, ...(apiKey ? { apiKey } : {}) });
  const keyFrom = apiKey ? `the apiKey of provider ${name}` : undefined;
  return { keyFrom, key: apiKey, pricedAs, build: (model) => provider(model) };
}

/** Base URLs are written with and without the API's version; `path` is put on a bare host only. */
function withPath(url: string, path: string): string {
  const trimmed = url.replace(/\/+$/, "");
  return new URL(trimmed).pathname === "/" ? trimmed + path : trimmed;
}
