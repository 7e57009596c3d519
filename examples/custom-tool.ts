/**
 * A configuration with one agent and one tool of its own. Try it with `DROVER_CONFIG=examples/custom-tool.ts npm start` and
 * `TICKETS_URL` set to a service that takes `POST { title, body }` and answers `{ id }`.
 */
import { defineConfig, defineTool } from "@drover/harness";
import { z } from "zod";

const createTicket = defineTool({
  name: "create_ticket",
  description: "Opens a support ticket and returns its id. Use it once the customer's problem is clear.",
  input: z.object({
    title: z.string().min(1).max(200).describe("one line that names the problem"),
    body: z.string().max(10_000).describe("what happened, and what was tried"),
  }),
  permission: "write",
  // The service knows a repeated key and opens no second ticket: so the call may run again after a crash. Without that: "unsafe".
  effect: "idempotent",
  timeoutMs: 15_000,
  async execute(ticket, { idempotencyKey, signal }) {
    const url = process.env.TICKETS_URL;
    if (!url) throw new Error("There is no ticket service here (TICKETS_URL is not set).");
    const response = await fetch(url, {
      method: "POST",
      headers: { "content-type": "application/json", "idempotency-key": idempotencyKey },
      body: JSON.stringify(ticket),
      signal,
    });
    // The model reads this message and may try again or go on without.
    if (!response.ok) throw new Error(`The ticket service answered ${response.status}.`);
    const { id } = (await response.json()) as { id: string };
    return { ticket_id: id };
  },
});

export default defineConfig({
  agents: {
    support: {
      description: "Answers customers and opens tickets",
      systemPrompt: "You help customers. When you cannot solve a problem, open one ticket and tell them its number.",
      tools: ["create_ticket", "calculate"],
      maxIterations: 6,
    },
  },
  tools: [createTicket],
});
