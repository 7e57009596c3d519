/**
 * The two places where the one door stands: the library with a log and a trail in memory, and the worker with both in Postgres. A case
 * says what the model calls, which tools there are, and what people decide; a world carries it out and shows what it left behind.
 */
import {
  type AgentDefinition,
  AgentHarness,
  type AnyTool,
  type ApprovalRequest,
  type EventData,
  type EventType,
  type LogEvent,
  memoryAudit,
  type Policy,
  type RunInput,
  type RunLog,
  ToolRegistry,
} from "@drover/harness";
import { checkDecision, type WantedDecision } from "@drover/harness/worker";
import { createModels, modelConfig } from "@drover/llm";
import { fromWireId, toWireId, uuidv7 } from "@drover/protocol";
import { openSignals, queueConfig, type Signals } from "@drover/queue";
import {
  decideApproval,
  type RunWorker,
  raiseRunBudget,
  readApproval,
  readLog,
  readRun,
  type Status,
  startWorker,
  waitForRun,
  wakeRuns,
} from "@drover/runs";
import { expect, inject } from "vitest";
import { createBench, input as inputOf, logger } from "../runs/bench.ts";
import type { ModelServer } from "../support/model-server.ts";

/** What an installation has: its tools, agents and policies. The agent that acts is `default`, unless the input says otherwise. */
export interface Installation {
  tools: AnyTool[];
  agents?: Record<string, AgentDefinition>;
  policies?: Policy[];
}

export interface TrailEntry {
  actor: string;
  action: string;
  data: Record<string, unknown>;
}

/** A run at rest: it waits or has ended. */
export interface DoorRun {
  readonly id: string;
  readonly status: "waiting" | "completed" | "partial" | "failed" | "cancelled";
  readonly events: LogEvent[];
  readonly trail: TrailEntry[];
  /** Questions nobody has answered, the oldest first. */
  readonly open: ApprovalRequest[];
  data<T extends EventType>(type: T): EventData[T][];
  /** Why it ended. */
  readonly stopReason: string | null;
  /** Answers one question, and the run goes on to where it rests next. Rejects when the answer does not fit the question. */
  decide(question: ApprovalRequest, wanted: Omit<WantedDecision, "by">): Promise<DoorRun>;
  /** Nobody answered in time. */
  expire(question: ApprovalRequest): Promise<DoorRun>;
  /** More points or money. */
  raise(raise: { max_cost_usd?: number; action_budget?: number }): Promise<DoorRun>;
}

export interface DoorWorld {
  /** Submits a query, and carries its run to where it rests. */
  run(installation: Installation, input?: Partial<RunInput>): Promise<DoorRun>;
  /** From now on every process has this. */
  deploy(installation: Installation): void;
  close(): Promise<void>;
}

const model = "anthropic/claude-sonnet-4-5";
export const person = "key_person";

function restOf(id: string, status: DoorRun["status"], events: LogEvent[], trail: TrailEntry[]) {
  const data = <T extends EventType>(type: T) =>
    events.flatMap((event) => (event.type === type ? [event.data as EventData[T]] : []));
  const decided = new Set(data("approval.decided").map(({ approval_id }) => approval_id));
  const last = events.at(-1)!.data as { stop_reason?: string | null };
  return {
    id,
    status,
    events,
    trail,
    data,
    open: data("approval.requested").filter(({ approval_id }) => !decided.has(approval_id)),
    stopReason: last.stop_reason ?? null,
  };
}

/** `new AgentHarness(config).run(query)`: the log is an array, and a decision comes with the next call of `run`. */
export function libraryWorld(models: ModelServer): DoorWorld {
  const audit = memoryAudit();
  const harnessOf = (installation: Installation) =>
    new AgentHarness({ env: models.env(), model, ...installation, audit });
  let harness = harnessOf({ tools: [] });

  function carry(runId: string, events: LogEvent[]) {
    const log: RunLog = {
      runId,
      // As storage would give it back.
      read: async () => JSON.parse(JSON.stringify(events)),
      append: async (event) => {
        const logged = { ...event, seq: events.length + 1, at: new Date().toISOString() } as LogEvent;
        events.push(logged);
        return logged;
      },
    };
    const go = async (decisions?: Record<string, WantedDecision>): Promise<DoorRun> => {
      await harness.run("", { log, ...(decisions && { decisions }) });
      const type = events.at(-1)!.type;
      const own = audit.entries().filter(({ run_id }) => run_id === toWireId("run", runId));
      const trail = own.map(({ actor, action, data }) => ({ actor, action, data }));
      return {
        ...restOf(runId, type.slice("run.".length) as DoorRun["status"], [...events], trail),
        decide: (question, wanted) => go({ [question.approval_id]: { ...wanted, by: person } }),
        expire: (question) => {
          for (const event of events)
            if (event.type === "approval.requested" && event.data.approval_id === question.approval_id)
              event.data = { ...event.data, expires_at: new Date(Date.now() - 1000).toISOString() };
          return go();
        },
        raise: async (raise) => {
          await log.append({ type: "budget.raised", data: { ...raise, by: person } });
          return await go();
        },
      };
    };
    return { log, go };
  }

  return {
    async run(installation, more) {
      harness = harnessOf(installation);
      const { log, go } = carry(uuidv7(), []);
      await log.append({ type: "run.queued", data: inputOf(more) });
      return await go();
    },
    deploy(installation) {
      harness = harnessOf(installation);
    },
    close: async () => {},
  };
}

/** The real worker over Postgres and Redis. Decisions come from another connection, as the API makes them. */
export async function durableWorld(models: ModelServer): Promise<DoorWorld> {
  let now: Installation = { tools: [] };
  let registry = new ToolRegistry();
  const bench = await createBench();
  const config = queueConfig.parse({
    REDIS_URL: inject("redisUrl"),
    DROVER_QUEUE_PREFIX: `{${bench.url.split("/").at(-1)}}`,
  });
  const signals: Signals = await openSignals(config, { logger, directUrl: bench.url });
  const source = createModels(modelConfig.parse({ ...models.env(), DROVER_MODEL: model }));
  const worker: RunWorker = await startWorker({
    pool: bench.pool,
    directUrl: bench.url,
    blobs: bench.blobs,
    queue: bench.queue,
    signals,
    logger,
    agents: {
      agent: (name) => now.agents?.[name] ?? (name === "default" ? defaultAgent : undefined),
      model: (id) => source.resolve(id ?? source.default),
      get tools() {
        return registry;
      },
      get policies() {
        return now.policies ?? [];
      },
    },
    slots: 5,
    leaseMs: 2000,
    partialEveryMs: 1000,
    workspaces: "unused",
  });
  const deploy = (installation: Installation) => {
    now = installation;
    registry = new ToolRegistry(installation.tools);
  };

  const rests = (status: Status) => status !== "queued" && status !== "running";

  async function rest(id: string): Promise<DoorRun> {
    const options = { db: bench.pool, blobs: bench.blobs, signals, tenant: "default", runId: id };
    const signal = new AbortController().signal;
    await waitForRun({ ...options, waitMs: 20_000, signal }, ({ status }) => rests(status));
    const run = (await readRun(bench.pool, "default", id))!;
    const events = await readLog(bench.pool, bench.blobs, { tenant: "default", runId: id });
    expect(run.status, JSON.stringify(events, null, 1)).toSatisfy(rests);
    const { rows } = await bench.pool.query<TrailEntry>(
      "SELECT actor, action, data FROM audit_entries WHERE run_id = $1 ORDER BY at, id",
      [id],
    );
    return {
      ...restOf(id, run.status as DoorRun["status"], events, rows),
      stopReason: run.stopReason,
      async decide(question, wanted) {
        const asked = (await readApproval(bench.pool, "default", fromWireId("approval", question.approval_id)!))!;
        const tool = registry.get(asked.toolName ?? "");
        const checked = await checkDecision(question, { ...wanted, by: person }, tool);
        if ("problem" in checked) throw new Error(`${checked.problem.path}: ${checked.problem.message}`);
        const { resumed } = await decideApproval(bench.pool, bench.blobs, asked, checked.decision);
        if (resumed) await wakeRuns(bench.queue, [resumed]);
        return await rest(id);
      },
      async expire(question) {
        await bench.pool.query("UPDATE approvals SET expires_at = now() - interval '1 second' WHERE id = $1", [
          fromWireId("approval", question.approval_id),
        ]);
        // The rescuer finds it.
        await waitForRun({ ...options, waitMs: 20_000, signal }, ({ lastSeq }) => lastSeq > events.length);
        return await rest(id);
      },
      async raise(raise) {
        const { max_cost_usd: maxCostUsd, action_budget: actionBudget } = raise;
        const answer = await raiseRunBudget(
          bench.pool,
          bench.blobs,
          { tenant: "default", id },
          { maxCostUsd, actionBudget },
          person,
        );
        if (answer?.resumed) await wakeRuns(bench.queue, [answer.resumed]);
        return await rest(id);
      },
    };
  }

  return {
    async run(installation, more) {
      deploy(installation);
      return await rest(await bench.submit({ input: inputOf(more) }));
    },
    deploy,
    async close() {
      await worker.stop(0);
      await signals.close();
      await bench.close();
    },
  };
}

const defaultAgent: AgentDefinition = { description: "Every tool." };
