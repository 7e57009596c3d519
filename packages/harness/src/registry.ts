/** The tools of a process by name, with what the model is told of each. */
import type { ToolSpec } from "@drover/llm";
import { z } from "zod";
import type { AgentDefinition } from "./agent.ts";
import type { ToolDefinition } from "./tool.ts";

// biome-ignore lint/suspicious/noExplicitAny: tools of any input live side by side.
export type AnyTool = ToolDefinition<any>;

export interface Toolbox {
  specs: ToolSpec[];
  get(name: string): AnyTool | undefined;
}

export class ToolRegistry {
  readonly #tools = new Map<string, { tool: AnyTool; spec: ToolSpec }>();
  readonly #boxes = new WeakMap<AgentDefinition, Toolbox>();

  constructor(tools: readonly AnyTool[] = []) {
    for (const tool of tools) this.register(tool);
  }

  /** Adds a tool. Throws when the name is taken. */
  register(tool: AnyTool): this {
    if (this.#tools.has(tool.name)) throw new Error(`a tool named "${tool.name}" is registered already`);
    const { $schema: _, ...inputSchema } = z.toJSONSchema(tool.input, { io: "input" });
    this.#tools.set(tool.name, { tool, spec: { name: tool.name, description: tool.description, inputSchema } });
    return this;
  }

  /** What one agent may call: the tools it names, or all. The same object every time, so 2,000 runs share it. */
  boxFor(agent: AgentDefinition): Toolbox {
    const known = this.#boxes.get(agent);
    if (known) return known;
    const allowed = agent.tools
      ? agent.tools.flatMap((name) => this.#tools.get(name) ?? [])
      : [...this.#tools.values()];
    const byName = new Map(allowed.map(({ tool }) => [tool.name, tool]));
    const box: Toolbox = { specs: allowed.map(({ spec }) => spec), get: (name) => byName.get(name) };
    this.#boxes.set(agent, box);
    return box;
  }
}
