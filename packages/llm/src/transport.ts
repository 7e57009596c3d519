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
  const send = async (url: string | URL, init?: RequestInit) => {
    const response = await undiciFetch(url, { ...init, dispatcher, redirect: "manual" });
    const type = response.headers.get("content-type") ?? "";
    if (!response.ok || !response.body) return response;
    // A stream was asked for.
    if (/^application\/json\b/i.test(type)) throw new DocumentError(await beginning(response.body));
    if (!/^text\/event-stream\b/i.test(type)) return response;
    const { status, statusText, headers } = response;
    return new Response(response.body.pipeThrough(closed()), { status, statusText, headers });
  };
  return send as unknown as typeof globalThis.fetch;
}

/** A document where a stream was asked for, under a status that says that all is well. `message`: what it says. */
class DocumentError extends Error {
  override readonly name = "DocumentError";

  constructor(document: string) {
    super(`a document instead of a stream: ${messageIn(document) ?? document}`);
  }
}

const mostOfADocument = 64 * 1024;

async function beginning(body: AsyncIterable<Uint8Array>): Promise<string> {
  const pieces: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of body) {
    pieces.push(piece);
    bytes += piece.length;
    if (bytes >= mostOfADocument) break;
  }
  return Buffer.concat(pieces).subarray(0, mostOfADocument).toString();
}

/** `error.message`, `error`, `message` or `detail`, as servers write it. */
function messageIn(document: string): string | undefined {
  try {
    const { error, message, detail } = JSON.parse(document) as Record<string, unknown>;
    const said = [(error as { message?: unknown } | null)?.message, error, message, detail];
    return said.find((one): one is string => typeof one === "string" && one !== "");
  } catch {
    return undefined;
  }
}

/** Some servers close right after the last line; parsers of event streams wait for the blank one after it. */
const closed = () =>
  new TransformStream<Uint8Array, Uint8Array>({
    flush: (controller) => controller.enqueue(Buffer.from("\n\n")),
  });
