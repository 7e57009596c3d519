/**
 * A transaction pooler in front of Postgres, as PgBouncer is one with `pool_mode = transaction`: a client has a server connection from the first
 * message of a transaction to its end, and the next transaction gets whichever is free. It speaks just enough of the wire protocol for that.
 * Source: PostgreSQL's manual, chapter "Frontend/Backend Protocol".
 */
import { once } from "node:events";
import { createServer, type Socket } from "node:net";
import pg from "pg";

export async function startTransactionPooler(url: string, size = 3): Promise<{ url: string; close(): Promise<void> }> {
  const servers = await Promise.all(Array.from({ length: size }, () => openServer(url)));
  const free = [...servers];
  const waiting: ((server: Socket) => void)[] = [];
  const clients = new Set<Socket>();
  const release = (server: Socket) => {
    const next = waiting.shift();
    if (next) next(server);
    else free.push(server);
  };
  const acquire = (): Promise<Socket> => {
    const server = free.shift();
    return server ? Promise.resolve(server) : new Promise((resolve) => waiting.push(resolve));
  };

  async function serve(client: Socket): Promise<void> {
    client.write(welcome);
    let server: Socket | undefined;
    /** Messages that the server answers with `ReadyForQuery`, and has not yet. */
    let open = 0;
    const onAnswer = (messages: Buffer) => {
      client.write(messages);
      for (const message of complete(server!, messages)) {
        if (message[0] !== ready) continue;
        open--;
        if (open === 0 && message[5] === idle) leave();
      }
    };
    const leave = () => {
      server!.off("data", onAnswer);
      release(server!);
      server = undefined;
    };
    for await (const messages of client as AsyncIterable<Buffer>) {
      for (const message of complete(client, messages)) {
        if (message[0] === terminate) return;
        if (!server) {
          server = await acquire();
          server.on("data", onAnswer);
        }
        if (message[0] === query || message[0] === sync) open++;
        server.write(message);
      }
    }
  }

  const listener = createServer(async (client) => {
    clients.add(client);
    client.on("error", () => {});
    // The startup message; what is in it was said to the real server already.
    await once(client, "data");
    await serve(client).catch(() => {});
    client.destroy();
    clients.delete(client);
  });
  listener.listen(0, "127.0.0.1");
  await once(listener, "listening");
  const own = new URL(url);
  own.host = `127.0.0.1:${(listener.address() as { port: number }).port}`;
  return {
    url: own.href,
    close: async () => {
      listener.close();
      for (const socket of [...clients, ...servers]) socket.destroy();
      await once(listener, "close");
    },
  };
}

const [query, sync, terminate, ready, idle] = [..."QSXZI"].map((letter) => letter.charCodeAt(0));
/** AuthenticationOk and ReadyForQuery. */
const welcome = Buffer.from([0x52, 0, 0, 0, 8, 0, 0, 0, 0, 0x5a, 0, 0, 0, 5, 0x49]);

const rest = new WeakMap<Socket, Buffer>();
/** The whole messages among what has come from a socket: a letter, a length, and so many bytes less four. */
function* complete(socket: Socket, came: Buffer): Generator<Buffer> {
  let bytes = Buffer.concat([rest.get(socket) ?? Buffer.alloc(0), came]);
  while (bytes.length >= 5 && bytes.length > bytes.readUInt32BE(1)) {
    const length = bytes.readUInt32BE(1) + 1;
    const message = bytes.subarray(0, length);
    bytes = bytes.subarray(length);
    rest.set(socket, bytes);
    yield message;
  }
  rest.set(socket, bytes);
}

/** A session that `pg` has signed in, from then on as bare bytes. */
async function openServer(url: string): Promise<Socket> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  const { stream } = (client as unknown as { connection: { stream: Socket } }).connection;
  stream.removeAllListeners("data").removeAllListeners("close").removeAllListeners("end");
  stream.on("error", () => {});
  return stream;
}
