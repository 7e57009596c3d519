/** The configuration of worker processes whose tools call an endpoint of the test. */
import { defineConfig } from "@drover/harness";
import { endpointTools } from "./tools.ts";

export default defineConfig({ tools: endpointTools(process.env.TOOL_URL!) });
