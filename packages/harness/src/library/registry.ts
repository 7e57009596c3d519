/** The tools of a process by name, what the model is told of each, and who may call which how often. */
import type { ToolSpec } from "@drover/llm";
import { RateLimiterMemory, RateLimiterRes } from "rate-limiter-flexible";
import { z } from "zod";
import { contentHash } from "../audit/trail.ts";
import { isolate } from "../isolation/isolated.ts";
import { type Isolation, sharedIsolation } from "../isolation/pool.ts";
import type { AgentDefinition } from "./agent.ts";
import { type AnyTool, type Permission, permissions } from "./tool.ts";

/** What one agent may call, on behalf of one kind of caller. */
export interface Toolbox {
  specs: ToolSpec[];
  get(name: string): AnyTool | undefined;
  /** Counts one call of a tenant. 0: it may go on; else how many ms until the tool's `rate` lets one through. */
  admit(tool: AnyTool, tenant: string): Promise<number>;
  /** The same answer, and nothing is counted. */
  waitMs(tool: AnyTool, tenant: string): Promise<number>;
}

interface Entry {
  tool: AnyTool;
  spec: ToolSpec;
  limiter: RateLimiterMemory | undefined;
}

export class ToolRegistry {
  readonly #tools = new Map<string, Entry>();
  readonly #boxes = new WeakMap<AgentDefinition, Map<string, Toolbox>>();
  readonly #isolation: Isolation;

  /** `isolation`: where tools run that ask for a process of their own. */
  constructor(tools: readonly AnyTool[] = [], isolation: Isolation = sharedIsolation()) {
    this.#isolation = isolation;
    for (const tool of tools) this.register(tool);
  }

  /** Adds a tool. @throws Error when the name is taken; ConfigError when it is to be isolated and its module is not known */
  register(declared: AnyTool): this {
    const tool = isolate(declared, this.#isolation);
    if (this.#tools.has(tool.name)) throw new Error(`a tool named "${tool.name}" is registered already`);
    const { $schema: _, ...inputSchema } = z.toJSONSchema(tool.input, { io: "input" });
    const { rate } = tool;
    this.#tools.set(tool.name, {
      tool,
      spec: { name: tool.name, description: tool.description, inputSchema },
      limiter: rate && new RateLimiterMemory({ points: rate.calls, duration: rate.perSeconds }),
    });
    return this;
  }

  /** Of all tools. */
  get names(): string[] {
    return [...this.#tools.keys()];
  }

  /** The tool of this name, whoever may call it. */
  get(name: string): AnyTool | undefined {
    return this.#tools.get(name)?.tool;
  }

  /**
   * What one agent may call: the tools it names (or all), less those that do not allow it, less those above the caller's `granted`
   * permissions. The same object every time, so 2,000 runs share it.
   */
  boxFor(agentName: string, agent: AgentDefinition, granted: readonly Permission[] = permissions): Toolbox {
    const boxes = this.#boxes.get(agent) ?? new Map<string, Toolbox>();
    this.#boxes.set(agent, boxes);
    const key = `${agentName} ${[...granted].sort().join(" ")}`;
    let box = boxes.get(key);
    if (!box) {
      const named = agent.tools
        ? agent.tools.flatMap((name) => this.#tools.get(name) ?? [])
        : [...this.#tools.values()];
      box = this.#box(
        named.filter(
          ({ tool }) => granted.includes(tool.permission) && (tool.allowedAgents?.includes(agentName) ?? true),
        ),
      );
      boxes.set(key, box);
    }
    return box;
  }

  /** What an agent is, in one hash: another one means that the same run may go on differently. Code is seen by its `version` only. */
  hashOf(agentName: string, agent: AgentDefinition): string {
    const tools = this.boxFor(agentName, agent).specs.map((spec) => {
      const { permission, effect, version = "1" } = this.get(spec.name)!;
      return { ...spec, permission, effect, version };
    });
    const policies = agent.policies?.map(({ name }) => name);
    return contentHash(JSON.parse(JSON.stringify({ ...agent, policies, tools })));
  }

  #box(allowed: Entry[]): Toolbox {
    const byName = new Map(allowed.map((entry) => [entry.tool.name, entry]));
    return {
      specs: allowed.map(({ spec }) => spec),
      get: (name) => byName.get(name)?.tool,
      admit: (tool, tenant) => admit(byName.get(tool.name)?.limiter, tenant),
      waitMs: (tool, tenant) => waitMs(byName.get(tool.name)?.limiter, tenant),
    };
  }
}

async function waitMs(limiter: RateLimiterMemory | undefined, tenant: string): Promise<number> {
  const counted = await limiter?.get(tenant);
  return counted && counted.remainingPoints <= 0 ? Math.max(1, counted.msBeforeNext) : 0;
}

async function admit(limiter: RateLimiterMemory | undefined, tenant: string): Promise<number> {
  if (!limiter) return 0;
  try {
    await limiter.consume(tenant);
    return 0;
  } catch (refused) {
    if (refused instanceof RateLimiterRes) return Math.max(1, refused.msBeforeNext);
    throw refused;
  }
}
