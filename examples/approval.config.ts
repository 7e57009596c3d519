/** The service's side of `approval.ts`: an agent with the tools of a small bank, of which one asks a person. */
import { defineConfig, pii, promptInjection, ruleOfTwo } from "@drover/harness";
import { bankTools } from "./bank-tools.ts";

export default defineConfig({
  agents: {
    bank: {
      description: "Looks after one account",
      systemPrompt: "You look after one bank account. Do what you are asked with your tools, then say what you did.",
      tools: ["read_balance", "set_limit", "send_payment"],
      actionBudget: 10,
      onBudget: "pause",
    },
  },
  tools: bankTools,
  policies: [promptInjection({ action: "flag" }), pii({ kinds: ["card"] }), ruleOfTwo()],
});
