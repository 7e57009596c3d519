/** What the harness's tests share: a harness on the scripted model server, tools that tell what they do, logs to go on from. */
import {
  AgentHarness,
  type AnyTool,
  defineTool,
  type EventData,
  type EventType,
  type HarnessConfig,
  type LogEvent,
  memoryLog,
  type RunLog,
  type ToolContext,
} from "@drover/harness";
import { z } from "zod";
import type { ModelServer } from "../support/model-server.ts";

export const anthropic = "anthropic/claude-sonnet-5";
/** Retries whose pauses nobody notices. */
const quickRetry = { maxAttempts: 3, backoffMs: 2, maxBackoffMs: 4 };
/** An answer that is worth a retry at once. */
export const overloaded = { status: 529, headers: { "retry-after-ms": "1" } };

export function harnessOn(server: ModelServer, config: HarnessConfig = {}): AgentHarness {
  return new AgentHarness({ env: server.env(), model: anthropic, retry: quickRetry, ...config });
}

/** A tool that takes `{ n?: number }`; pure, unless said otherwise. */
export function tool(
  name: string,
  execute: (input: { n?: number }, context: ToolContext) => unknown,
  more: Partial<AnyTool> = {},
): AnyTool {
  return defineTool({
    name,
    description: `The tool ${name}.`,
    input: z.object({ n: z.number().optional() }),
    permission: "read",
    effect: "pure",
    execute,
    ...more,
  });
}

/** A log that has these events already, each as storage would give it back. */
export function logFrom(events: LogEvent[], runId?: string): RunLog & { events: LogEvent[] } {
  const all: LogEvent[] = JSON.parse(JSON.stringify(events));
  return {
    ...(runId && { runId }),
    events: all,
    read: async () => [...all],
    append: async (event) => {
      const logged: LogEvent = { ...event, seq: all.length + 1, at: new Date().toISOString() };
      all.push(logged);
      return logged;
    },
  };
}

/** A log whose events a test looks at. */
export function openLog(): RunLog & { events: LogEvent[] } {
  return logFrom([], memoryLog().runId);
}

/** The data of every event of one type, in order. */
export function eventsOf<T extends EventType>(events: LogEvent[], type: T): EventData[T][] {
  return events.filter((event) => event.type === type).map((event) => event.data as EventData[T]);
}

export const types = (events: LogEvent[]): string[] => events.map((event) => event.type);
