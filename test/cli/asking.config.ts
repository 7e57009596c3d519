/** The configuration of a service whose tools ask people, cost points and can be undone. */
import { defineConfig, defineTool } from "@drover/harness";
import { z } from "zod";

export default defineConfig({
  tools: [
    defineTool({
      name: "send_mail",
      description: "Sends a mail.",
      input: z.object({ to: z.email() }),
      permission: "irreversible",
      effect: "unsafe",
      execute: ({ to }) => `sent to ${to}`,
    }),
    defineTool({
      name: "set_price",
      description: "Sets a price.",
      input: z.object({ price: z.number() }),
      permission: "write",
      effect: "idempotent",
      budgetCost: 5,
      execute: ({ price }) => `it is ${price}`,
      compensate: () => "it is what it was",
    }),
  ],
});
