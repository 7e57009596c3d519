/** The three ways a request can fail. None of their messages holds an address that DNS gave, a path, a query or a header. */

/** The URL or the address behind it is not allowed. Trying again does not help unless DNS or the configuration changes. */
export class EgressRefused extends Error {
  constructor(message: string) {
    super(message);
    this.name = "EgressRefused";
  }
}

/** The total deadline passed; the request may have been carried out by the other side. */
export class EgressTimeout extends Error {
  /** The answer's status, when only its body was late. */
  readonly status: number | undefined;
  constructor(host: string, timeoutMs: number, status?: number) {
    super(`${host} did not answer in full within ${timeoutMs} ms`);
    this.name = "EgressTimeout";
    this.status = status;
  }
}

/** The network, TLS or HTTP went wrong; `code` is Node's or undici's (`ECONNREFUSED`, `DEPTH_ZERO_SELF_SIGNED_CERT`, …). */
export class EgressFailed extends Error {
  readonly code: string;
  /** The answer's status, when only its body could not be read. */
  readonly status: number | undefined;
  constructor(host: string, code: string, status?: number) {
    super(`${host}: ${describe(code)}`);
    this.name = "EgressFailed";
    this.code = code;
    this.status = status;
  }
}

const meanings: Record<string, string> = {
  ECONNREFUSED: "connection refused",
  ECONNRESET: "connection reset",
  EPIPE: "connection closed by the other side",
  UND_ERR_SOCKET: "connection closed by the other side",
  EHOSTUNREACH: "host unreachable",
  ENETUNREACH: "network unreachable",
  ETIMEDOUT: "connection timed out",
  UND_ERR_CONNECT_TIMEOUT: "connection timed out",
  ENOTFOUND: "host not found",
  ENODATA: "host not found",
  EAI_AGAIN: "host name look-up failed for now",
  ERR_TLS_CERT_ALTNAME_INVALID: "TLS certificate is for another host",
  CERT_HAS_EXPIRED: "TLS certificate has expired",
  DEPTH_ZERO_SELF_SIGNED_CERT: "TLS certificate is self-signed",
  SELF_SIGNED_CERT_IN_CHAIN: "TLS certificate is self-signed",
  UND_ERR_HEADERS_OVERFLOW: "headers are too large",
  UND_ERR_INVALID_ARG: "method or headers are not valid",
  UND_ERR_DESTROYED: "stopping",
  UND_ERR_CLOSED: "stopping",
  HTTPParserError: "answer is not valid HTTP",
  ENCODING: "content-encoding is not supported",
};

function describe(code: string): string {
  const known = meanings[code];
  if (known) return `${known} (${code})`;
  if (code.startsWith("Z_") || code.startsWith("ERR_BROTLI") || code.startsWith("ERR__ERROR_FORMAT"))
    return `body is not what its content-encoding says (${code})`;
  if (code.startsWith("ERR_SSL") || code.includes("CERT") || code.includes("TLS")) return `TLS failed (${code})`;
  return `request failed (${code})`;
}

/** Whatever undici threw as one of the three. Its own message and cause are dropped: they name addresses. */
export function toEgressError(error: unknown, host: string, status: number | undefined): Error {
  if (error instanceof EgressRefused || error instanceof EgressTimeout || error instanceof EgressFailed) return error;
  const { code, name } = error as { code?: unknown; name?: unknown };
  return new EgressFailed(host, String(code ?? name), status);
}
