/** The tools of the workers that are told to cancel: they tell the test's endpoint, and end when it answers, when they are told to, or never. */
import { type AnyTool, defineConfig, defineTool, type ToolContext } from "@drover/harness";
import { z } from "zod";

type Behaviour = (note: string, context: ToolContext) => unknown;

const post = async (effect: string, note: string, { idempotencyKey }: ToolContext, signal?: AbortSignal) => {
  const body = JSON.stringify({ note, idempotencyKey });
  const response = await fetch(`${process.env.TOOL_URL}/${effect}`, {
    method: "POST",
    body,
    ...(signal && { signal }),
  });
  return await response.text();
};

const tool = (name: string, execute: Behaviour, more: Partial<AnyTool> = {}): AnyTool => ({
  ...(defineTool({
    name,
    description: `Behaves like this: ${name}.`,
    input: z.object({ note: z.string() }),
    permission: "write",
    effect: "idempotent",
    execute: ({ note }, context) => execute(note, context),
  }) as AnyTool),
  ...more,
});

export default defineConfig({
  tools: [
    tool("obedient", (note, context) => post("obedient", note, context, context.signal)),
    /** Ignores its signal. */
    tool("deaf", (note, context) => post("deaf", note, context)),
    /** Blocks a process of its own, whose id it tells first. */
    tool(
      "spin",
      async (_note, context) => {
        await post("spin", String(process.pid), context);
        for (;;);
      },
      { isolation: "process", env: ["TOOL_URL"] },
    ),
    tool("send", (note, context) => post("send", note, context), { permission: "irreversible", effect: "unsafe" }),
    tool("put", () => "put", { compensate: ({ input }, context) => post("undo", input.note, context, context.signal) }),
  ],
});
