/** Tools for the recovery bench: each tells the bench's endpoint that it is called, and is done when that answers. */
import { defineConfig, defineTool, type ToolContext } from "@drover/harness";
import { z } from "zod";

const input = z.object({ label: z.string(), turn: z.number() });

async function tell(
  path: string,
  about: z.infer<typeof input>,
  { signal }: Pick<ToolContext, "signal">,
): Promise<string> {
  const answer = await fetch(`${process.env.TOOL_URL}/${path}`, {
    method: "POST",
    body: JSON.stringify(about),
    headers: { "x-sender": process.env.TOOL_SENDER ?? "" },
    signal,
  });
  return await answer.text();
}

const tool = (name: string, effect: "pure" | "idempotent" | "unsafe") =>
  defineTool<z.infer<typeof input>, string>({
    name,
    description: `A call that is ${effect}.`,
    input,
    effect,
    permission: effect === "pure" ? "read" : "write",
    // So long others wait, after the lease, before they ask what became of it.
    ...(effect === "unsafe" && {
      timeoutMs: 5000,
      verify: async (intent, context) =>
        (await tell("verify", intent.input, context)) === "done" ? "done" : "not_done",
    }),
    execute: (about, context) => tell(name, about, context),
  });

export default defineConfig({
  tools: [tool("pure", "pure"), tool("idempotent", "idempotent"), tool("unsafe", "unsafe")],
});
