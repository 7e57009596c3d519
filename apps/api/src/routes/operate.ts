/** Whether this process is alive and does its duty, its metrics, and the OpenAPI document. All but the metrics are open to everybody. */
import { health, type ReadyAnswer, ready } from "@drover/protocol";
import { livingWorkers } from "@drover/runs";
import { faultOf, isMigrated, partitionsAhead } from "@drover/storage";
import { metricsContentType, metricsText } from "@drover/telemetry";
import { z } from "zod";
import { metricsAuthentication } from "../auth.ts";
import type { App, Context, Services } from "../context.ts";
import { createGauges } from "../gauges.ts";

const tags = ["operate"];
const json = <T extends z.ZodType>(description: string, schema: T) => ({
  description,
  content: { "application/json": { schema } },
});

export function operateRoutes(app: App, context: Context, services: () => Services | null): void {
  const { pool, logger } = context;
  let migrated = false;
  let looking: Promise<ReadyAnswer> | undefined;
  const refreshGauges = createGauges(pool, () => services()?.queue ?? null);

  app.route({
    method: "GET",
    url: "/health",
    schema: { tags, summary: "Whether the process is alive", response: { 200: json("It is", health) } },
    handler: async (_request, reply) => reply.send({ status: "ok" }),
  });

  app.route({
    method: "GET",
    url: "/ready",
    schema: {
      tags,
      summary: "Whether the process does its duty",
      description: "`degraded` names what does not work although submissions are accepted: they run when it is back.",
      response: { 200: json("It does", ready), 503: json("It does not; `reasons` says why", ready) },
    },
    handler: async (_request, reply) => {
      // Open to everybody: however many ask, the database is asked once at a time.
      looking ??= look().finally(() => {
        looking = undefined;
      });
      const answer = await looking;
      if (answer.status === "ready") return reply.code(200).send(answer);
      return reply.code(503).header("retry-after", 1).send(answer);
    },
  });

  app.route({
    method: "GET",
    url: "/metrics",
    config: { problems: ["auth_failed"] },
    onRequest: metricsAuthentication(context.config.METRICS_TOKEN),
    schema: {
      tags,
      summary: "Metrics in Prometheus' text format",
      description: "Open unless `METRICS_TOKEN` is set, which is then asked for as a bearer token.",
      response: { 200: { description: "All metrics", content: { "text/plain": { schema: z.string() } } } },
    },
    handler: async (_request, reply) => {
      await refreshGauges().catch((error) =>
        logger.warn({ err: error }, "the queue could not be counted for the metrics"),
      );
      return reply.header("content-type", metricsContentType).send(await metricsText());
    },
  });

  let document: string | undefined;
  app.route({
    method: "GET",
    url: "/openapi.json",
    schema: {
      tags,
      summary: "This document",
      response: { 200: json("OpenAPI 3.1", z.record(z.string(), z.unknown())) },
    },
    handler: async (_request, reply) => {
      document ??= JSON.stringify(app.swagger());
      return reply
        .header("content-type", "application/json; charset=utf-8")
        .serializer(String)
        .send(document as never);
    },
  });

  async function look(): Promise<ReadyAnswer> {
    const reasons = await whyNotReady();
    if (reasons.length > 0) return { status: "not_ready", reasons };
    const degraded = await whatIsDegraded();
    return { status: "ready", ...(degraded.length > 0 && { degraded }) };
  }

  async function whyNotReady(): Promise<string[]> {
    const reasons: string[] = [];
    if (context.stopping.aborted) reasons.push("stopping");
    try {
      const { rows } = await pool.query<{ read_only: boolean }>(
        "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS read_only",
      );
      if (rows[0]?.read_only) reasons.push("Postgres is not writable");
      migrated ||= await isMigrated(pool);
      if (!migrated) reasons.push("migrations are missing: run `drover migrate`");
      else if (!services()) reasons.push("starting");
    } catch (error) {
      if (faultOf(error) !== "unavailable") logger.error({ err: error }, "Postgres could not be asked");
      reasons.push("Postgres does not answer");
    }
    return reasons;
  }

  async function whatIsDegraded(): Promise<string[]> {
    const degraded: string[] = [];
    const [live, ahead] = await Promise.all([
      pool.query(`SELECT FROM ${livingWorkers} LIMIT 1`),
      partitionsAhead(pool),
      services()
        ?.queue.check()
        .catch(() => degraded.push("the queue does not answer: workers find runs by themselves, a second later")),
    ]);
    if (live.rowCount === 0) degraded.push("no live worker: queries are accepted and wait");
    if (ahead === 0) degraded.push("next month's partition of run_events is missing: run `drover migrate`");
    return degraded;
  }
}
