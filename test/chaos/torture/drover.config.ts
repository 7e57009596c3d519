/** The tools of the torture run's workers: each tells the endpoint of the run which call it is, and from which process. */
import { defineConfig, defineTool, type ToolContext } from "@drover/harness";
import { z } from "zod";
import { type ToolKind, toolKinds, unsafeTimeoutMs } from "./scenario.ts";

const input = z.object({ label: z.string(), turn: z.number(), index: z.number() });
type Input = z.infer<typeof input>;

async function tell(
  path: string,
  about: Input,
  context: Pick<ToolContext, "idempotencyKey" | "signal">,
): Promise<string> {
  const { idempotencyKey, signal } = context;
  const body = JSON.stringify({ ...about, idempotencyKey, sender: process.env.TORTURE_SENDER });
  const answer = await fetch(`${process.env.TOOL_URL}/${path}`, { method: "POST", body, signal });
  return await answer.text();
}

const traits: Record<
  ToolKind,
  { effect: "pure" | "idempotent" | "unsafe"; permission: "read" | "write" | "irreversible"; verified?: true }
> = {
  pure: { effect: "pure", permission: "read" },
  idempotent: { effect: "idempotent", permission: "write" },
  unsafe: { effect: "unsafe", permission: "write", verified: true },
  ask: { effect: "unsafe", permission: "write" },
  send: { effect: "unsafe", permission: "irreversible", verified: true },
  kill: { effect: "pure", permission: "read" },
  block: { effect: "pure", permission: "read" },
};

export default defineConfig({
  tools: toolKinds.map((name) => {
    const { effect, permission, verified } = traits[name];
    return defineTool<Input, string>({
      name,
      description: `A step of the kind ${name}.`,
      input,
      effect,
      permission,
      ...(effect === "unsafe" && { timeoutMs: unsafeTimeoutMs }),
      ...(verified && {
        verify: async (intent, context) =>
          (await tell("verify", intent.input, context)) === "done" ? "done" : "not_done",
      }),
      async execute(about, context) {
        const answer = await tell(name, about, context);
        if (name === "kill") process.kill(process.pid, "SIGKILL");
        if (name === "block") for (;;);
        return answer;
      },
    });
  }),
});
