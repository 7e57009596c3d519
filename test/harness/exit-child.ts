/** A process that only runs the harness and must end by itself: no timer or listener may keep it. For `loop.test.ts`. */
import { AgentHarness, defineTool } from "@drover/harness";
import { z } from "zod";

const stop = new AbortController();
const calculate = defineTool({
  name: "calculate",
  description: "Calculates.",
  input: z.object({ expression: z.string() }),
  permission: "read",
  effect: "pure",
  execute: () => {
    if (process.argv[2] !== "cancelled") return "42";
    setImmediate(() => stop.abort());
    return new Promise(() => {});
  },
});
const harness = new AgentHarness({ env: {}, model: "demo/demo", tools: [calculate] });
const result = await harness.run("What is 6 * 7?", { signal: stop.signal });
console.log(result.error?.code ?? result.status);
