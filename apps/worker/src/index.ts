/**
 * A worker process, composed: database, queue, signals, models, tools, the run worker, webhook delivery, and its own small port for
 * health and metrics. `main.ts` runs it; tests and the supervisor start it as a process.
 */
import { resolve } from "node:path";
import { createDelivery, deliveryConfig } from "@drover/delivery";
import { createEgress, egressConfig } from "@drover/egress";
import { ToolRegistry } from "@drover/harness";
import { Isolation, isolationConfig, type LoadedConfig, loadConfigFile, type StrayOwner } from "@drover/harness/worker";
import { createModels, modelConfig } from "@drover/llm";
import { loadConfig, toWireId } from "@drover/protocol";
import { openQueue, openSignals, queueConfig } from "@drover/queue";
import {
  auditConfig,
  linksConfig,
  type RunWorker,
  retentionConfig,
  retentionOf,
  runsConfig,
  signingOf,
  startSequencer,
  startWorker,
} from "@drover/runs";
import { isMigrated, openPool, postgresBlobs, storageConfig } from "@drover/storage";
import { addSecret, createLogger, type Logger, metrics } from "@drover/telemetry";
import { builtinTools } from "@drover/tools";
import { workerConfig } from "./config.ts";
import { defaultMemoryLimit, watchMemory } from "./memory.ts";
import { type ConfiguredNames, runCounter } from "./observe.ts";
import { startPort } from "./port.ts";

export interface WorkerProcess {
  /** Where health and metrics are, when `WORKER_PORT` is set. */
  url: string | null;
  /** Resolves when it should be stopped and started anew: it stayed above its memory limit. */
  outgrown: Promise<void>;
  /** Something was thrown where nobody caught it; logged here. False: whose it is nobody knows, and the process should end. */
  blame(owner: StrayOwner | undefined, thrown: unknown): boolean;
  /** Hands runs over and closes everything; see `RunWorker.stop`. */
  stop(): Promise<void>;
}

/** Everything a worker process reads from its environment. */
export const workerProcessConfig = storageConfig
  .required({ DATABASE_URL: true })
  .and(queueConfig)
  .and(modelConfig)
  .and(runsConfig)
  .and(retentionConfig)
  .and(linksConfig)
  .and(auditConfig)
  .and(egressConfig)
  .and(deliveryConfig)
  .and(isolationConfig)
  .and(workerConfig);

/** Lines about errors of users' code that nobody caught; a flood of them is not written. */
const mostStrays = 1000;
/** How long it may stay above its memory limit. */
const memoryPatienceMs = 10_000;

/** Starts a worker from its environment. Throws `ConfigurationError` or `ConfigError` naming everything that is wrong, before anything runs. */
export async function startWorkerProcess(env: Record<string, string | undefined>): Promise<WorkerProcess> {
  const config = loadConfig(workerProcessConfig, env);
  const directUrl = config.DATABASE_DIRECT_URL ?? config.DATABASE_URL;
  for (const secret of [new URL(config.DATABASE_URL).password, process.env.PGPASSWORD, config.METRICS_TOKEN])
    addSecret(secret);
  // Line by line: a log line has no line break.
  for (const line of config.DROVER_AUDIT_KEY?.split("\n") ?? []) addSecret(line.trim());
  const logger = createLogger({ name: "worker", level: config.LOG_LEVEL });
  const egress = createEgress({ allow: config.DROVER_EGRESS_ALLOW });
  const builtins = builtinTools({ egress });
  const file = await loadConfigFile(config.DROVER_CONFIG, builtins);
  const models = createModels(config, { ...file.models, models: file.models?.custom, logger });
  const isolation = new Isolation({
    processes: config.TOOL_PROCESSES,
    log: ({ runId, text, ...of }) => logger.info({ ...(runId && { task_id: toWireId("run", runId) }), ...of }, text),
  });
  const registry = new ToolRegistry([...builtins, ...(file.tools ?? [])], isolation);
  const agents = agentSource(file, models, registry, logger);

  const pool = openPool({
    url: config.DATABASE_URL,
    directUrl,
    logger,
    max: config.DATABASE_POOL_SIZE,
    prepared: config.DATABASE_PREPARED_STATEMENTS,
    // A connection that a network forgot is given up then; what it carried is read back.
    answerTimeoutMs: 30_000,
    applicationName: "drover-worker",
  });
  if (!(await isMigrated(pool))) {
    await pool.end();
    throw new Error("the database is not at this version's schema; run `drover migrate` first");
  }
  const queue = await openQueue(config, { logger, postgresUrl: directUrl });
  const signals = await openSignals(config, { logger, directUrl });
  const blobs = postgresBlobs(pool);
  const delivery = createDelivery({
    pool,
    blobs,
    egress,
    logger,
    publicUrl: config.DROVER_PUBLIC_URL,
    approveOwn: config.DROVER_APPROVE_OWN,
    worker: () => worker.workerId,
    concurrency: config.DELIVERY_CONCURRENCY,
    perDestination: config.DELIVERY_PER_DESTINATION,
    onRing: (nudge) => signals.onRing("delivery", nudge),
    metrics: {
      delivered(ms, result) {
        metrics.deliveryAttempts.inc({ result });
        metrics.deliveryDuration.observe(ms / 1000);
      },
    },
  });
  const count = runCounter(configuredNames(file, models, registry));
  const worker: RunWorker = await startWorker({
    pool,
    directUrl,
    blobs,
    queue,
    signals,
    logger,
    agents,
    slots: config.WORKER_CONCURRENCY,
    leaseMs: config.LEASE_SECONDS * 1000,
    watchdog: true,
    noWorkerMs: config.NO_WORKER_SECONDS * 1000,
    retention: retentionOf(config),
    partialEveryMs: config.PARTIAL_EVERY_SECONDS * 1000,
    workspaces: resolve(config.DROVER_WORKSPACES),
    observe: (told) => {
      count(told);
      if (told.type === "condemned") delivery.release([told.worker]);
    },
    onSettled: () => delivery.nudge(),
  });
  isolation.warmUp();
  delivery.start();
  const signing = signingOf(config);
  const sequencer = startSequencer({ pool, directUrl, signals, logger, ...(signing && { signing }) });
  const port =
    config.WORKER_PORT === undefined
      ? null
      : await startPort({
          port: config.WORKER_PORT,
          host: config.WORKER_HOST,
          metricsToken: config.METRICS_TOKEN,
          worker,
          queue,
          logger,
        });
  logger.info(
    { worker: worker.workerId, slots: worker.slots, backend: queue.backend, model: models.default },
    "worker ready",
  );

  const outgrown = Promise.withResolvers<void>();
  const forgetMemory = watchMemory({
    limitBytes: config.WORKER_MEMORY_MB === undefined ? defaultMemoryLimit() : config.WORKER_MEMORY_MB * 2 ** 20,
    patienceMs: memoryPatienceMs,
    logger,
    onPressure: (high) => worker.setPressure(high),
    onOver: () => outgrown.resolve(),
  });
  let strays = 0;
  let stopped: Promise<void> | undefined;
  return {
    url: port?.url ?? null,
    outgrown: outgrown.promise,
    blame(owner, thrown) {
      if (!owner) {
        logger.fatal({ err: thrown }, "stopping after an error nobody caught");
        return false;
      }
      const { runId, what } = owner;
      const ended = owner.fail(thrown);
      // One that comes again and again is told of a few times.
      if (++strays <= mostStrays)
        logger.error(
          { err: thrown, task_id: toWireId("run", runId), what, ended },
          `${what} left an error that nobody caught${ended ? "; its call fails" : ", after its call was over"}`,
        );
      return true;
    },
    stop() {
      stopped ??= (async () => {
        forgetMemory();
        await worker.stop(config.SHUTDOWN_GRACE_SECONDS * 1000);
        await isolation.close();
        await delivery.close();
        await sequencer.close();
        await Promise.all([queue.close(), signals.close(), egress.close(), port?.close()]);
        await pool.end();
        logger.info("worker stopped");
      })();
      return stopped;
    },
  };
}

function configuredNames(
  file: LoadedConfig,
  models: ReturnType<typeof createModels>,
  registry: ToolRegistry,
): ConfiguredNames {
  const agents = Object.entries(file.agents);
  const named = agents.flatMap(([, { model }]) => (model === undefined ? [] : [model]));
  return {
    agents: new Set(agents.map(([name]) => name)),
    models: new Set([...models.known, models.default, ...named]),
    tools: new Set(registry.names),
  };
}

function agentSource(file: LoadedConfig, models: ReturnType<typeof createModels>, tools: ToolRegistry, logger: Logger) {
  for (const [name, agent] of Object.entries(file.agents)) {
    try {
      models.resolve(agent.model ?? models.default);
    } catch (error) {
      logger.warn({ agent: name }, `this agent's runs will fail: ${(error as Error).message}`);
    }
  }
  return {
    agent: (name: string) => file.agents[name],
    model: (id: string | undefined) => models.resolve(id ?? models.default),
    tools,
    known: { agents: Object.keys(file.agents), models: models.known },
    hashes: Object.fromEntries(Object.entries(file.agents).map(([name, agent]) => [name, tools.hashOf(name, agent)])),
    policies: file.policies ?? [],
  };
}
