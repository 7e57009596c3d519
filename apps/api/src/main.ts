/** The API as a process: configuration in, one line out when it cannot start, graceful end on SIGTERM and when its parent dies. */
import { createEgress } from "@drover/egress";
import { ConfigError, ToolRegistry } from "@drover/harness";
import { loadConfigFile } from "@drover/harness/worker";
import { knownModels } from "@drover/llm/known";
import { ConfigurationError, loadConfig } from "@drover/protocol";
import { createLogger, messageOf, scrub } from "@drover/telemetry";
import { builtinTools } from "@drover/tools";
import closeWithGrace from "close-with-grace";
import { startApi } from "./api.ts";
import { apiProcessConfig } from "./config.ts";

async function main(): Promise<void> {
  const config = loadConfig(apiProcessConfig);
  const egress = createEgress({ allow: config.DROVER_EGRESS_ALLOW });
  const builtins = builtinTools({ egress });
  const { agents, tools = [], models, submit } = await loadConfigFile(config.DROVER_CONFIG, builtins);
  await egress.close();

  const logger = createLogger({ name: "api", level: config.LOG_LEVEL });
  const api = await startApi(config, {
    agents,
    bounds: submit,
    models: knownModels({ providers: models?.providers, models: models?.custom }),
    tools: new ToolRegistry([...builtins, ...tools]),
    logger,
  });
  const grace = closeWithGrace(
    {
      delay: config.SHUTDOWN_GRACE_SECONDS * 1000 + 1000,
      logger: { error: (line: unknown) => logger.error(String(line)) },
    },
    async ({ signal, err }) => {
      if (err) logger.fatal({ err }, "stopping after an error nobody caught");
      else logger.info({ signal }, "stopping");
      await api.close();
    },
  );
  // The supervisor is gone: nobody would stop us any more.
  process.once("disconnect", () => void grace.close());
  logger.info({ url: api.url }, `listening on ${api.url}`);
  process.send?.({ ready: true, url: api.url });
}

const isConfiguration = (error: unknown): error is Error =>
  error instanceof ConfigurationError || error instanceof ConfigError;

function lineOf(error: unknown): string {
  if (isConfiguration(error)) return error.message;
  const { code, port, address } = error as { code?: string; port?: number; address?: string };
  if (code === "EADDRINUSE")
    return `Port ${port} on ${address} is in use: stop what listens there, or set PORT to another.`;
  if (code === "EACCES") return `Port ${port} on ${address} is not allowed to us: set PORT to one above 1023.`;
  if (code === "EADDRNOTAVAIL") return `This machine has no address ${address}: set HOST to one it has.`;
  return `The API cannot start: ${messageOf(error)}`;
}

try {
  await main();
} catch (error) {
  console.error(scrub(lineOf(error)));
  // EX_CONFIG tells a supervisor that starting again is of no use.
  process.exit(isConfiguration(error) ? 78 : 1);
}
