/** From a model's id (`provider/model`) to the model: the four built-in providers, the demo, and whatever a user adds. */
import { DroverError } from "@drover/protocol";
import { addSecret, type Logger } from "@drover/telemetry";
import type { ModelConfig, PriceTable } from "./config.ts";
import { createDemoModel } from "./demo.ts";
import { type BuiltInProvider, builtInProviders, demoModelId, knownModels } from "./known.ts";
import type { Model } from "./model.ts";
import { createPricing } from "./pricing.ts";
import { createProviderModel } from "./provider-model.ts";
import { builtInProvider, compatibleProvider, decidingVariables, defaultModels, type Provider } from "./providers.ts";
import { createTransport } from "./transport.ts";

/** A provider of a user's own: any server that speaks OpenAI's chat completions. `baseURL` includes its `/v1`. */
export interface CustomProvider {
  type: "openai-compatible";
  baseURL: string;
  apiKey?: string;
}

export interface ModelsOptions {
  providers?: Record<string, CustomProvider>;
  /** Models of a user's own by `provider/model`; they go before all others. */
  models?: Record<string, Model>;
  /** USD per million tokens; goes before `MODEL_PRICES` of the configuration. */
  prices?: PriceTable;
  logger?: Logger;
}

export interface Models {
  /** Id of the model for agents that name none. Not checked: `resolve` it at boot to learn whether it is usable. */
  readonly default: string;
  /** See `knownModels`: what is not among them, `resolve` refuses. */
  readonly known: string[];
  /**
   * The model of this id; the same object every time. Makes no request: an unknown model of a known provider fails at
   * its first call.
   *
   * @throws ModelConfigError says what is wrong with the id or the configuration, and how to put it right.
   */
  resolve(id: string): Model;
}

/** A model that this installation does not have. Its code is `invalid_input`, so that a route answers 400. */
export class ModelConfigError extends DroverError {
  /** What is wrong is a key that is not set: a run that needs it fails with `auth_failed`. */
  readonly missingKey: boolean;
  constructor(message: string, missingKey = false) {
    super("invalid_input", message);
    this.name = "ModelConfigError";
    this.missingKey = missingKey;
  }
}

const mostModels = 1000;

/**
 * All models of a process, over one HTTP agent. Keys are taken from `config` only and never logged.
 *
 * @throws ModelConfigError when a provider or model in `options` has an unusable name.
 */
export function createModels(config: ModelConfig, options: ModelsOptions = {}): Models {
  const idleTimeoutMs = config.MODEL_IDLE_TIMEOUT_SECONDS * 1000;
  const fetch = createTransport(idleTimeoutMs);
  const pricing = createPricing({ prices: { ...config.MODEL_PRICES, ...options.prices }, logger: options.logger });
  const custom = new Map(Object.entries(checked(options)));
  const own = new Map(Object.entries(options.models ?? {}));
  const demo = createDemoModel({ wordDelayMs: config.DEMO_WORD_DELAY_MS });
  const providers = new Map<string, Provider>();
  const models = new Map<string, Model>();

  function provider(name: string, id: string): Provider {
    const known = providers.get(name);
    if (known) return known;
    const own = custom.get(name);
    let made: Provider | null;
    if (own) made = compatibleProvider({ ...own, name, fetch, pricedAs: { providerApiUrl: own.baseURL } });
    else if (isBuiltIn(name)) made = builtInProvider(name, config, fetch);
    else if (name === "demo") throw new ModelConfigError(`there is no ${quoted(id)}; the demo model is ${demoModelId}`);
    else
      throw new ModelConfigError(
        `there is no model provider ${quoted(name)}; known: ${[...builtInProviders, "demo", ...custom.keys()].join(", ")}`,
      );
    if (!made) {
      const variable = decidingVariables[name as BuiltInProvider];
      throw new ModelConfigError(
        `${quoted(id)} needs ${variable}, which is not set; set it, or use ${demoModelId}`,
        true,
      );
    }
    addSecret(made.key);
    providers.set(name, made);
    return made;
  }

  function make(id: string): Model {
    const slash = id.indexOf("/");
    if (slash < 1 || slash === id.length - 1 || id.length > 200 || /\s/.test(id)) {
      throw new ModelConfigError(
        `${quoted(id)} is not a model; write provider/model, such as anthropic/claude-sonnet-5`,
      );
    }
    const name = id.slice(0, slash);
    const { build, keyFrom, pricedAs, call } = provider(name, id);
    return createProviderModel({
      id,
      languageModel: build(id.slice(slash + 1)),
      context: { provider: name, keyFrom, idleTimeoutMs },
      price: (counts) => pricing.price(id, pricedAs, counts),
      ...call,
    });
  }

  return {
    default: config.DROVER_MODEL ?? defaultModel(config),
    known: knownModels(options),
    resolve(id) {
      const known = own.get(id) ?? (id === demoModelId ? demo : models.get(id));
      if (known) return known;
      const made = make(id);
      // Ids come from clients: the cache must not grow with them.
      if (models.size >= mostModels) models.clear();
      models.set(id, made);
      return made;
    },
  };
}

function defaultModel(config: ModelConfig): string {
  const name = builtInProviders.find((candidate) => config[decidingVariables[candidate]]);
  return name ? `${name}/${defaultModels[name]}` : demoModelId;
}

function checked({ providers = {}, models = {} }: ModelsOptions): Record<string, CustomProvider> {
  for (const [name, { baseURL }] of Object.entries(providers)) {
    if (!/^[a-z0-9][a-z0-9_-]*$/.test(name)) {
      throw new ModelConfigError(`${quoted(name)} is no name for a provider: lower case letters, digits, - and _`);
    }
    if (isBuiltIn(name) || name === "demo") {
      throw new ModelConfigError(`the provider name ${name} is taken; choose another for ${baseURL}`);
    }
    if (!URL.canParse(baseURL)) throw new ModelConfigError(`the baseURL of provider ${name} is not a URL`);
  }
  for (const id of Object.keys(models)) {
    if (!/^[^/\s]+\/\S+$/.test(id))
      throw new ModelConfigError(`${quoted(id)} is no id for a model; write provider/model`);
  }
  return providers;
}

const isBuiltIn = (name: string): name is BuiltInProvider => (builtInProviders as readonly string[]).includes(name);
const quoted = (text: string): string => JSON.stringify(text.slice(0, 200));
