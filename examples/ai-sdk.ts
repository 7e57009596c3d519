/**
 * Drover's door in the AI SDK's own loop: each tool's `execute` calls the door, and what a person must approve is asked in place.
 *
 *     ANTHROPIC_API_KEY=… npx node examples/ai-sdk.ts "Pay Ann 20 and raise my limit to 80."
 */
import { createInterface } from "node:readline/promises";
import { createAnthropic } from "@ai-sdk/anthropic";
import { ActionError, type Actions, AgentHarness, HumanApprovalRequired } from "@drover/harness";
import { dynamicTool, isStepCount, jsonSchema, streamText, type ToolSet } from "ai";
import { bankTools } from "./bank-tools.ts";

type Ask = (name: string, args: unknown) => Promise<{ approved: boolean; by: string }>;

/** The door's tools as the AI SDK takes them. */
export function doorTools(actions: Actions, ask: Ask): ToolSet {
  const entries = actions.tools.map(({ name, description, inputSchema }) => [
    name,
    dynamicTool({
      description,
      inputSchema: jsonSchema(inputSchema),
      execute: (args, { toolCallId }) => throughDoor(actions, ask, name, args, toolCallId),
    }),
  ]);
  return Object.fromEntries(entries);
}

async function throughDoor(actions: Actions, ask: Ask, name: string, args: unknown, id: string): Promise<unknown> {
  try {
    return await actions.execute(name, args, { id });
  } catch (error) {
    if (error instanceof HumanApprovalRequired) {
      const { approved, by } = await ask(name, args);
      return approved ? await actions.approveAndExecute(name, args, { id, by }) : "A person rejected this call.";
    }
    // Failures are results that the model sees.
    if (error instanceof ActionError) return error.message;
    throw error;
  }
}

/** Runs a query through the AI SDK's loop. `baseURL` is for tests. */
export async function answer(query: string, actions: Actions, ask: Ask, baseURL?: string): Promise<string> {
  const anthropic = createAnthropic(baseURL === undefined ? {} : { baseURL });
  const { text } = streamText({
    model: anthropic("claude-sonnet-5"),
    prompt: query,
    tools: doorTools(actions, ask),
    stopWhen: isStepCount(10),
  });
  return await text;
}

async function askInTerminal(name: string, args: unknown): Promise<{ approved: boolean; by: string }> {
  const terminal = createInterface({ input: process.stdin, output: process.stdout });
  const said = await terminal.question(`${name} ${JSON.stringify(args)}? [y/N] `);
  terminal.close();
  return { approved: said.trim().toLowerCase() === "y", by: process.env.USER ?? "terminal" };
}

if (import.meta.main) {
  if (!process.env.ANTHROPIC_API_KEY) {
    console.error("Set ANTHROPIC_API_KEY: this example is about the AI SDK's own loop, which needs a model.");
    process.exit(1);
  }
  const query = process.argv.slice(2).join(" ") || "Pay Ann 20 and raise my limit to 80.";
  const actions = new AgentHarness({ tools: bankTools }).actions({ actionBudget: 10 });
  console.log(await answer(query, actions, askInTerminal));
  console.log(`${actions.pointsLeft} of 10 action points left`);
}
