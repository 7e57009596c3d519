/** The demo's webhook receiver, as anybody would write one: keeps the raw body, verifies it with `standardwebhooks`. */
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { Webhook } from "standardwebhooks";

export interface ReceivedWebhook {
  headers: IncomingHttpHeaders;
  body: string;
}

export interface Receiver {
  /** Base URL; `/` takes webhooks, `/weather` is a page for the agent to fetch. */
  url: string;
  /** The first webhook. */
  received: Promise<ReceivedWebhook>;
  close(): Promise<void>;
}

const page = "Weather at the demo: dry, 19 degrees, light wind from the west.";

export async function startReceiver(): Promise<Receiver> {
  let take!: (webhook: ReceivedWebhook) => void;
  const received = new Promise<ReceivedWebhook>((resolve) => {
    take = resolve;
  });
  const server = createServer(async (request, response) => {
    if (request.method === "GET") return response.setHeader("content-type", "text/plain").end(page);
    const body = await text(request);
    response.writeHead(204).end();
    take({ headers: request.headers, body });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    received,
    close: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

/** Whether the webhook is signed with `secret`; else why it is not. */
export function verifyWebhook(
  { headers, body }: ReceivedWebhook,
  secret: string,
): { ok: true } | { ok: false; why: string } {
  try {
    new Webhook(secret).verify(body, headers as Record<string, string>);
    return { ok: true };
  } catch (error) {
    return { ok: false, why: (error as Error).message };
  }
}
