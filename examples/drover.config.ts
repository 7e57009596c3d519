/**
 * What an installation says about its agents, tools and models. Put such a file beside your project as `drover.config.ts`, or name it:
 *
 *     DROVER_CONFIG=examples/drover.config.ts npm start
 *     npx drover run "Where is order 1042, and what do 3 of its lamps cost?" --agent shop --follow
 *
 * With a model's key set the agent calls `order_status`. Without one the built-in demo model answers, which knows the built-in
 * tools only: try `npx drover run "What is 3 * 19.90?" --agent shop --follow`.
 */
import { defineConfig, defineTool } from "@drover/harness";
import { z } from "zod";

/** Stands for a database of yours. */
const orders: Record<string, { state: string; lamps: number; price_usd: number }> = {
  "1042": { state: "on its way, expected tomorrow", lamps: 2, price_usd: 19.9 },
  "1043": { state: "delivered", lamps: 1, price_usd: 24.5 },
};

const orderStatus = defineTool({
  name: "order_status",
  description: "State, number of lamps and price of one lamp of an order.",
  input: z.object({ order: z.string().regex(/^\d+$/).describe("the order's number, such as 1042") }),
  // Only looks: may run again after a crash, and needs nobody's leave.
  permission: "read",
  effect: "pure",
  timeoutMs: 5_000,
  execute({ order }) {
    const found = orders[order];
    // The model reads this message and can ask for another number.
    if (!found) throw new Error(`There is no order ${order}.`);
    return found;
  },
});

export default defineConfig({
  agents: {
    shop: {
      description: "Answers questions about orders",
      systemPrompt:
        "You answer customers of a lamp shop in one or two sentences. Look orders up; calculate, never guess.",
      tools: ["order_status", "calculate"],
      maxIterations: 6,
    },
  },
  tools: [orderStatus],
  models: {
    // Your own hardware: these calls cost nothing.
    prices: { "ollama/*": { input: 0, output: 0 } },
  },
});
