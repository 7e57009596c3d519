/**
 * A configuration with one agent and two tools of its own: one that may run again after a crash and can be undone, one that may not run again and
 * whose effect can be looked up. Try it with `DROVER_CONFIG=examples/custom-tool.ts npm start` and `TICKETS_URL` set to a service that
 * takes `POST { title, body }` and answers `{ id }`, deletes on `DELETE /{id}`, and lists what it mailed on `GET /mails/{key}`.
 */
import { defineConfig, defineTool, NothingDone } from "@drover/harness";
import { z } from "zod";

async function tickets(path: string, init: RequestInit): Promise<Response> {
  const url = process.env.TICKETS_URL;
  if (!url) throw new NothingDone("There is no ticket service here (TICKETS_URL is not set).");
  return await fetch(`${url}${path}`, { ...init, headers: { "content-type": "application/json", ...init.headers } });
}

const createTicket = defineTool({
  name: "create_ticket",
  description: "Opens a support ticket and returns its id. Use it once the customer's problem is clear.",
  input: z.object({
    title: z.string().min(1).max(200).describe("one line that names the problem"),
    body: z.string().max(10_000).describe("what happened, and what was tried"),
  }),
  output: z.object({ ticket_id: z.string() }),
  permission: "write",
  // The service knows a repeated key and opens no second ticket: so the call may run again after a crash. Without that: "unsafe".
  effect: "idempotent",
  budgetCost: 1,
  maxCallsPerRun: 3,
  timeoutMs: 15_000,
  async execute(ticket, { idempotencyKey, signal }) {
    const headers = { "idempotency-key": idempotencyKey };
    const response = await tickets("", { method: "POST", headers, body: JSON.stringify(ticket), signal });
    // The model reads this message and may try again or go on without.
    if (!response.ok) throw new Error(`The ticket service answered ${response.status}.`);
    const { id } = (await response.json()) as { id: string };
    return { ticket_id: id };
  },
  // What a rollback of the run calls, with what the call returned.
  async compensate({ output }, { signal }) {
    const response = await tickets(`/${output.ticket_id}`, { method: "DELETE", signal });
    if (!response.ok && response.status !== 404) throw new Error(`The ticket service answered ${response.status}.`);
    return `ticket ${output.ticket_id} deleted`;
  },
});

const mailCustomer = defineTool({
  name: "mail_customer",
  description: "Sends the customer a mail. It cannot be taken back, so a person looks at it first.",
  input: z.object({ ticket_id: z.string(), text: z.string().min(1).max(5000) }),
  permission: "irreversible",
  // Twice would be two mails. When a worker dies inside it, `verify` says whether the mail went out; else a person is asked.
  effect: "unsafe",
  timeoutMs: 15_000,
  async execute({ ticket_id, text }, { idempotencyKey, signal }) {
    const body = JSON.stringify({ text, key: idempotencyKey });
    const response = await tickets(`/${ticket_id}/mails`, { method: "POST", body, signal });
    if (!response.ok) throw new Error(`The ticket service answered ${response.status}.`);
    return "sent";
  },
  async verify({ idempotencyKey }, { signal }) {
    const response = await tickets(`/mails/${idempotencyKey}`, { method: "GET", signal });
    if (response.status === 404) return "not_done";
    return response.ok ? { done: true, output: "sent" } : "unknown";
  },
});

export default defineConfig({
  agents: {
    support: {
      description: "Answers customers and opens tickets",
      systemPrompt: "You help customers. When you cannot solve a problem, open one ticket and tell them its number.",
      tools: ["create_ticket", "mail_customer", "calculate"],
      maxIterations: 6,
      actionBudget: 10,
      approvals: { expiresAfterSeconds: 3600, onExpiry: "reject" },
      // A run that does not complete leaves no tickets behind.
      onFailure: "rollback",
    },
  },
  tools: [createTicket, mailCustomer],
});
