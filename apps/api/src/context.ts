/** What every route works with, and what Fastify's types must know of us. */
import type { AgentDefinition, SubmitBounds, ToolRegistry } from "@drover/harness";
import type { ErrorCode } from "@drover/protocol";
import type { Signals, WakeQueue } from "@drover/queue";
import type { Submitter } from "@drover/runs";
import type { Blobs, Pool } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import type {
  FastifyBaseLogger,
  FastifyInstance,
  RawReplyDefaultExpression,
  RawRequestDefaultExpression,
  RawServerDefault,
} from "fastify";
import type { ZodTypeProvider } from "fastify-type-provider-zod";
import type { z } from "zod";
import type { ApiProcessConfig } from "./config.ts";
import type { Caller, KeyRing, Role, Scope } from "./keys.ts";

/** What the API must know of an agent. */
export type AgentInfo = Pick<AgentDefinition, "maxIterations" | "actionBudget" | "submit">;

export interface Context {
  config: ApiProcessConfig;
  agents: Record<string, AgentInfo>;
  /** What keys of each role may ask for. */
  bounds: Partial<Record<Role, SubmitBounds>>;
  /** Which models workers have, as `@drover/llm/known` names them; null: anybody's guess. */
  models: readonly string[] | null;
  /** For their schemas: edited arguments are held against them. Nothing is called here. */
  tools: Pick<ToolRegistry, "get">;
  /** Who may come in. */
  keys: KeyRing;
  pool: Pool;
  blobs: Blobs;
  signals: Signals;
  logger: Logger;
  /** What needs a migrated database: @throws DroverError `service_unavailable` until it is there. */
  services(): Services;
  /** Aborted when the process stops: whoever waits answers now. */
  stopping: AbortSignal;
  /** Pause between two heartbeats of a live stream, ms. */
  heartbeatMs: number;
}

export interface Services {
  queue: WakeQueue;
  submitter: Submitter;
}

export type App = FastifyInstance<
  RawServerDefault,
  RawRequestDefaultExpression<RawServerDefault>,
  RawReplyDefaultExpression<RawServerDefault>,
  FastifyBaseLogger,
  ZodTypeProvider
>;

declare module "fastify" {
  interface FastifyRequest {
    /** Set on every route that has a `scope`. */
    caller: Caller;
    /** What it made or was about, for its log line, where the path does not say so. */
    about: Record<string, unknown> | undefined;
  }
  interface FastifyContextConfig {
    /** What the caller's role must allow; routes without one are open. */
    scope?: Scope;
    /** Browsers open this route: the key may be the password of Basic credentials. */
    basic?: boolean;
    /** For the OpenAPI document: it answers people, with pages in place of problems. */
    pages?: boolean;
    /** For the OpenAPI document: codes it can answer besides those of every route. */
    problems?: readonly ErrorCode[];
    /** For the OpenAPI document: request headers it reads. */
    reads?: z.ZodObject;
    /** For the OpenAPI document: headers of its answers, by status. */
    answerHeaders?: Record<number, Record<string, string>>;
  }
}
