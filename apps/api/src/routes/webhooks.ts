/** Webhook endpoints and secrets, and the log of deliveries. */
import {
  createEndpoint,
  type DeliveryRecord,
  deleteEndpoint,
  type Endpoint,
  hintOf,
  listDeliveries,
  listEndpoints,
  readDefaultSecret,
  readDelivery,
  readEndpoint,
  readPublicKeys,
  redeliver,
  rotateDefaultSecret,
  rotateEndpointSecret,
  sendTest,
  updateEndpoint,
} from "@drover/delivery";
import { validateUrl } from "@drover/egress";
import {
  createEndpointBody,
  type DeliveryAnswer,
  deliveryPage,
  delivery as deliverySchema,
  type EndpointAnswer,
  endpointPage,
  endpoint as endpointSchema,
  endpointWithSecret,
  pageQuery,
  rotateSecretBody,
  toWireId,
  updateEndpointBody,
  webhookKeys,
  webhookSecret,
} from "@drover/protocol";
import { readRun } from "@drover/runs";
import { z } from "zod";
import type { App, Context } from "../context.ts";
import { fromCursor, readPage, toCursor } from "../cursors.ts";
import { may } from "../keys.ts";
import { invalid } from "../problems.ts";
import { missing, requireId, runId } from "../resources.ts";

const tags = ["webhooks"];
const params = z.object({ id: z.string().describe("`whk_…`") });
const noQuery = z.strictObject({});
const json = <T extends z.ZodType>(description: string, schema: T) => ({
  description,
  content: { "application/json": { schema } },
});
const manage = { scope: "webhooks", problems: ["not_found"] } as const;

export function webhookRoutes(app: App, context: Context): void {
  const { pool, signals } = context;

  function requireReachable(url: string | undefined): void {
    const wrong = url === undefined ? null : validateUrl(url, context.config.DROVER_EGRESS_ALLOW);
    if (wrong !== null) throw invalid([{ path: "url", message: wrong }]);
  }

  app.route({
    method: "POST",
    url: "/webhooks",
    config: { scope: "webhooks", answerHeaders: { 201: { location: "of the new endpoint" } } },
    schema: {
      tags,
      summary: "Make a webhook endpoint",
      querystring: noQuery,
      body: createEndpointBody,
      response: { 201: json("Made; the secret is shown here and by rotation only", endpointWithSecret) },
    },
    handler: async (request, reply) => {
      requireReachable(request.body.url);
      const { url, events, description, signature, thin_over_bytes } = request.body;
      const made = await createEndpoint(pool, request.caller.tenant, {
        url,
        mayDecide: may(request.caller.role, "approve"),
        namedBy: request.caller.keyId,
        ...(events !== undefined && { events }),
        ...(description !== undefined && { description }),
        ...(signature !== undefined && { signature }),
        ...(thin_over_bytes !== undefined && { thinOverBytes: thin_over_bytes }),
      });
      const answer = endpointAnswer(made);
      return reply
        .code(201)
        .header("location", `/webhooks/${answer.id}`)
        .send({ ...answer, secret: made.secret });
    },
  });

  app.route({
    method: "GET",
    url: "/webhooks",
    config: { scope: "webhooks" },
    schema: {
      tags,
      summary: "List webhook endpoints, newest first",
      querystring: z.strictObject(pageQuery),
      response: { 200: json("One page", endpointPage) },
    },
    handler: async (request, reply) => {
      const { limit, cursor } = request.query;
      const before = fromCursor("endpoints", cursor);
      const { entries, nextCursor } = await readPage(
        limit,
        (most) => listEndpoints(pool, request.caller.tenant, { limit: most, ...(before !== undefined && { before }) }),
        (last) => toCursor("endpoints", last.id),
      );
      return reply.send({ data: entries.map(endpointAnswer), next_cursor: nextCursor });
    },
  });

  app.route({
    method: "GET",
    url: "/webhooks/:id",
    config: manage,
    schema: {
      tags,
      summary: "A webhook endpoint",
      params,
      querystring: noQuery,
      response: { 200: json("The endpoint", endpointSchema) },
    },
    handler: async (request, reply) => {
      const id = requireId("endpoint", request.params.id);
      return reply.send(endpointAnswer((await readEndpoint(pool, request.caller.tenant, id)) ?? missing("endpoint")));
    },
  });

  app.route({
    method: "PATCH",
    url: "/webhooks/:id",
    config: manage,
    schema: {
      tags,
      summary: "Change, enable or disable a webhook endpoint",
      params,
      querystring: noQuery,
      body: updateEndpointBody,
      response: { 200: json("As it is now", endpointSchema) },
    },
    handler: async (request, reply) => {
      const id = requireId("endpoint", request.params.id);
      requireReachable(request.body.url);
      const { url, events, description, thin_over_bytes, enabled } = request.body;
      const changed = await updateEndpoint(pool, request.caller.tenant, id, {
        ...(url !== undefined && {
          url,
          mayDecide: may(request.caller.role, "approve"),
          namedBy: request.caller.keyId,
        }),
        ...(events !== undefined && { events }),
        ...(description !== undefined && { description }),
        ...(thin_over_bytes !== undefined && { thinOverBytes: thin_over_bytes }),
        ...(enabled !== undefined && { enabled }),
      });
      return reply.send(endpointAnswer(changed ?? missing("endpoint")));
    },
  });

  app.route({
    method: "DELETE",
    url: "/webhooks/:id",
    config: manage,
    schema: {
      tags,
      summary: "Remove a webhook endpoint and its deliveries",
      params,
      querystring: noQuery,
      response: { 204: z.undefined().describe("Removed") },
    },
    handler: async (request, reply) => {
      const id = requireId("endpoint", request.params.id);
      if (!(await deleteEndpoint(pool, request.caller.tenant, id))) missing("endpoint");
      return reply.code(204).send();
    },
  });

  app.route({
    method: "POST",
    url: "/webhooks/:id/rotate-secret",
    config: manage,
    schema: {
      tags,
      summary: "Give a webhook endpoint a new secret",
      description:
        "For `overlap_seconds` (a day unless given) requests carry two signatures, of the new secret and of the old one.",
      params,
      querystring: noQuery,
      body: rotateSecretBody,
      response: { 200: json("The new secret", webhookSecret) },
    },
    handler: async (request, reply) => {
      const id = requireId("endpoint", request.params.id);
      const rotated = await rotateEndpointSecret(pool, request.caller.tenant, id, request.body?.overlap_seconds);
      return reply.send(rotated ?? missing("endpoint"));
    },
  });

  app.route({
    method: "GET",
    url: "/webhooks/:id/public-key",
    config: { scope: "read", problems: ["not_found"] },
    schema: {
      tags,
      summary: "The public keys of an endpoint whose signature is ed25519",
      description:
        "Signatures are `v1a,` + base64 of the ed25519 signature of `{webhook-id}.{webhook-timestamp}.{body}`. Empty where it signs with a shared secret.",
      params,
      querystring: noQuery,
      response: { 200: json("The keys that signatures verify with now", webhookKeys) },
    },
    handler: async (request, reply) => {
      const id = requireId("endpoint", request.params.id);
      return reply.send({ keys: (await readPublicKeys(pool, request.caller.tenant, id)) ?? missing("endpoint") });
    },
  });

  app.route({
    method: "POST",
    url: "/webhooks/:id/test",
    config: { ...manage, problems: ["not_found", "conflict"] },
    schema: {
      tags,
      summary: "Send a test event to a webhook endpoint",
      params,
      querystring: noQuery,
      response: { 202: json("It is owed and will be tried at once", deliverySchema) },
    },
    handler: async (request, reply) => {
      const { tenant } = request.caller;
      const owed = (await sendTest(pool, tenant, requireId("endpoint", request.params.id))) ?? missing("endpoint");
      signals.ring("delivery");
      const record = (await readDelivery(pool, tenant, owed.deliveryId)) ?? missing("delivery");
      return reply.code(202).send(deliveryAnswer(record));
    },
  });

  app.route({
    method: "GET",
    url: "/webhooks/secret",
    config: { scope: "secret", problems: ["not_found"] },
    schema: {
      tags,
      summary: "The secret that callbacks are signed with",
      querystring: noQuery,
      response: { 200: json("The tenant's default secret", webhookSecret) },
    },
    handler: async (request, reply) =>
      reply.send((await readDefaultSecret(pool, request.caller.tenant)) ?? missing("endpoint")),
  });

  app.route({
    method: "POST",
    url: "/webhooks/secret/rotate",
    config: { scope: "secret", problems: ["not_found"] },
    schema: {
      tags,
      summary: "Give callbacks a new secret",
      querystring: noQuery,
      body: rotateSecretBody,
      response: { 200: json("The new secret", webhookSecret) },
    },
    handler: async (request, reply) => {
      const { tenant } = request.caller;
      const rotated = await rotateDefaultSecret(pool, tenant, request.body?.overlap_seconds);
      return reply.send(rotated ?? missing("endpoint"));
    },
  });

  app.route({
    method: "GET",
    url: "/query/:id/deliveries",
    config: { scope: "read", problems: ["not_found"] },
    schema: {
      tags,
      summary: "What was delivered about a query, newest first",
      params: z.object({ id: z.string().describe("`run_…`") }),
      querystring: z.strictObject(pageQuery),
      response: { 200: json("One page", deliveryPage) },
    },
    handler: async (request, reply) => {
      const { tenant } = request.caller;
      const { limit, cursor } = request.query;
      const run = (await readRun(pool, tenant, runId(request.params.id))) ?? missing("run");
      const before = fromCursor("deliveries", cursor);
      const { entries, nextCursor } = await readPage(
        limit,
        (most) => listDeliveries(pool, tenant, run.id, { limit: most, ...(before !== undefined && { before }) }),
        (last) => toCursor("deliveries", last.id),
      );
      return reply.send({ data: entries.map(deliveryAnswer), next_cursor: nextCursor });
    },
  });

  app.route({
    method: "POST",
    url: "/deliveries/:id/redeliver",
    config: { scope: "redeliver", problems: ["not_found", "conflict"] },
    schema: {
      tags,
      summary: "Deliver once more",
      description:
        "The same ids and the same body, for three fresh days; `delivered_at` says that it had arrived before. `conflict` while it is pending or its endpoint is disabled.",
      params: z.object({ id: z.string().describe("`dlv_…`") }),
      querystring: noQuery,
      response: { 202: json("It is owed again", deliverySchema) },
    },
    handler: async (request, reply) => {
      const record = await redeliver(pool, request.caller.tenant, requireId("delivery", request.params.id));
      signals.ring("delivery");
      return reply.code(202).send(deliveryAnswer(record ?? missing("delivery")));
    },
  });
}

function endpointAnswer(endpoint: Endpoint): EndpointAnswer {
  const { id, url, events, description, enabled, disabledReason, signature, thinOverBytes, createdAt } = endpoint;
  return {
    id: toWireId("endpoint", id),
    url,
    events,
    description,
    enabled,
    disabled_reason: disabledReason,
    signature,
    thin_over_bytes: thinOverBytes,
    created_at: createdAt.toISOString(),
  };
}

function deliveryAnswer(record: DeliveryRecord): DeliveryAnswer {
  return {
    id: toWireId("delivery", record.id),
    message_id: toWireId("event", record.messageId),
    endpoint_id: record.endpointId && toWireId("endpoint", record.endpointId),
    url: record.url,
    type: record.type,
    status: record.status,
    attempts: record.attempts.map(({ at, statusCode, error, cause, durationMs }) => ({
      at: at.toISOString(),
      status_code: statusCode,
      error,
      cause,
      hint: cause === null ? null : hintOf(cause),
      duration_ms: durationMs,
    })),
    delivered_at: record.attempts.find(({ error }) => error === null)?.at.toISOString() ?? null,
    next_attempt_at: record.nextAttemptAt?.toISOString() ?? null,
    created_at: record.createdAt.toISOString(),
  };
}
