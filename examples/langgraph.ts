/**
 * Drover's door in a LangGraph agent. Its tools node calls the door, so that permissions, budgets, policies and the audit trail hold; for what
 * a person must approve, the graph pauses by LangGraph's own `interrupt` and goes on where it was.
 *
 *     ANTHROPIC_API_KEY=… npx node examples/langgraph.ts "Pay Ann 20 and raise my limit to 80."
 */
import { parseArgs } from "node:util";
import { ActionError, type Actions, AgentHarness, HumanApprovalRequired } from "@drover/harness";
import { createModels, type ModelMessage, modelConfig, type ToolCallRequest } from "@drover/llm";
import {
  Annotation,
  Command,
  END,
  interrupt,
  isInterrupted,
  MemorySaver,
  START,
  StateGraph,
} from "@langchain/langgraph";
import { bankTools } from "./bank-tools.ts";

const State = Annotation.Root({
  messages: Annotation<ModelMessage[]>({ reducer: (all, more) => [...all, ...more], default: () => [] }),
  calls: Annotation<ToolCallRequest[]>({ reducer: (_before, now) => now, default: () => [] }),
});
type GraphState = typeof State.State;

/** What the graph asks a person, and what it is told. */
interface Question {
  action: string;
  args: unknown;
}
interface Answer {
  approved: boolean;
  by: string;
  note?: string;
}

/** A graph of two nodes: the model, and its tools behind the door. One `Actions` belongs to one thread of the graph. */
export function buildGraph(actions: Actions, env: Record<string, string | undefined> = process.env) {
  const models = createModels(modelConfig.parse(env));
  const model = models.resolve(models.default);

  async function think({ messages }: GraphState) {
    const reply = await model.call({ messages, tools: actions.tools }, { signal: AbortSignal.timeout(60_000) });
    if (!reply.ok) throw new Error(reply.message);
    return { messages: reply.messages, calls: reply.toolCalls };
  }

  async function act({ calls }: GraphState) {
    const content = [];
    for (const call of calls) {
      const value = await throughDoor(call);
      content.push({
        type: "tool-result" as const,
        toolCallId: call.id,
        toolName: call.name,
        output: { type: "text" as const, value },
      });
    }
    return { messages: [{ role: "tool" as const, content }], calls: [] };
  }

  /** After an interrupt LangGraph runs the node anew: with the call's id the door answers what is done already instead of doing it twice. */
  async function throughDoor({ id, name, input }: ToolCallRequest): Promise<string> {
    try {
      return JSON.stringify(await actions.execute(name, input, { id }));
    } catch (error) {
      if (error instanceof HumanApprovalRequired) return await askPerson(id, error);
      // Failures are results that the model sees.
      if (error instanceof ActionError) return error.message;
      throw error;
    }
  }

  async function askPerson(id: string, { actionName, actionArgs }: HumanApprovalRequired): Promise<string> {
    const { approved, by, note } = interrupt<Question, Answer>({ action: actionName, args: actionArgs });
    if (!approved) return `A person rejected this call: ${note ?? "no reason given"}`;
    return JSON.stringify(await actions.approveAndExecute(actionName, actionArgs, { id, by }));
  }

  return new StateGraph(State)
    .addNode("think", think)
    .addNode("act", act)
    .addEdge(START, "think")
    .addConditionalEdges("think", ({ calls }: GraphState) => (calls.length > 0 ? "act" : END), ["act", END])
    .addEdge("act", "think")
    .compile({ checkpointer: new MemorySaver() });
}

async function main(): Promise<void> {
  const query = parseArgs({ allowPositionals: true }).positionals.join(" ") || "Pay Ann 20 and raise my limit to 80.";
  const actions = new AgentHarness({ tools: bankTools }).actions({ actionBudget: 10 });
  const graph = buildGraph(actions);
  const thread = { configurable: { thread_id: "1" } };
  let state: unknown = await graph.invoke({ messages: [{ role: "user", content: query }] }, thread);
  while (isInterrupted<Question>(state)) {
    const question = state.__interrupt__[0]!.value!;
    console.log("approved by bob:", question.action, JSON.stringify(question.args));
    state = await graph.invoke(new Command({ resume: { approved: true, by: "bob" } satisfies Answer }), thread);
  }
  const said = (state as GraphState).messages.at(-1)!.content;
  console.log(typeof said === "string" ? said : said.map((part) => ("text" in part ? part.text : "")).join(""));
  console.log(`${actions.pointsLeft} of 10 action points left`);
}

if (import.meta.main) await main();
