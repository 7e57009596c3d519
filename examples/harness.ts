/**
 * The agent loop as a library: no service, no database, no queue. Without a model's key the built-in demo model answers.
 *
 *     npx node examples/harness.ts "What is 17 * 23, and 2^10?"
 */
import { createEgress } from "@drover/egress";
import { AgentHarness, defineTool } from "@drover/harness";
import { builtinTools } from "@drover/tools";
import { z } from "zod";

const roll = defineTool({
  name: "roll_dice",
  description: "Rolls dice and returns what they show.",
  input: z.object({ dice: z.int().min(1).max(100).describe("how many") }),
  permission: "read",
  effect: "pure",
  execute: ({ dice }) => Array.from({ length: dice }, () => 1 + Math.floor(Math.random() * 6)),
});

const egress = createEgress();
const harness = new AgentHarness({
  agents: { default: { systemPrompt: "Be brief. Calculate, never guess.", tools: ["calculate", "roll_dice"] } },
  tools: [...builtinTools({ egress }), roll],
  limits: { hardSeconds: 60 },
});

const query = process.argv.slice(2).join(" ") || "What is 17 * 23, and 2^10?";
const result = await harness.run(query, {
  onText: (text) => process.stderr.write(text),
  onEvent: ({ type, data }) => {
    if (type === "tool.result") console.error(`\n  ${data.tool_name}: ${JSON.stringify(data.output)}`);
  },
});
await egress.close();

// `run()` never throws for how a run ends: `error` says why it did not complete, `output` is what there was.
console.log(JSON.stringify({ ...result, error: result.error?.message }, null, 2));
process.exitCode = result.status === "success" ? 0 : 1;
