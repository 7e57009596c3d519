/**
 * The one way out for webhooks and tools: a request to a URL that a stranger chose, which reaches public addresses only, ends
 * in time and cannot fill the memory. Proxies named in the environment are not used: they would look names up for us.
 */
import { lookup as dnsLookup } from "node:dns";
import { Agent } from "undici";
import { toCidr } from "./addresses.ts";
import { acceptEncoding, readBody } from "./body.ts";
import { guardedConnector, type Lookup } from "./connector.ts";
import { EgressTimeout, toEgressError } from "./errors.ts";
import { requireUrl } from "./url.ts";

export interface EgressOptions {
  /** CIDRs that may be reached although not public, as `parseCidrs` returns them. `localhost` needs 127.0.0.0/8 and ::1/128. */
  allow?: readonly string[];
  /** How names are looked up (default `dns.lookup`); tests script it. */
  lookup?: Lookup;
}

export interface EgressRequest {
  /** Default GET. */
  method?: string;
  headers?: Record<string, string>;
  body?: string;
  /** Total time in ms: name look-up, connection, TLS, headers and body together. */
  timeoutMs: number;
  /** Bytes of the decoded body that are read at most. */
  maxBytes: number;
  signal?: AbortSignal;
  /**
   * It may arrive twice: a connection that was kept open, and that the other side closed before any answer to this request, is made anew and the request sent
   * again, once.
   */
  repeatable?: boolean;
}

export interface EgressResponse {
  status: number;
  /** Lower-case names; a header that came several times is joined by ", ". */
  headers: Record<string, string>;
  body: Buffer;
  /** The body was longer than `maxBytes`. */
  truncated: boolean;
}

export interface Egress {
  /**
   * One request and its whole answer, whatever its status; redirects are answers too. A request that is given up before its
   * connection stands is never sent.
   * @throws EgressRefused, EgressTimeout, EgressFailed; the signal's reason when the signal ended it
   */
  request(url: string, init: EgressRequest): Promise<EgressResponse>;
  /** Closes every connection; requests still under way fail with `EgressFailed`. */
  close(): Promise<void>;
}

/** Idle connections are kept this long, or as long as the server says, up to the maximum. */
const keepAlive = { keepAliveTimeout: 4_000, keepAliveMaxTimeout: 30_000 };
/** Connections to one origin; more requests wait for one. Origins never wait for each other. */
const connectionsPerOrigin = 128;

/** @throws Error naming the entry of `allow` that is not a CIDR */
export function createEgress(options: EgressOptions = {}): Egress {
  const allow = (options.allow ?? []).map(toCidr);
  const agent = new Agent({
    ...keepAlive,
    connect: guardedConnector(allow, options.lookup ?? dnsLookup),
    connections: connectionsPerOrigin,
    pipelining: 1,
    allowH2: false,
    // Idle times; ours is the total time.
    headersTimeout: 0,
    bodyTimeout: 0,
  });
  return {
    async request(url, init) {
      init.signal?.throwIfAborted();
      const target = requireUrl(url, allow);
      return await withinDeadline(target.host, init, async (progress) => {
        try {
          return await exchange(agent, target, init, progress);
        } catch (error) {
          if (!init.repeatable || progress.status !== undefined || !wasClosedIdle(error)) throw error;
          return await exchange(agent, target, init, progress);
        }
      });
    },
    close: () => agent.destroy(),
  };
}

/** An earlier request on this connection was answered, and then the other side closed it. */
function wasClosedIdle(error: unknown): boolean {
  const { code, socket } = error as { code?: unknown; socket?: { bytesRead?: number } | null };
  return code === "UND_ERR_SOCKET" && (socket?.bytesRead ?? 0) > 0;
}

interface Progress {
  signal: AbortSignal;
  /** Set once the headers are there. */
  status?: number;
}

async function exchange(agent: Agent, url: URL, init: EgressRequest, progress: Progress): Promise<EgressResponse> {
  const response = await agent.request({
    origin: url.origin,
    path: url.pathname + url.search,
    method: init.method ?? "GET",
    headers: withAcceptEncoding(init.headers ?? {}),
    body: init.body ?? null,
    signal: progress.signal,
  });
  progress.status = response.statusCode;
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(response.headers)) {
    if (value !== undefined) headers[name] = Array.isArray(value) ? value.join(", ") : value;
  }
  const read = await readBody(response.body, { encoding: headers["content-encoding"], maxBytes: init.maxBytes });
  return { status: response.statusCode, headers, ...read };
}

function withAcceptEncoding(headers: Record<string, string>): Record<string, string> {
  const given = Object.keys(headers).some((name) => name.toLowerCase() === "accept-encoding");
  return given ? headers : { ...headers, "accept-encoding": acceptEncoding };
}

/**
 * Runs `work` until it ends, the deadline passes or the caller's signal fires, whichever is first. The race is needed: undici
 * hears of an abort only once it has a connection, so a look-up or a connect that hangs would outlive the deadline.
 */
async function withinDeadline<T>(
  host: string,
  init: EgressRequest,
  work: (progress: Progress) => Promise<T>,
): Promise<T> {
  const { promise: ended, reject } = Promise.withResolvers<never>();
  const controller = new AbortController();
  const progress: Progress = { signal: controller.signal };
  const end = (reason: unknown) => {
    reject(reason);
    controller.abort(reason);
  };
  const onAbort = () => end(init.signal?.reason);
  const timer = setTimeout(() => end(new EgressTimeout(host, init.timeoutMs, progress.status)), init.timeoutMs);
  init.signal?.addEventListener("abort", onAbort, { once: true });
  try {
    return await Promise.race([work(progress), ended]);
  } catch (error) {
    throw controller.signal.aborted ? controller.signal.reason : toEgressError(error, host, progress.status);
  } finally {
    clearTimeout(timer);
    init.signal?.removeEventListener("abort", onAbort);
  }
}
