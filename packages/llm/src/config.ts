import { z } from "zod";

const httpUrl = z.url({ protocol: /^https?$/, error: "must be an http:// or https:// URL" });
const price = z.number().nonnegative();

/** USD per million tokens. `cached` and `cacheWrite` cost what `input` costs where they are not given. */
const tokenPrice = z.strictObject({
  input: price,
  cached: price.optional(),
  cacheWrite: price.optional(),
  output: price.optional(),
});
export type TokenPrice = z.infer<typeof tokenPrice>;

/** By `provider/model`, or `provider/*` for all other models of that provider. */
export const priceTable = z.record(
  z.string().regex(/^[^/\s]+\/\S+$/, "must be provider/model or provider/*"),
  tokenPrice,
);
export type PriceTable = z.infer<typeof priceTable>;

const priceTableText = z.string().transform((text, context): PriceTable => {
  try {
    const parsed = priceTable.safeParse(JSON.parse(text));
    if (parsed.success) return parsed.data;
    context.addIssue({ code: "custom", message: z.prettifyError(parsed.error) });
  } catch {
    context.addIssue({ code: "custom", message: 'must be JSON like {"ollama/*":{"input":0,"output":0}}' });
  }
  return z.NEVER;
});

/** Which models there are. No key at all is a valid configuration: `demo/demo` is the model then. */
export const modelConfig = z.object({
  DROVER_MODEL: z
    .string()
    .regex(/^[^/\s]+\/\S+$/, "must be provider/model, such as anthropic/claude-sonnet-5")
    .optional()
    .describe("default model as `provider/model` (default: by the first key that is set below, else `demo/demo`)"),
  ANTHROPIC_API_KEY: z.string().optional().describe("key for `anthropic/*`"),
  OPENAI_API_KEY: z.string().optional().describe("key for `openai/*`"),
  GOOGLE_GENERATIVE_AI_API_KEY: z.string().optional().describe("key for `google/*` (Gemini API)"),
  OLLAMA_BASE_URL: httpUrl.optional().describe("Ollama for `ollama/*` (used as `http://127.0.0.1:11434` when not set)"),
  ANTHROPIC_BASE_URL: httpUrl.optional().describe("another endpoint that speaks Anthropic's API"),
  OPENAI_BASE_URL: httpUrl.optional().describe("another endpoint that speaks OpenAI's Responses API"),
  GOOGLE_GENERATIVE_AI_BASE_URL: httpUrl.optional().describe("another endpoint that speaks the Gemini API"),
  MODEL_IDLE_TIMEOUT_SECONDS: z.coerce
    .number()
    .positive()
    .max(3600)
    .default(60)
    .describe(
      "a model call that sends not one byte for so long has failed and is tried again; more for slow local models",
    ),
  MODEL_PRICES: priceTableText
    .optional()
    .describe('USD per million tokens where ours are wrong or missing: `{"ollama/*":{"input":0,"output":0}}`'),
  DEMO_WORD_DELAY_MS: z.coerce
    .number()
    .int()
    .min(0)
    .max(1000)
    .default(5)
    .describe("pause of `demo/demo` between two words"),
});
export type ModelConfig = z.infer<typeof modelConfig>;
