/**
 * A process that uses isolated tools: `call` carries out one call and ends by itself; any other word is the name of a tool that does not end, whose
 * process writes who is at work into the file given.
 */
import { AgentHarness } from "@drover/harness";
import { tools } from "./isolated-tools.ts";

const [mode, file] = process.argv.slice(2);
const actions = new AgentHarness({ tools, env: {} }).actions();
if (mode === "call") console.log(JSON.stringify(await actions.execute("who", { n: 1 })));
else {
  console.log("started");
  await actions.execute(mode!, { file });
}
