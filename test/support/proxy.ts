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
  /**
   * The next time a client sends these texts, in this order on one connection: the target gets it all and acts, its answer to the last is
   * dropped, and that connection is reset. Resolves then. Postgres begins to answer a statement after its commit, unless its rows fill 8 kB.
   */
  loseAnswerTo(...texts: string[]): Promise<void>;
  /** Connections open at this moment. */
  readonly connections: number;
  close(): Promise<void>;
}

export async function startProxy(targetPort: number, targetHost = "127.0.0.1"): Promise<FaultProxy> {
  const pairs = new Set<[client: Socket, target: Socket]>();
  const forgotten = new WeakSet<Socket>();
  const traps = new Set<{ texts: string[]; sprung: () => void }>();
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
    const seen = new Map<object, number>();
    let caught: (() => void) | undefined;
    const lookOut = (chunk: Buffer) => {
      for (const trap of traps) {
        let count = seen.get(trap) ?? 0;
        for (let at = 0; count < trap.texts.length && at >= 0; ) {
          at = chunk.indexOf(trap.texts[count]!, at);
          if (at >= 0) at += trap.texts[count++]!.length;
        }
        seen.set(trap, count);
        if (count < trap.texts.length || caught) continue;
        traps.delete(trap);
        caught = trap.sprung;
      }
    };
    for (const [from, to] of [pair, [target, client]] as const) {
      from.setNoDelay(true);
      from.on("data", (chunk) => {
        if (from === client) lookOut(chunk);
        else if (caught) {
          client.resetAndDestroy();
          target.destroy();
          return caught();
        }
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
    loseAnswerTo: (...texts) => new Promise((resolve) => traps.add({ texts, sprung: resolve })),
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
