/**
 * Redis for tests: the shared server of the run (`redisUrl`), and servers of their own for tests that stop, restart or kill
 * one (`startRedis`). Always a real `redis-server`; where there is none, an error says how to get it.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { inject } from "vitest";
import { freePort } from "./ports.ts";
import { findProgram } from "./program.ts";

/** The server all tests of the run share: use your own prefix, and never FLUSHALL it. */
export function redisUrl(): string {
  return inject("redisUrl");
}

export interface TestRedis {
  url: string;
  port: number;
  /** Ends it in good order (its data is kept in `dir` only if `args` ask for persistence) and removes a folder made here. */
  stop(): Promise<void>;
  /** Sends the signal; waits for the end when it is one that ends the server. */
  kill(signal: NodeJS.Signals): Promise<void>;
  /** Ends it if it runs, and starts it again on the same port and folder. */
  restart(): Promise<void>;
}

/**
 * An own server on 127.0.0.1. `dir` is its working folder (default: a new one), `args` are further command line settings
 * such as `["--appendonly", "yes"]`; without them nothing is written to disk.
 */
export async function startRedis(options: { port?: number; dir?: string; args?: string[] } = {}): Promise<TestRedis> {
  const program = await findRedisServer();
  const port = options.port ?? (await freePort());
  const dir = options.dir ?? (await mkdtemp(join(tmpdir(), "drover-redis-")));
  await mkdir(dir, { recursive: true });

  let child: ChildProcess;
  const start = async () => {
    const args = ["--port", String(port), "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--daemonize", "no"];
    child = spawn(program, [...args, "--maxmemory-policy", "noeviction", ...(options.args ?? [])], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    const lines: string[] = [];
    await new Promise<void>((resolve, reject) => {
      child.once("error", reject);
      child.once("exit", () => reject(new Error(`redis-server did not start:\n${lines.slice(-10).join("\n")}`)));
      createInterface({ input: child.stdout! }).on("line", (line) => {
        if (lines.length < 100) lines.push(line);
        if (line.includes("Ready to accept connections")) resolve();
      });
    });
    endWithUs.add(child);
    child.once("exit", () => endWithUs.delete(child));
  };
  const running = () => child.exitCode === null && child.signalCode === null;
  const kill = async (signal: NodeJS.Signals) => {
    if (!running()) return;
    // A stopped process takes no other signal than KILL before it goes on.
    if (signal !== "SIGSTOP" && signal !== "SIGCONT" && signal !== "SIGKILL") child.kill("SIGCONT");
    const ended = once(child, "exit");
    child.kill(signal);
    if (signal !== "SIGSTOP" && signal !== "SIGCONT") await ended;
  };
  await start();
  return {
    url: `redis://127.0.0.1:${port}`,
    port,
    kill,
    stop: async () => {
      await kill("SIGTERM");
      if (!options.dir) await rm(dir, { recursive: true, force: true });
    },
    restart: async () => {
      await kill("SIGTERM");
      await start();
    },
  };
}

/** Servers a test forgot, or could not stop because it crashed. */
const endWithUs = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of endWithUs) child.kill("SIGKILL");
});

const findRedisServer = () =>
  findProgram(
    "redis-server",
    'The tests need a real Redis: set REDIS_URL, or install one ("apt-get install redis-server", "brew install redis").',
  );

const encode = (words: (string | number)[]) =>
  `*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(String(word))}\r\n${word}\r\n`).join("")}`;

/** Sends commands, yields their replies, and whatever comes unasked after them. */
async function* talk(url: string, commands: (string | number)[][], onSocket?: (socket: Socket) => void) {
  const { hostname, port, username, password } = new URL(url);
  const socket = connect({ port: Number(port || 6379), host: hostname });
  onSocket?.(socket);
  socket.setEncoding("latin1");
  try {
    if (password) {
      commands = [["AUTH", ...(username ? [username] : []), decodeURIComponent(password)], ...commands];
    }
    socket.write(commands.map(encode).join(""), "utf8");
    let received = "";
    let skip = password ? 1 : 0;
    for await (const chunk of socket) {
      received += chunk;
      for (let reply = parseReply(received, 0); reply; reply = parseReply(received, 0)) {
        received = received.slice(reply.next);
        if (reply.value instanceof Error) throw reply.value;
        if (skip-- <= 0) yield reply.value;
      }
    }
  } finally {
    socket.destroy();
  }
}

/** Send one command and get its reply: strings, numbers, null, arrays of these. Rejects on an error reply. */
export async function redisCommand(url: string, ...args: (string | number)[]): Promise<unknown> {
  for await (const reply of talk(url, [args])) return reply;
  throw new Error("Redis closed the connection");
}

/** Hear everything published on the channels of a pattern, until closed. */
export async function redisListen(
  url: string,
  pattern: string,
  onMessage: (channel: string, text: string) => void,
): Promise<{ close(): void }> {
  let socket: Socket | undefined;
  const replies = talk(url, [["PSUBSCRIBE", pattern]], (it) => {
    socket = it;
  });
  await replies.next();
  void (async () => {
    for await (const reply of replies) {
      const [kind, , channel, text] = reply as string[];
      if (kind === "pmessage") onMessage(channel!, text!);
    }
  })().catch(() => {});
  return { close: () => socket?.destroy() };
}

/** The RESP2 reply that begins at `at`, or undefined when it is not all there. */
function parseReply(text: string, at: number): { value: unknown; next: number } | undefined {
  const end = text.indexOf("\r\n", at);
  if (end < 0) return undefined;
  const head = text.slice(at + 1, end);
  let next = end + 2;
  switch (text[at]) {
    case "+":
      return { value: head, next };
    case "-":
      return { value: new Error(head), next };
    case ":":
      return { value: Number(head), next };
    case "$": {
      const length = Number(head);
      if (length < 0) return { value: null, next };
      if (text.length < next + length + 2) return undefined;
      return { value: Buffer.from(text.slice(next, next + length), "latin1").toString(), next: next + length + 2 };
    }
    case "*": {
      const value: unknown[] = [];
      for (let left = Number(head); left > 0; left--) {
        const item = parseReply(text, next);
        if (!item) return undefined;
        value.push(item.value);
        next = item.next;
      }
      return { value, next };
    }
    default:
      throw new Error(`not a Redis reply: ${text.slice(at, at + 40)}`);
  }
}
