/**
 * An API and a worker over one database: queries are carried out, by a scripted model and tools that write down how they were called, and
 * webhooks are delivered.
 */
import { createDelivery } from "@drover/delivery";
import { createEgress } from "@drover/egress";
import {
  type AgentDefinition,
  defaultAgent,
  defineTool,
  type EventType,
  type LogEvent,
  type Policy,
  ToolRegistry,
} from "@drover/harness";
import { createModels, modelConfig } from "@drover/llm";
import { fromWireId } from "@drover/protocol";
import { openQueue } from "@drover/queue";
import { followLog, startWorker } from "@drover/runs";
import { postgresBlobs } from "@drover/storage";
import { z } from "zod";
import { type ModelServer, type ScriptedReply, startModelServer } from "../support/model-server.ts";
import { silent, startWorld, type World, type WorldOptions } from "./world.ts";

export interface Carried extends World {
  models: ModelServer;
  /** What tools did, in order: `[name, arguments]`. */
  done: [string, unknown][];
  /** Resolves with the run's first event of this type after `after`. */
  until(taskId: string, type: EventType, after?: number): Promise<LogEvent>;
  /** Resolves when the run is final, with its result. */
  // biome-ignore lint/suspicious/noExplicitAny: as the API answers.
  end(taskId: string): Promise<any>;
}

const agents: Record<string, AgentDefinition> = {
  default: defaultAgent,
  patient: { onBudget: "pause" },
};

const patienceMs = 30_000;

/** Tools that write down in `done` how they were called. */
export function testTools(done: Carried["done"] = []): ToolRegistry {
  const note = (name: string, input: unknown) => void done.push([name, input]);
  return new ToolRegistry([
    defineTool({
      name: "send_mail",
      description: "Sends a mail.",
      input: z.object({ to: z.email(), text: z.string() }),
      permission: "irreversible",
      effect: "unsafe",
      execute(input) {
        note("send_mail", input);
        return "sent";
      },
    }),
    defineTool({
      name: "set_price",
      description: "Sets a price.",
      input: z.object({ item: z.string(), price: z.number() }),
      permission: "write",
      effect: "idempotent",
      budgetCost: 5,
      execute(input) {
        note("set_price", input);
        return { before: 1 };
      },
      compensate({ input }) {
        note("undo set_price", input);
      },
    }),
  ]);
}

export async function startCarried(options: WorldOptions & { policies?: Policy[] } = {}): Promise<Carried> {
  const done: Carried["done"] = [];
  const tools = testTools(done);
  const models = await startModelServer();
  const world = await startWorld({ ...options, deps: { agents, tools, ...options.deps } });
  const queue = await openQueue(world.config, { logger: silent, postgresUrl: world.databaseUrl });
  const source = createModels(modelConfig.parse({ ...models.env(), DROVER_MODEL: "anthropic/claude-sonnet-4-5" }));
  const blobs = postgresBlobs(world.pool);
  const egress = createEgress({ allow: world.config.DROVER_EGRESS_ALLOW });
  const delivery = createDelivery({
    pool: world.pool,
    blobs,
    egress,
    logger: silent,
    publicUrl: world.config.DROVER_PUBLIC_URL,
  });
  delivery.start();
  const worker = await startWorker({
    pool: world.pool,
    directUrl: world.databaseUrl,
    blobs,
    queue,
    signals: world.signals,
    logger: options.deps?.logger ?? silent,
    agents: {
      agent: (name) => agents[name],
      model: (id) => source.resolve(id ?? source.default),
      tools,
      policies: options.policies ?? [],
    },
    slots: 20,
    leaseMs: 10_000,
    partialEveryMs: 1000,
    workspaces: "unused",
    onSettled: () => delivery.nudge(),
  });

  return {
    ...world,
    models,
    done,
    async until(taskId, type, after = 0) {
      const signal = AbortSignal.timeout(patienceMs);
      const runId = fromWireId("run", taskId)!;
      const seen: string[] = [];
      const follow = { db: world.pool, blobs, signals: world.signals, tenant: "default", runId, after, signal };
      for await (const event of followLog(follow)) {
        if (event.type === type) return event;
        seen.push(event.type);
      }
      throw new Error(`${taskId} has no ${type} after ${after}, only ${seen}`);
    },
    async end(taskId) {
      const { body } = await world.get(`/query/status/${taskId}?wait=${patienceMs / 1000}`);
      if (body.finished_at === null) throw new Error(`${taskId} is still ${body.status}`);
      return body;
    },
    async close() {
      await worker.stop(0);
      await delivery.close(0);
      await egress.close();
      await queue.close();
      await models.close();
      await world.close();
    },
  };
}

/** A model's turn that calls one tool. */
export const calling = (name: string, input: unknown): ScriptedReply => ({ toolCalls: [{ name, input }] });
