/** Loading `drover.config.ts`: the one file in which an installation says what its agents, tools and models are. */
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { type AgentDefinition, ConfigError, checkConfig, type DroverConfig } from "./agent.ts";
import { defaultAgent } from "./harness.ts";

export interface LoadedConfig extends DroverConfig {
  /** Every agent, `default` among them. */
  agents: Record<string, AgentDefinition>;
  /** The file it came from; null when there is none. */
  path: string | null;
}

const defaultPath = "drover.config.ts";

/**
 * Loads and validates the file at `path`, or `drover.config.ts` of the current folder when that exists. Throws `ConfigError` with
 * every problem of the file, or why it could not be loaded.
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
  return { ...config, agents: { default: defaultAgent, ...config.agents }, path: file };
}
