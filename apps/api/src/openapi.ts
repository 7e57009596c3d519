/**
 * The OpenAPI 3.1 document, from the same zod schemas that validate. What a schema cannot say (error codes, headers, who may
 * come in) is in each route's `config`, and stands here in the document.
 */

import { type ErrorCode, errorTable } from "@drover/protocol";
import swagger from "@fastify/swagger";
import swaggerUi from "@fastify/swagger-ui";
import { jsonSchemaTransform, jsonSchemaTransformObject } from "fastify-type-provider-zod";
import type { App } from "./context.ts";
import { roles } from "./keys.ts";

type Transform = swagger.SwaggerTransform;
type TransformObject = swagger.SwaggerTransformObject;
type Json = Record<string, unknown>;

/** Codes every route can answer, those that ask for a key, and those that take a body. */
const codes = {
  everywhere: ["internal_error"],
  authenticated: ["invalid_input", "auth_failed", "forbidden", "service_unavailable"],
  withBody: ["payload_too_large"],
} as const satisfies Record<string, ErrorCode[]>;

const retryAfter = { "Retry-After": { description: "seconds", schema: { type: "integer" } } };

/** Registers the document and its pages; call it before the routes. */
export async function registerOpenApi(app: App, version: string): Promise<void> {
  await app.register(swagger, {
    openapi: {
      openapi: "3.1.0",
      info: {
        title: "Drover",
        version,
        description: "Background jobs for AI agents: submit a query, follow it, get a signed webhook when it ends.",
        license: { name: "Apache-2.0", identifier: "Apache-2.0" } as { name: string },
      },
      servers: [{ url: "/" }],
      tags: [
        { name: "submit", description: "Queries and batches of them" },
        { name: "follow", description: "Status, result and log of a query" },
        { name: "act", description: "Changing what is under way" },
        { name: "webhooks", description: "Endpoints, secrets and deliveries" },
        { name: "operate", description: "For whoever runs this service" },
      ],
      components: {
        securitySchemes: {
          bearer: { type: "http", scheme: "bearer", description: `An API key. Roles: ${roles.join(", ")}.` },
          apiKey: {
            type: "apiKey",
            in: "header",
            name: "X-API-Key",
            description: "The same key in a header of its own",
          },
        },
      },
      security: [{ bearer: [] }, { apiKey: [] }],
    },
    transform,
    transformObject,
  });
  await app.register(swaggerUi, { routePrefix: "/docs", staticCSP: true });
}

const transform: Transform = (document) => {
  const { config = {} } = document.route;
  const transformed = jsonSchemaTransform({
    ...document,
    schema: { ...document.schema, ...(config.reads && { headers: config.reads }) },
  } as Parameters<typeof jsonSchemaTransform>[0]);
  const schema = transformed.schema as Json & { response?: Record<string, Json>; hide?: boolean };
  if (schema.hide) return transformed;

  const own = document.schema as { body?: unknown } | undefined;
  const possible = new Set<ErrorCode>([
    ...codes.everywhere,
    ...(config.scope ? codes.authenticated : []),
    ...(own?.body ? codes.withBody : []),
    ...(config.problems ?? []),
  ]);
  const byStatus = Map.groupBy(config.pages ? [] : possible, (code) => errorTable[code].status ?? 500);
  const responses: Record<string, Json> = schema.response ?? {};
  schema.response = responses;
  for (const [status, headers] of Object.entries(config.answerHeaders ?? {}))
    responses[status] = {
      ...responses[status],
      headers: Object.fromEntries(Object.entries<string>(headers).map(stringHeader)),
    };
  for (const [status, statusCodes] of byStatus) responses[status] = withProblems(responses[status], statusCodes);
  if (!config.scope) schema.security = [];
  schema.operationId = operationId(document.route.method, document.url);
  if (config.scope) schema["x-scope"] = config.scope;
  return transformed;
};

const stringHeader = ([name, description]: [string, string]) => [name, { type: "string", description }] as const;

/** A response by problem document, beside what the route itself says about this status. */
function withProblems(own: Json | undefined, possible: ErrorCode[]): Json {
  const generic = {
    allOf: [{ $ref: "#/components/schemas/Problem" }, { type: "object", properties: { code: { enum: possible } } }],
  };
  const content = (own?.content ?? {}) as Record<string, { schema: Json }>;
  const special = content["application/problem+json"]?.schema;
  const described = possible.map((code) => `\`${code}\`: ${errorTable[code].meaning}`).join(" ");
  return {
    ...own,
    description: own?.description ?? described,
    content: { ...content, "application/problem+json": { schema: special ? { anyOf: [special, generic] } : generic } },
  };
}

/** `POST /query/:id/cancel` -> `postQueryIdCancel` */
function operationId(method: string | string[], url: string): string {
  const words = url.split(/[^A-Za-z0-9]+/).filter((word) => word !== "");
  return String(method).toLowerCase() + words.map((word) => word[0]!.toUpperCase() + word.slice(1)).join("");
}

interface Document {
  paths: Record<string, Record<string, { requestBody?: Body; responses: Record<string, { headers?: Json }> }>>;
  components: Json & { schemas: Record<string, Json> };
}
interface Body {
  required?: boolean;
  content?: Record<string, { schema?: { anyOf?: Json[] } }>;
}

/** What the two libraries leave undone: optional bodies, headers of problems, components that nothing refers to. */
const transformObject: TransformObject = (given) => {
  const document = jsonSchemaTransformObject(given) as unknown as Document;
  for (const operation of Object.values(document.paths).flatMap((methods) => Object.values(methods))) {
    const body = operation.requestBody;
    if (body?.content?.["application/json"]?.schema?.anyOf?.some(({ type }) => type === "null")) body.required = false;
    const unavailable = operation.responses["503"];
    if (unavailable) unavailable.headers = { ...retryAfter, ...unavailable.headers };
  }
  return withUsedComponents(document) as unknown as ReturnType<TransformObject>;
};

const schemaPath = "#/components/schemas/";

/**
 * Every schema comes as `Name` for answers and `NameInput` for requests. Keeps what is referred to, and calls a request's
 * schema by its plain name where no answer has it.
 */
function withUsedComponents(document: Document): Document {
  const { schemas } = document.components;
  const used = new Set<string>();
  const visit = (part: unknown): void => {
    for (const [, name] of JSON.stringify(part).matchAll(/"#\/components\/schemas\/([^"]+)"/g)) {
      if (used.has(name!)) continue;
      used.add(name!);
      visit(schemas[name!]);
    }
  };
  visit(document.paths);
  const plainName = (name: string) => {
    const plain = name.replace(/Input$/, "");
    return used.has(plain) ? name : plain;
  };
  const kept = Object.fromEntries([...used].sort().map((name) => [plainName(name), schemas[name]]));
  const whole = { ...document, components: { ...document.components, schemas: kept } };
  return JSON.parse(JSON.stringify(whole), (key, value) =>
    key === "$ref" && typeof value === "string" && value.startsWith(schemaPath)
      ? schemaPath + plainName(value.slice(schemaPath.length))
      : value,
  );
}
