/** The configuration of the journeys' processes: one custom tool that calls an endpoint of the test. */
import { defineConfig, defineTool } from "@drover/harness";
import { z } from "zod";

export default defineConfig({
  tools: [
    defineTool({
      name: "look_up",
      description: "Looks something up.",
      input: z.object({ what: z.string() }),
      permission: "read",
      effect: "idempotent",
      async execute({ what }, { idempotencyKey, signal }) {
        const body = JSON.stringify({ note: what, idempotencyKey });
        const response = await fetch(`${process.env.TOOL_URL}/idempotent`, { method: "POST", body, signal });
        return { found: await response.text() };
      },
    }),
  ],
});
