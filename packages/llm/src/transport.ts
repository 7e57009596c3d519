/**
 * The HTTP side of all model calls of one process: one undici agent without a limit on connections, and the idle timeout.
 * The timeout counts bytes, not parsed chunks, so that a provider's keep-alive pings during long thinking count as life.
 */
import { Agent, type RequestInit, fetch as undiciFetch } from "undici";

/**
 * A `fetch` for the AI SDK's providers. One open stream is one HTTP/1.1 connection: 2,000 of them are fine, and a dying
 * connection takes one call with it, where an HTTP/2 session would take a hundred. A redirect is not followed, it would
 * carry the key to another place.
 *
 * @param idleTimeoutMs ms without a byte, before or within the answer, after which the call fails
 */
export function createTransport(idleTimeoutMs: number): typeof globalThis.fetch {
  const dispatcher = new Agent({ headersTimeout: idleTimeoutMs, bodyTimeout: idleTimeoutMs, allowH2: false });
  const send = (url: string | URL, init?: RequestInit) => undiciFetch(url, { ...init, dispatcher, redirect: "manual" });
  return send as unknown as typeof globalThis.fetch;
}
