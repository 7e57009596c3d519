/** A TCP proxy that misbehaves when told: for tests of what happens when the network does. */
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";

export interface FaultProxy {
  /** Connect here, on 127.0.0.1, instead of to the target. */
  port: number;
  /** Reset every open connection; new ones work. */
  cut(): void;
  /** While on: connections stay open and new ones are accepted, and no byte passes either way. Off: what was held back passes. */
  blackhole(on: boolean): void;
  /** Open connections fall silent for good, neither side is told; new ones work. As when a NAT forgets them. */
  forget(): void;
  /** While on: new connections are reset at once. Open ones go on. */
  refuse(on: boolean): void;
  /** Connections open at this moment. */
  readonly connections: number;
  close(): Promise<void>;
}

export async function startProxy(targetPort: number, targetHost = "127.0.0.1"): Promise<FaultProxy> {
  const pairs = new Set<[client: Socket, target: Socket]>();
  const forgotten = new WeakSet<Socket>();
  let holding = false;
  let refusing = false;

  const server = createServer({ pauseOnConnect: true }, (client) => {
    if (refusing) {
      client.resetAndDestroy();
      return;
    }
    const target = connect({ port: targetPort, host: targetHost });
    const pair: [Socket, Socket] = [client, target];
    pairs.add(pair);
    for (const [from, to] of [pair, [target, client]] as const) {
      from.setNoDelay(true);
      from.on("data", (chunk) => {
        if (!to.write(chunk)) from.pause();
      });
      to.on("drain", () => {
        if (!holding && !forgotten.has(from)) from.resume();
      });
      from.on("end", () => to.end());
      from.on("error", () => to.resetAndDestroy());
      from.on("close", () => {
        pairs.delete(pair);
        to.destroy();
      });
    }
    if (holding) target.pause();
    else client.resume();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");

  const cut = () => {
    for (const [client, target] of pairs) {
      client.resetAndDestroy();
      target.destroy();
    }
  };
  return {
    port: (server.address() as { port: number }).port,
    cut,
    blackhole: (on) => {
      holding = on;
      for (const socket of [...pairs].flat()) on || forgotten.has(socket) ? socket.pause() : socket.resume();
    },
    forget: () => {
      for (const pair of pairs) {
        forgotten.add(pair[0]).add(pair[1]);
        for (const socket of pair) socket.pause();
      }
    },
    refuse: (on) => {
      refusing = on;
    },
    get connections() {
      return pairs.size;
    },
    close: async () => {
      const closed = once(server, "close");
      server.close();
      cut();
      await closed;
    },
  };
}
