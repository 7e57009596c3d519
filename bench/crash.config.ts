/** Tools for the crash bench: one that takes its worker down, and one that does nothing. */
import { defineConfig, defineTool } from "@drover/harness";
import { z } from "zod";

const tool = (name: string, execute: () => string) =>
  defineTool<object, string>({
    name,
    description: name,
    input: z.object({}),
    effect: "pure",
    permission: "read",
    execute,
  });

export default defineConfig({
  tools: [
    tool("step", () => "done"),
    tool("die", () => {
      process.kill(process.pid, "SIGKILL");
      return "never";
    }),
  ],
});
