/** Who is asking, and whether its role allows it: before the body is read, and without a statement when the key is remembered. */
import { createHash, timingSafeEqual } from "node:crypto";
import { DroverError } from "@drover/protocol";
import type { FastifyReply, FastifyRequest, HookHandlerDoneFunction } from "fastify";
import { type Caller, type KeyRing, may } from "./keys.ts";

type Hook = (request: FastifyRequest, reply: FastifyReply, done: HookHandlerDoneFunction) => void;

/** The hook that lets in whoever has the route's scope and puts `caller` on the request. */
export function authentication(ring: KeyRing): Hook {
  return (request, _reply, done) => {
    const key = presentedKey(request);
    const found = key === undefined ? null : ring.authenticate(key);
    if (found instanceof Promise) found.then((caller) => done(admit(request, caller, key)), done);
    else done(admit(request, found, key));
  };
}

function admit(request: FastifyRequest, caller: Caller | null, key: string | undefined): DroverError | undefined {
  if (!caller)
    return new DroverError(
      "auth_failed",
      key === undefined
        ? "Send an API key: `Authorization: Bearer <key>` or `X-API-Key: <key>`."
        : "This API key is not known, or it was revoked.",
    );
  const { scope } = request.routeOptions.config;
  if (!scope || !may(caller.role, scope))
    return new DroverError("forbidden", `A key of role ${caller.role} may not do this.`);
  request.caller = caller;
  return undefined;
}

/** The key as a bearer token, in `X-API-Key`, or, on routes that browsers open, as the password of Basic credentials. */
function presentedKey(request: FastifyRequest): string | undefined {
  const { authorization } = request.headers;
  if (authorization !== undefined) {
    const space = authorization.indexOf(" ");
    const scheme = authorization.slice(0, space).toLowerCase();
    const value = authorization.slice(space + 1).trim();
    if (scheme === "bearer") return value;
    if (scheme === "basic" && request.routeOptions.config.basic) {
      const credentials = Buffer.from(value, "base64").toString("utf8");
      return credentials.slice(credentials.indexOf(":") + 1);
    }
  }
  const header = request.headers["x-api-key"];
  return typeof header === "string" ? header : undefined;
}

/** The hook of `/metrics`: open without a token, else only for who has it. */
export function metricsAuthentication(token: string | undefined): Hook {
  const wanted = token === undefined ? undefined : digest(token);
  return (request, _reply, done) => {
    if (wanted === undefined) return done();
    const given = presentedKey(request);
    if (given !== undefined && timingSafeEqual(digest(given), wanted)) return done();
    done(new DroverError("auth_failed", "Send the metrics token: `Authorization: Bearer <METRICS_TOKEN>`."));
  };
}

const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
