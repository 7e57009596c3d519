/**
 * What a model call costs, in integer nano-USD: from the price table of `@pydantic/genai-prices` (data inside the package,
 * no network), under the user's own prices. A price that is not known is null, never 0.
 */
import type { Logger } from "@drover/telemetry";
import { calcPrice, findProvider, type Provider } from "@pydantic/genai-prices";
import type { PriceTable, TokenPrice } from "./config.ts";
import type { Usage } from "./model.ts";

export interface TokenCounts extends Usage {
  /** Tokens written to the provider's cache, part of `input`. */
  cacheWrite: number;
}

/** How the price table knows a provider: by its name there, or by the URL it is reached at. */
export type PricedAs = { providerId: string } | { providerApiUrl: string };

export interface Pricing {
  /**
   * Nano-USD of one call of `id` (`provider/model`), or null, with one warning per model, when its price is not known.
   * `pricedAs` undefined means that only the user's own prices count.
   */
  price(id: string, pricedAs: PricedAs | undefined, counts: TokenCounts): number | null;
}

type Rule = (counts: TokenCounts) => number | null;
const mostRules = 1000;

export function createPricing(options: { prices: PriceTable; logger: Logger | undefined }): Pricing {
  const rules = new Map<string, Rule | null>();
  return {
    price(id, pricedAs, counts) {
      let rule = rules.get(id);
      if (rule === undefined) {
        rule = findRule(options.prices, id, pricedAs);
        if (rules.size >= mostRules) rules.clear();
        rules.set(id, rule);
        if (!rule) {
          const hint = `the price of ${id} is not known, so its runs have no known cost; set it in MODEL_PRICES`;
          options.logger?.warn({ model: id }, hint);
        }
      }
      return rule?.(counts) ?? null;
    },
  };
}

function findRule(prices: PriceTable, id: string, pricedAs: PricedAs | undefined): Rule | null {
  const slash = id.indexOf("/");
  const own = prices[id] ?? prices[`${id.slice(0, slash)}/*`];
  if (own) return (counts) => ownPrice(own, counts);
  const provider = pricedAs && findProvider(pricedAs);
  return provider ? tableRule(provider, id.slice(slash + 1)) : null;
}

/** USD per million tokens is 1,000 nano-USD per token. */
function ownPrice(price: TokenPrice, { input, cached, cacheWrite, output }: TokenCounts): number | null {
  // Replies are the dear part: a price that leaves them out is none.
  if (price.output === undefined) return null;
  const plain = Math.max(0, input - cached - cacheWrite) * price.input;
  const cache = cached * (price.cached ?? price.input) + cacheWrite * (price.cacheWrite ?? price.input);
  return Math.round((plain + cache + output * price.output) * 1000);
}

/** Looks the model up once: matching it against the whole table takes 45 us, a provider with one model in it 5. */
function tableRule(provider: Provider, model: string): Rule | null {
  const found = calcPrice({ input_tokens: 0, output_tokens: 0 }, model, { provider });
  if (!found) return null;
  const only: Provider = { ...found.provider, models: [found.model], fallback_model_providers: [] };
  return ({ input, cached, cacheWrite, output }) => {
    const usage = {
      input_tokens: input,
      cache_read_tokens: cached,
      cache_write_tokens: cacheWrite,
      output_tokens: output,
    };
    const result = calcPrice(usage, model, { provider: only });
    return result && Math.round(result.total_price * 1e9);
  };
}
