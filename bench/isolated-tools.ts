/** What isolated calls are measured with: a tool that does nothing, in a module as a configuration is one. */
import { type AnyTool, defineTool } from "@drover/harness";
import { z } from "zod";

export const nothing: AnyTool = defineTool({
  name: "nothing",
  description: "Does nothing.",
  input: z.object({ text: z.string() }),
  permission: "read",
  effect: "pure",
  isolation: "process",
  module: import.meta.url,
  execute: ({ text }) => ({ pid: process.pid, length: text.length, text }),
});
