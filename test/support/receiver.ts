/**
 * A real HTTP server on 127.0.0.1 that receives webhooks: it records what came, headers and raw body, and answers as told,
 * badly if need be. Signatures are checked by the `standardwebhooks` library, which shares no code with the sender.
 */
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { text } from "node:stream/consumers";
import { pipeline } from "node:stream/promises";
import { Webhook } from "standardwebhooks";

export interface ReceivedWebhook {
  method: string;
  path: string;
  headers: Record<string, string>;
  /** As it came over the wire. */
  body: string;
}

/**
 * `cut` closes the socket without an answer, `drip` answers 200 and then a byte now and then without end, `flood` answers
 * 200 and then as many bytes as it can, without end.
 */
export type Reply = { status: number; headers?: Record<string, string>; body?: string } | "cut" | "drip" | "flood";

/** What to answer to the n-th request (from 0). A promise holds the answer back; one that never resolves is a receiver that hangs. */
export type Replier = (request: ReceivedWebhook, n: number) => Reply | Promise<Reply>;

export interface Receiver {
  /** `http://127.0.0.1:<port>` */
  url: string;
  port: number;
  /** In the order of their arrival, also those not answered yet. */
  readonly requests: ReceivedWebhook[];
  /** Bytes that `flood` got rid of. */
  readonly flooded: number;
  /** From the next request on. A number is a bare status. */
  reply(how: number | Reply | Replier): void;
  /** Resolves with the first `count` requests as soon as there are so many. */
  waitFor(count: number): Promise<ReceivedWebhook[]>;
  close(): Promise<void>;
}

const dripMs = 20;

/** Starts a receiver; without `reply` it answers 200. */
export async function startReceiver(reply: number | Reply | Replier = 200): Promise<Receiver> {
  const requests: ReceivedWebhook[] = [];
  const waiting = new Set<() => void>();
  const sockets = new Set<Socket>();
  let replier = toReplier(reply);
  let flooded = 0;

  const server = createServer((request, response) => {
    response.on("error", () => {});
    void receive(request, response).catch(() => response.destroy());
  });
  async function receive(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const received: ReceivedWebhook = {
      method: request.method!,
      path: request.url!,
      headers: Object.fromEntries(Object.entries(request.headers).map(([name, value]) => [name, String(value)])),
      body: await text(request),
    };
    const n = requests.push(received) - 1;
    for (const check of [...waiting]) check();
    const how = await replier(received, n);
    if (how === "cut") response.destroy();
    else if (how === "drip") drip(response);
    else if (how === "flood") await flood(response);
    else response.writeHead(how.status, how.headers).end(how.body);
  }
  function drip(response: ServerResponse): void {
    response.writeHead(200);
    const timer = setInterval(() => response.write("."), dripMs);
    response.on("close", () => clearInterval(timer));
  }
  async function flood(response: ServerResponse): Promise<void> {
    const chunk = Buffer.alloc(16_384, ".");
    response.writeHead(200);
    await pipeline(function* () {
      for (;;) {
        flooded += chunk.length;
        yield chunk;
      }
    }, response);
  }

  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    port,
    requests,
    get flooded() {
      return flooded;
    },
    reply: (how) => {
      replier = toReplier(how);
    },
    waitFor: (count) =>
      new Promise((resolve) => {
        const check = () => {
          if (requests.length < count) return;
          waiting.delete(check);
          resolve(requests.slice(0, count));
        };
        waiting.add(check);
        check();
      }),
    close: async () => {
      const closed = once(server, "close");
      server.close();
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

/** The parsed body of a request whose signature is right for `secret` and whose time is now. Throws otherwise. */
export function verified(
  request: ReceivedWebhook,
  secret: string,
): { type: string; timestamp: string; data: Record<string, unknown> } {
  return new Webhook(secret).verify(request.body, request.headers) as ReturnType<typeof verified>;
}

function toReplier(how: number | Reply | Replier): Replier {
  if (typeof how === "function") return how;
  const reply: Reply = typeof how === "number" ? { status: how } : how;
  return () => reply;
}
