/**
 * Money before it is spent. The worst a model call can cost is reserved before the call, from what is left at every level that has a cap, and
 * the reply's length is lowered to what that pays for. The run's own level is counted from its log, since a run has one owner and one
 * model call at a time; the levels around it are a port.
 */
import type { Model, ModelRequest } from "@drover/llm";
import type { BudgetLevel } from "./events.ts";
import type { RunState } from "./fold.ts";

export type OuterLevel = Exclude<BudgetLevel, "actions" | "run">;

/** Caps around the run: its session, its tenant's day and month. All amounts are integer nano-USD. */
export interface MoneyBudget {
  /** Whether an outer level has a cap now. */
  readonly capped: boolean;
  /**
   * Sets aside as much of `most` as every capped level has left, if that is at least `least`. Atomic over all levels: two callers never get the
   * same money. Waits while what is missing is only set aside by others; `exhausted` means that it is spent. A crash gives a reservation
   * back in the end.
   */
  reserve(most: number, least: number): Promise<{ granted: number } | { exhausted: OuterLevel }>;
  /**
   * The call is over: gives back what is set aside and charges what it cost; null, not known: all that was set aside. Harmless when nothing is.
   */
  settle(costNanos: number | null): Promise<void>;
}

/** No caps around the run. */
export const noBudget: MoneyBudget = {
  capped: false,
  reserve: async (most) => ({ granted: most }),
  settle: async () => {},
};

/** One cap over every run that takes a share of it, as long as the process lives. `stop` ends a run's waiting for money. */
export function memoryBudget(capNanos: number): { share(stop: AbortSignal): MoneyBudget; readonly usedNanos: number } {
  let used = 0;
  let reserved = 0;
  let settled = Promise.withResolvers<void>();
  return {
    share(stop) {
      let mine = 0;
      const stopped = new Promise<void>((resolve) => stop.addEventListener("abort", () => resolve(), { once: true }));
      return {
        capped: true,
        async reserve(most, least) {
          while (capNanos - used >= least && !stop.aborted) {
            const granted = Math.min(most, capNanos - used - reserved);
            if (granted >= least) {
              mine = granted;
              reserved += granted;
              return { granted };
            }
            await Promise.race([settled.promise, stopped]);
          }
          return { exhausted: "tenant_month" };
        },
        async settle(costNanos) {
          reserved -= mine;
          used += costNanos ?? mine;
          mine = 0;
          settled.resolve();
          settled = Promise.withResolvers();
        },
      };
    },
    get usedNanos() {
      return used;
    },
  };
}

/** Replies shorter than this are of no use: less than what pays for them is the cap. */
const leastTokens = 256;
/** What is reserved for a reply that nobody limited. */
const usualTokens = 8192;
/** Kept back for the last turn. */
const wrapUpTokens = 256;

export type Permit =
  /** `maxOutputTokens` undefined: the reply may be as long as its model makes it. `nanos`: what it costs at most; undefined: nothing is capped. */
  | { ok: true; maxOutputTokens: number | undefined; nanos?: number }
  | { ok: false; why: "price_unknown" }
  | { ok: false; why: "exhausted"; level: BudgetLevel };

/**
 * Whether a call may be made, and how long its reply may get. Reserves at the outer levels; `budget.settle` must follow.
 * @param wrapUp the last turn: it may use what was kept back for it
 */
export async function permitCall(
  { model, state, budget }: { model: Model; state: RunState; budget: MoneyBudget },
  request: ModelRequest,
  wrapUp: boolean,
): Promise<Permit> {
  const cap = state.caps.costNanos;
  if (cap === undefined && !budget.capped) return { ok: true, maxOutputTokens: request.maxOutputTokens };
  const input = mostInputTokens(state, request);
  const price = priceOf(model, input);
  if (!price) return { ok: false, why: "price_unknown" };
  const { inputNanos, perTokenNanos } = price;
  const costOf = (tokens: number) => Math.ceil(inputNanos + tokens * perTokenNanos);
  const affordable = (nanos: number) =>
    perTokenNanos === 0
      ? nanos >= inputNanos
        ? Number.POSITIVE_INFINITY
        : -1
      : Math.floor((nanos - inputNanos) / perTokenNanos);

  const wanted = request.maxOutputTokens ?? usualTokens;
  const least = Math.min(leastTokens, wanted);
  let tokens = wanted;
  if (cap !== undefined) {
    const kept = wrapUp ? 0 : costOf(wrapUpTokens);
    tokens = Math.min(tokens, affordable(cap - state.costNanos - state.doubtfulNanos - kept));
    if (tokens < least) return { ok: false, why: "exhausted", level: "run" };
  }
  if (budget.capped && costOf(tokens) > 0) {
    const answer = await budget.reserve(costOf(tokens), costOf(least));
    if ("exhausted" in answer) return { ok: false, why: "exhausted", level: answer.exhausted };
    tokens = Math.min(tokens, affordable(answer.granted));
  }
  return { ok: true, maxOutputTokens: tokens, nanos: costOf(tokens) };
}

/** What the input costs, and each token of the reply; null when the price is not known. */
function priceOf(model: Model, input: number): { inputNanos: number; perTokenNanos: number } | null {
  const sample = 1_000_000;
  const inputNanos = model.worstCaseNanos?.({ input, output: 0 }) ?? null;
  const both = model.worstCaseNanos?.({ input, output: sample }) ?? null;
  if (inputNanos === null || both === null) return null;
  return { inputNanos, perTokenNanos: (both - inputNanos) / sample };
}

/**
 * Tokens of the input at most, for practical purposes: half its bytes. Text of any language takes fewer (English about a quarter of its
 * bytes, Chinese about half); what takes more is noise. The provider's own count of the last call is believed where it is higher.
 */
function mostInputTokens(state: RunState, request: ModelRequest): number {
  const text = JSON.stringify([request.system ?? "", request.messages, request.tools]);
  return Math.max(Math.ceil(Buffer.byteLength(text) / 2), state.lastInputTokens);
}
