/**
 * Turns whatever a provider, its SDK or the network throws into a `ModelFailure`: which code, worth a retry or not, when,
 * and one sentence for people without a key or a header in it.
 */
import { asThrown, scrub } from "@drover/telemetry";
import type { ModelFailure } from "./model.ts";

export interface FailureContext {
  provider: string;
  /** Where the provider's key comes from, for the hint: a variable's name. */
  keyFrom: string | undefined;
  idleTimeoutMs: number;
}

/** `sent`: the request was on its way, and may be answered, and billed, all the same. */
export type FailureWithoutText = Omit<ModelFailure, "text" | "spent"> & { sent?: true };

/** The fields that APICallError and StreamProviderError share; both come from several copies of packages, so no instanceof. */
interface ProviderError {
  name?: string;
  message?: string;
  type?: string;
  code?: unknown;
  statusCode?: number;
  isRetryable?: boolean;
  responseHeaders?: Record<string, string>;
  responseBody?: string;
  /** The body as the adapter understood it. */
  data?: unknown;
  cause?: unknown;
}

/** Errors of the SDK about what we gave it: the same request can never succeed. */
const ourFault =
  /InvalidPrompt|MissingToolResults|InvalidMessageRole|UnsupportedFunctionality|InvalidArgument|Download/;
const longestMessage = 400;

export function toFailure(thrown: unknown, context: FailureContext): FailureWithoutText {
  const error = asThrown(thrown);
  const { provider } = context;
  const chain = causes(error);
  const status = chain.map((e) => e.statusCode).find((code) => code !== undefined && (code < 200 || code > 299));
  if (status !== undefined) return ofStatus(status, chain.find((e) => e.statusCode === status) ?? {}, context);

  for (const { code } of chain) {
    const reason = typeof code === "string" ? networkReason(code, context) : undefined;
    if (reason) {
      const message = `${provider} ${reason}`;
      return {
        ok: false,
        code: "model_error",
        retryable: true,
        message,
        ...(wasSent.test(code as string) && { sent: true }),
      };
    }
  }
  const said = clean(chain[0]?.message ?? String(error));
  if (chain.some((e) => ourFault.test(e.name ?? ""))) {
    return { ok: false, code: "invalid_input", retryable: false, message: `${provider} cannot be asked this: ${said}` };
  }
  const document = chain.find(({ name }) => name === "DocumentError");
  if (document)
    return {
      ok: false,
      ...ofType(document.message ?? ""),
      isAnswer: true,
      message: `${provider} answered with ${clean(document.message ?? "")}`,
    };
  const told = ofType(`${chain[0]?.type ?? ""} ${chain[0]?.code ?? ""}`);
  return { ok: false, ...told, message: `${provider} failed: ${said}` };
}

/** A stream that ended in good order, but without the provider's closing event or with one that says that it failed. */
export function unfinished(reason: string | undefined, { provider }: FailureContext): FailureWithoutText {
  const message = reason ? `${provider} stopped with ${clean(reason)}` : `${provider} ended its answer in the middle`;
  return { ok: false, code: "model_error", retryable: true, message };
}

function ofStatus(status: number, error: ProviderError, context: FailureContext): FailureWithoutText {
  const { provider, keyFrom } = context;
  const said = whatItSaid(error);
  if (status === 401 || /API_KEY_INVALID/.test(error.responseBody ?? "")) {
    // Not what the provider said: some repeat a part of the key.
    const hint = keyFrom ? `; check ${keyFrom}` : "";
    return {
      ok: false,
      code: "auth_failed",
      retryable: false,
      message: `${provider} refused the key (${status})${hint}`,
    };
  }
  const message = `${provider} answered ${status}: ${said}`;
  if (status === 403) return { ok: false, code: "auth_failed", retryable: false, message };
  if (status >= 500 || [408, 409, 425, 429].includes(status)) {
    const retryAfterMs = retryAfter(error);
    // The adapters know errors that do not pass, such as a used-up quota; 425 they do not know.
    const retryable = status === 425 || error.isRetryable !== false;
    return {
      ok: false,
      code: "model_error",
      retryable,
      ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
      message,
    };
  }
  // 402 is a matter of the account, 3xx of the base URL: neither is the run's input, neither gets better by itself.
  if (status === 402 || status < 400) return { ok: false, code: "model_error", retryable: false, message };
  return { ok: false, code: "invalid_input", retryable: false, message };
}

/** The provider's own message; where the adapter found none in the body (a proxy's answer), the body's beginning. */
function whatItSaid({ message = "", data, responseBody = "" }: ProviderError): string {
  const foreign = data === undefined && !/^\s*(<|$)/.test(responseBody);
  return clean(foreign ? `${message}: ${responseBody}` : message);
}

/** Error events without a status (OpenAI-compatible servers): by the words in `type` and `code`. */
function ofType(words: string): Pick<ModelFailure, "code" | "retryable"> {
  if (/auth|permission|api_key/i.test(words)) return { code: "auth_failed", retryable: false };
  if (/invalid_request|context_length|not_found|bad_request/i.test(words))
    return { code: "invalid_input", retryable: false };
  return { code: "model_error", retryable: !/insufficient_quota|billing/i.test(words) };
}

/** Codes of a connection that was lost after the request had gone out. */
const wasSent = /^(UND_ERR_(HEADERS|BODY)_TIMEOUT|UND_ERR_SOCKET|ECONNRESET|EPIPE)$/;

function networkReason(code: string, { idleTimeoutMs }: FailureContext): string | undefined {
  switch (code) {
    case "ECONNREFUSED":
      return "refused the connection";
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return "could not be found: its host name does not resolve";
    case "ETIMEDOUT":
    case "UND_ERR_CONNECT_TIMEOUT":
    case "EHOSTUNREACH":
    case "ENETUNREACH":
      return "could not be reached";
    case "UND_ERR_HEADERS_TIMEOUT":
    case "UND_ERR_BODY_TIMEOUT":
      return `sent nothing for ${idleTimeoutMs / 1000} s`;
    case "ECONNRESET":
    case "EPIPE":
    case "UND_ERR_SOCKET":
      return "cut the connection";
    default:
      return undefined;
  }
}

/** The provider's own wish in ms: `retry-after-ms`, `retry-after` in seconds or as a date, Google's `retryDelay`. */
function retryAfter({ responseHeaders = {}, responseBody = "" }: ProviderError): number | undefined {
  const ms = Number.parseFloat(responseHeaders["retry-after-ms"] ?? "");
  if (ms >= 0) return Math.ceil(ms);
  const after = responseHeaders["retry-after"];
  if (after !== undefined) {
    const wished = /^\s*[\d.]+\s*$/.test(after) ? Number(after) * 1000 : Date.parse(after) - Date.now();
    if (!Number.isNaN(wished)) return Math.max(0, Math.ceil(wished));
  }
  const delay = /"retryDelay"\s*:\s*"([\d.]+)s"/.exec(responseBody)?.[1];
  return delay === undefined ? undefined : Math.ceil(Number(delay) * 1000);
}

function causes(error: unknown): ProviderError[] {
  const chain: ProviderError[] = [];
  for (let at = error; typeof at === "object" && at !== null && chain.length < 8; at = (at as ProviderError).cause) {
    chain.push(at as ProviderError);
    if (at instanceof AggregateError) chain.push(...(at.errors as ProviderError[]));
  }
  return chain;
}

function clean(message: string): string {
  const scrubbed = scrub(message).replace(/\s+/g, " ").trim();
  return scrubbed.length > longestMessage ? `${scrubbed.slice(0, longestMessage)} ...` : scrubbed;
}
