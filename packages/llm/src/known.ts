/** Which models an installation has, by name alone: an entry of its own (`@drover/llm/known`), for who calls none and needs no SDK. */

/** In the order in which a set key decides the default model. */
export const builtInProviders = ["anthropic", "openai", "google", "ollama"] as const;
export type BuiltInProvider = (typeof builtInProviders)[number];

export const demoModelId = "demo/demo";

/** Ids of models of a user's own, and `provider/*` for all of a provider's. A built-in provider counts without its key, too. */
export function knownModels(own: { providers?: object | undefined; models?: object | undefined } = {}): string[] {
  const providers = [...builtInProviders, ...Object.keys(own.providers ?? {})].map((name) => `${name}/*`);
  return [...Object.keys(own.models ?? {}), demoModelId, ...providers];
}

/** Whether `known`, of `knownModels`, has the model `id` (`provider/model`). */
export const isKnownModel = (known: readonly string[], id: string): boolean =>
  known.includes(id) || known.includes(`${id.slice(0, id.indexOf("/"))}/*`);
