/** Real HTTP and TCP servers on 127.0.0.1 for one test each, closed with every connection after it. */
import { once } from "node:events";
import { createServer, type RequestListener, type Server } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { type AddressInfo, createServer as createTcpServer, type Server as NetServer, type Socket } from "node:net";
import { afterEach } from "vitest";

export interface TestServer {
  port: number;
  /** `http://127.0.0.1:<port>` */
  url: string;
  /** Method and path of every request so far. */
  requests: string[];
  /** Connections accepted so far. */
  connections: number;
  closeConnections(): void;
}

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  await Promise.all(cleanups.splice(0).map((cleanup) => cleanup()));
});

/** Runs after the test, also when it fails. */
export function afterTest(cleanup: () => Promise<unknown>): void {
  cleanups.push(cleanup);
}

export async function httpServer(answer: RequestListener): Promise<TestServer> {
  return await listen(createServer(), "http", answer);
}

export async function httpsServer(tls: { key: string; cert: string }, answer: RequestListener): Promise<TestServer> {
  return await listen(createTlsServer(tls), "https", answer);
}

export async function tcpServer(onSocket: (socket: Socket) => void): Promise<TestServer> {
  return await listen(createTcpServer(onSocket), "http");
}

async function listen(server: NetServer, scheme: string, answer?: RequestListener): Promise<TestServer> {
  const sockets = new Set<Socket>();
  const closeConnections = () => {
    for (const socket of sockets) socket.destroy();
  };
  server.on("connection", (socket: Socket) => {
    test.connections++;
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  });
  if (answer) {
    (server as Server).on("request", (request, response) => {
      test.requests.push(`${request.method} ${request.url}`);
      answer(request, response);
    });
  }
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  const test: TestServer = {
    port,
    url: `${scheme}://127.0.0.1:${port}`,
    requests: [],
    connections: 0,
    closeConnections,
  };
  afterTest(async () => {
    const closed = once(server, "close");
    server.close();
    closeConnections();
    await closed;
  });
  return test;
}
