/** Why a try failed: a code that a program can go by, and what a person can do about it. */
import { type EgressFailed, EgressRefused, EgressTimeout } from "@drover/egress";

const hints = {
  address_not_allowed:
    "The address is private or reserved. Use a public one, or let the operator allow it (DROVER_EGRESS_ALLOW).",
  host_not_found: "The host's name is not known to DNS: check the URL.",
  connection_refused: "Nothing listens at that host and port: start the receiver, or check the port.",
  connection_failed: "The host could not be reached: check its network, firewall and port.",
  connection_closed:
    "The receiver closed the connection without an answer: look whether it crashed, or its proxy timed out.",
  tls: "The TLS connection failed: check the certificate's host name, chain and date.",
  timeout: "The receiver took too long: answer 2xx at once, and do the work afterwards.",
  not_http: "What answered does not speak HTTP: check scheme and port.",
  redirect: "Redirects are not followed: give the address it redirects to.",
  unauthorized: "The receiver wants credentials: let it check the signature instead.",
  not_found: "The receiver has no such path, or no POST there: check the URL.",
  gone: "The receiver said that it is gone for good, so nothing more is sent.",
  too_large: "The receiver takes no message of this size: raise its limit, or set `thin_over_bytes`.",
  rate_limited: "The receiver asks for fewer requests; its Retry-After is kept.",
  rejected: "The receiver refused the message: its own log says why.",
  receiver_error: "The receiver failed: its own log says why.",
  internal: "The message could not be built, or is about what no longer exists.",
} as const;

export type Cause = keyof typeof hints;

/** In words; null for a code of a newer version. */
export const hintOf = (cause: string): string | null => hints[cause as Cause] ?? null;

/** Of an answer that is no 2xx. */
export function causeOfStatus(status: number): Cause {
  if (status >= 500) return "receiver_error";
  if (status < 400) return "redirect";
  return byStatus[status] ?? "rejected";
}

const byStatus: Record<number, Cause> = {
  401: "unauthorized",
  403: "unauthorized",
  404: "not_found",
  405: "not_found",
  410: "gone",
  413: "too_large",
  429: "rate_limited",
};

/** Of a request that got no whole answer. */
export function causeOfError(error: EgressRefused | EgressTimeout | EgressFailed): Cause {
  if (error instanceof EgressRefused) return "address_not_allowed";
  if (error instanceof EgressTimeout) return "timeout";
  return byCode[error.code] ?? (/SSL|TLS|CERT|SIGNED/.test(error.code) ? "tls" : "connection_failed");
}

const byCode: Record<string, Cause> = {
  ENOTFOUND: "host_not_found",
  ENODATA: "host_not_found",
  EAI_AGAIN: "host_not_found",
  ECONNREFUSED: "connection_refused",
  ECONNRESET: "connection_closed",
  EPIPE: "connection_closed",
  UND_ERR_SOCKET: "connection_closed",
  HTTPParserError: "not_http",
  UND_ERR_HEADERS_OVERFLOW: "not_http",
};
