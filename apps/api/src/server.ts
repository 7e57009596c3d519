/** The HTTP server: what is the same for every request, and all routes. */
import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { DroverError, plannedFields, toProblem } from "@drover/protocol";
import { orderRinger } from "@drover/runs";
import { type Logger, metrics } from "@drover/telemetry";
import fastify, {
  type FastifyBaseLogger,
  type FastifyReply,
  type FastifyRequest,
  LogController,
  type onRequestHookHandler,
} from "fastify";
import { z } from "zod";
import { authentication } from "./auth.ts";
import { requireKept, textOf, unstorable } from "./body.ts";
import type { App, Context, Services } from "./context.ts";
import type { Caller } from "./keys.ts";
import { registerOpenApi } from "./openapi.ts";
import { frontPage, pageHeaders } from "./pages.ts";
import { invalid, problemContentType, runOf, sendProblem, toFieldErrors, unknownField } from "./problems.ts";
import { approvalRoutes } from "./routes/approvals.ts";
import { artifactRoutes } from "./routes/artifacts.ts";
import { auditRoutes } from "./routes/audit.ts";
import { batchRoutes } from "./routes/batches.ts";
import { boardRoutes } from "./routes/board.ts";
import { budgetRoutes } from "./routes/budget.ts";
import { feedRoutes } from "./routes/feed.ts";
import { linkRoutes } from "./routes/links.ts";
import { logRoutes } from "./routes/log.ts";
import { operateRoutes } from "./routes/operate.ts";
import { retryRoutes } from "./routes/retry.ts";
import { rollbackRoutes } from "./routes/rollback.ts";
import { runRoutes } from "./routes/runs.ts";
import { submitRoutes } from "./routes/submit.ts";
import { webhookRoutes } from "./routes/webhooks.ts";

const bodyLimit = 1024 * 1024;
/** To send a whole request, ms: a batch of 32 MiB over a slow line. */
const requestTimeoutMs = 300_000;
const { version } = createRequire(import.meta.url)("../package.json") as { version: string };

export interface Server {
  app: App;
  /** Called once the queue is open: the board shows it from then on. */
  showQueue(services: Services): void;
}

/** Asked every few seconds by machines: told of only where it goes wrong. */
const probes = new Set(["/health", "/ready", "/metrics"]);

/** One line for each request, at its end. */
function tellRequest(logger: Logger, request: FastifyRequest, reply: FastifyReply): void {
  const route = request.routeOptions.url;
  const level = probes.has(route ?? "") && reply.statusCode < 500 ? "debug" : "info";
  if (!logger.isLevelEnabled(level)) return;
  const { tenant, keyId } = (request.caller ?? {}) as Partial<Caller>;
  logger[level](
    {
      request_id: request.id,
      method: request.method,
      route,
      status: reply.statusCode,
      duration_ms: Math.round(reply.elapsedTime),
      tenant,
      key_id: keyId,
      ...(request.about ?? runOf(request)),
    },
    "request",
  );
}

/** Builds the server with all its routes; it does not listen yet. `services` is null until the database is ready. */
export async function buildServer(context: Context, services: () => Services | null): Promise<Server> {
  const { logger } = context;
  const app: App = fastify({
    // Of Fastify's own lines only the troubled ones.
    loggerInstance: logger.child(
      {},
      { level: logger.isLevelEnabled("warn") ? "warn" : logger.level },
    ) as FastifyBaseLogger,
    // Lines name the request themselves: a child logger per request costs more than its parsing.
    childLoggerFactory: (parent) => parent,
    logController: new LogController({ disableRequestLogging: true }),
    requestIdHeader: false,
    genReqId: requestId,
    bodyLimit,
    requestTimeout: requestTimeoutMs,
    exposeHeadRoutes: true,
    // What comes in on an open connection while the process stops is served; nothing new is accepted.
    return503OnClosing: false,
    routerOptions: { maxParamLength: 200 },
    frameworkErrors: (error, request, reply) => sendProblem(logger, error, request, reply),
    clientErrorHandler(error, socket) {
      if (error.code === "ECONNRESET" || socket.destroyed || !socket.writable) return;
      const id = newRequestId();
      const body = JSON.stringify(toProblem("invalid_input", "This is not a valid HTTP request.", id));
      socket.end(
        `HTTP/1.1 400 Bad Request\r\ncontent-type: ${problemContentType}\r\nx-request-id: ${id}\r\n` +
          `content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
      );
    },
  }) as App;

  app.setValidatorCompiler<z.ZodType>(({ schema, httpPart }) => (data) => {
    const parsed = schema.safeParse(data);
    if (parsed.success) {
      // In a path it names nothing that exists.
      const wrong = httpPart === "params" ? undefined : unstorable(parsed.data);
      return wrong ? { error: invalid([wrong]) } : { value: parsed.data };
    }
    if (httpPart === "body" && data === null)
      return { error: invalid([{ path: "", message: "is required, as application/json" }]) };
    return { error: invalid(toFieldErrors(parsed.error.issues, plannedFields)) };
  });
  // Answers are typed by their schemas, and the tests check each one against the document.
  app.setSerializerCompiler(() => (data) => JSON.stringify(data));

  app.setErrorHandler((error, request, reply) => sendProblem(logger, error, request, reply));
  app.setNotFoundHandler((request, reply) => {
    const error = new DroverError("not_found", `There is no ${request.method} ${request.url.split("?", 1)[0]}.`);
    sendProblem(logger, error, request, reply);
  });

  app.removeAllContentTypeParsers();
  const parseJson = app.getDefaultJsonParser("error", "error");
  app.addContentTypeParser("application/json", { parseAs: "buffer" }, (request, body, done) => {
    // Clients that always name a type, with nothing to say.
    if (body.length === 0) return done(null, undefined);
    try {
      const text = textOf(body as Buffer);
      parseJson(request, text, (error, value) => {
        if (error) return done(error);
        try {
          requireKept(text);
          done(null, value);
        } catch (refused) {
          done(refused as Error);
        }
      });
    } catch (refused) {
      done(refused as Error);
    }
  });

  app.addHook("onRequest", (request, reply, done) => {
    reply.header("x-request-id", request.id);
    done();
  });
  const wrote = orderRinger(context.signals);
  app.addHook("onResponse", (request, reply, done) => {
    const route = request.routeOptions.url ?? "none";
    metrics.httpDuration.observe({ method: request.method, route, status: reply.statusCode }, reply.elapsedTime / 1000);
    tellRequest(logger, request, reply);
    if (request.method !== "GET" && request.method !== "HEAD" && reply.statusCode < 300) wrote();
    done();
  });

  pageHeaders(app);
  await registerOpenApi(app, version);
  app.decorateRequest("caller", undefined as never);
  app.decorateRequest("about", undefined);
  operateRoutes(app, context, services);
  app.get("/", { schema: { hide: true } }, (_request, reply) =>
    reply
      .header("content-type", "text/html; charset=utf-8")
      .serializer(String)
      .send(frontPage(version) as never),
  );
  const authenticate = authentication(context.keys);
  const comeIn: onRequestHookHandler = (request, reply, done) => {
    if (services()) authenticate(request, reply, done);
    else done(notReady());
  };
  await app.register(async (scope) => {
    const api = scope as App;
    api.addHook("onRoute", (route) => {
      // What a route does not know is refused, whatever its method.
      route.schema = { ...route.schema, querystring: route.schema?.querystring ?? noParameters };
      if (!route.config?.scope) throw new Error(`route ${String(route.method)} ${route.url} has no scope`);
      if (route.method !== "GET" && route.method !== "HEAD" && !route.schema?.body) route.preValidation = refuseBody;
    });
    api.addHook("onRequest", comeIn);
    submitRoutes(api, context);
    batchRoutes(api, context);
    runRoutes(api, context);
    logRoutes(api, context);
    artifactRoutes(api, context);
    webhookRoutes(api, context);
    feedRoutes(api, context);
    approvalRoutes(api, context);
    budgetRoutes(api, context);
    retryRoutes(api, context);
    rollbackRoutes(api, context);
    auditRoutes(api, context);
  });
  await linkRoutes(app, context);
  const showQueue = await boardRoutes(app, context, comeIn);
  return { app, showQueue: ({ queue }) => showQueue(queue) };
}

const noParameters = z.strictObject({});

const notReady = () =>
  new DroverError("service_unavailable", "The service is starting: its database is not ready. See /ready.");

/** For routes that take no body: `{}` and nothing are the same, every field is one too many. */
function refuseBody({ body }: { body: unknown }, _reply: unknown, done: (error?: Error) => void): void {
  if (body === undefined || body === null) done();
  else if (typeof body !== "object" || Array.isArray(body)) done(invalid([{ path: "", message: "must be empty" }]));
  else {
    const errors = Object.keys(body).map((path) => ({ path, message: plannedFields[path] ?? unknownField }));
    done(errors.length > 0 ? invalid(errors) : undefined);
  }
}

const sane = /^[\w.:/+=-]{1,128}$/;
const processPart = randomBytes(6).toString("base64url").replaceAll(/[-_]/g, "0");
let requests = 0;

const newRequestId = (): string => `req_${processPart}${(requests++).toString(36)}`;

function requestId(request: { headers: Record<string, string | string[] | undefined> }): string {
  const given = request.headers["x-request-id"];
  return typeof given === "string" && sane.test(given) ? given : newRequestId();
}
