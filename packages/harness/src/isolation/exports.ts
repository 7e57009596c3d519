/** Finding a tool in the module that exports it: an export, an element of an exported list, or of the default export's `tools`. */
import type { AnyTool } from "../library/tool.ts";

/** The tools of a module by name; of two with the same name the first. */
export function toolsOf(module: Record<string, unknown>): Map<string, AnyTool> {
  const tools = new Map<string, AnyTool>();
  const { default: main } = module as { default?: { tools?: unknown } };
  for (const value of [...Object.values(module), main?.tools].flat()) {
    if (!isTool(value) || tools.has(value.name)) continue;
    tools.set(value.name, value);
  }
  return tools;
}

/** What to do about a tool that its module does not export. */
export const howToExport = (name: string): string =>
  `its module does not export a tool named "${name}"; export it there (by itself, in a list, or in \`tools\` of the default export), and let \`module: import.meta.url\` be of that file`;

function isTool(value: unknown): value is AnyTool {
  const { name, execute } = (value ?? {}) as Partial<AnyTool>;
  return typeof name === "string" && typeof execute === "function";
}
