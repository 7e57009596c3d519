import type { Egress } from "@drover/egress";
import type { ToolDefinition } from "@drover/harness";
import { calculateTool } from "./calculate.ts";
import { fileListTool, fileReadTool } from "./files.ts";
import { httpGetTool } from "./http-get.ts";
import { waitTool } from "./wait.ts";

/**
 * The tools every installation has: `calculate`, `file_read`, `file_list`, `http_get`, `wait`. All are pure reads.
 * @param options.egress the process's way out; the caller closes it
 */
export function builtinTools(options: { egress: Egress }): ToolDefinition[] {
  return [calculateTool, fileReadTool, fileListTool, httpGetTool(options.egress), waitTool];
}
