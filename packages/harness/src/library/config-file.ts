/** Loading `drover.config.ts`: the one file in which an installation says what its agents, tools and models are. */
import { existsSync } from "node:fs";
import { registerHooks } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { howToExport, toolsOf } from "../isolation/exports.ts";
import { type AgentDefinition, ConfigError, checkConfig, type DroverConfig } from "./agent.ts";
import { defaultAgent } from "./harness.ts";
import type { AnyTool } from "./tool.ts";

export interface LoadedConfig extends DroverConfig {
  /** Every agent, `default` among them. */
  agents: Record<string, AgentDefinition>;
  /** The file it came from; null when there is none. */
  path: string | null;
}

const defaultPath = "drover.config.ts";

/**
 * Loads and validates the file at `path`, or `drover.config.ts` of the current folder when that exists. Isolated tools that do not say which module
 * exports them get the file itself. Throws `ConfigError` with every problem of the file, or why it could not be loaded.
 */
export async function loadConfigFile(
  path: string | undefined,
  builtinTools: readonly { name: string }[],
): Promise<LoadedConfig> {
  const file = resolve(path ?? defaultPath);
  if (!existsSync(file)) {
    if (path !== undefined) throw new ConfigError(`DROVER_CONFIG (${path})`, ["there is no such file"]);
    return { agents: { default: defaultAgent }, path: null };
  }
  let exported: { default?: unknown };
  resolveFromAnywhere();
  try {
    exported = (await import(pathToFileURL(file).href)) as { default?: unknown };
  } catch (error) {
    throw new ConfigError(path ?? defaultPath, [
      `it cannot be loaded: ${error instanceof Error ? error.message : String(error)}`,
    ]);
  }
  if (exported.default === undefined)
    throw new ConfigError(path ?? defaultPath, [
      "it has no default export; write `export default defineConfig({ … })`",
    ]);
  const config = checkConfig(exported.default, path ?? defaultPath, builtinTools);
  const loaded = { ...config, agents: { default: defaultAgent, ...config.agents }, path: file };
  const tools = config.tools?.map((tool) =>
    tool.isolation === "process" ? { ...tool, module: tool.module ?? pathToFileURL(file).href } : tool,
  );
  const problems = await exportProblems(tools ?? []);
  if (problems.length > 0) throw new ConfigError(path ?? defaultPath, problems);
  return tools ? { ...loaded, tools } : loaded;
}

let resolves = false;

/**
 * A configuration outside of any project finds `@drover/…` and `zod` all the same: those that this program has, unless it has its own. Holds for what it
 * imports, too, and in this process only.
 */
function resolveFromAnywhere(): void {
  if (resolves) return;
  resolves = true;
  registerHooks({
    resolve(specifier, context, next) {
      try {
        return next(specifier, context);
      } catch (error) {
        if (!/^(@drover\/|zod(\/|$))/.test(specifier)) throw error;
        return next(specifier, { ...context, parentURL: import.meta.url });
      }
    },
  });
}

/** Isolated tools that their process would not find. Their modules are those that made them, so they are loaded already. */
async function exportProblems(tools: readonly AnyTool[]): Promise<string[]> {
  const problems: string[] = [];
  for (const [index, { name, isolation, module }] of tools.entries()) {
    if (isolation !== "process") continue;
    try {
      if (toolsOf(await import(module!)).has(name)) continue;
      problems.push(`tools.${index} (${name}): ${howToExport(name)}`);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      problems.push(`tools.${index}.module (${name}): it cannot be loaded: ${why}; write \`module: import.meta.url\``);
    }
  }
  return problems;
}
