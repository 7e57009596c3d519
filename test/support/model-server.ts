/**
 * A scripted model provider: real HTTP on loopback, speaking the streaming wires of Anthropic, OpenAI (Responses), Google
 * and every OpenAI-compatible server. Tests script what it answers, see every request parsed, and hold streams with gates
 * instead of sleeps. Child processes reach it through `env()`.
 *
 * Why not @copilotkit/aimock: it has no gate, no stalled stream, no clean end without the closing event, and no cached
 * tokens on two of the four wires; everything here is a few lines per wire.
 */
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { anthropic } from "./model-server/anthropic.ts";
import { google } from "./model-server/google.ts";
import { chat, responses } from "./model-server/openai.ts";
import {
  Gate,
  type ModelServerCall,
  type ScriptAnswer,
  type ScriptEntry,
  type ScriptedReply,
  type ScriptFunction,
  type WireName,
} from "./model-server/script.ts";
import { type Json, resolveReply, type Wire } from "./model-server/wire.ts";

export * from "./model-server/script.ts";

const prefixes = { anthropic: "/anthropic/v1", openai: "/openai/v1", google: "/google/v1beta" } as const;
const compatiblePrefix = "/compatible/v1";

const routes: { wire: WireName; speaks: Wire; path: RegExp }[] = [
  { wire: "anthropic", speaks: anthropic, path: /^\/anthropic\/v1\/messages$/ },
  { wire: "openai", speaks: responses, path: /^\/openai\/v1\/responses$/ },
  { wire: "google", speaks: google, path: /^\/google\/v1beta\/models\/[^/]+:streamGenerateContent$/ },
  { wire: "openai-compatible", speaks: chat, path: /^\/compatible\/v1\/chat\/completions$/ },
];

export class ModelServer {
  /** Requests in the order of their arrival, unless the server was started with `record: false`. */
  readonly calls: ModelServerCall[] = [];
  /** Requests so far, recorded or not. */
  count = 0;
  /** TCP connections so far, also of requests that are no model call. */
  connections = 0;
  /** Answers being streamed now. */
  open = 0;
  #queue: ScriptEntry[] = [];
  #fallback: ScriptFunction | undefined;
  #watchers: { count: number; resolve: () => void }[] = [];
  #sockets = new Set<Socket>();
  #record: boolean;
  #server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
    this.#handle(request, response).catch((error: unknown) => response.destroy(error as Error));
  });

  constructor(options: { record: boolean }) {
    this.#record = options.record;
    this.#server.on("connection", (socket) => {
      this.connections++;
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  /** @internal use `startModelServer` */
  async listen(port: number): Promise<void> {
    this.#server.listen(port, "127.0.0.1", 4096);
    await once(this.#server, "listening");
  }

  /**
   * An array is used up entry by entry, in the order of the requests' arrival. A function answers every request the array
   * does not (it sees the conversation, so many runs, also resumed ones, can be served at once). A request that neither
   * answers gets a 400, which no client retries.
   */
  script(entries: ScriptEntry[] | ScriptFunction): void {
    if (typeof entries === "function") this.#fallback = entries;
    else this.#queue.push(...entries);
  }

  /** Forgets script and recorded calls; `count` starts again at 0. */
  reset(): void {
    this.#queue = [];
    this.#fallback = undefined;
    this.calls.length = 0;
    this.count = 0;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Base URL for a provider of this wire, as its SDK wants it. */
  url(wire: WireName): string {
    const prefix = wire === "openai-compatible" ? compatiblePrefix : prefixes[wire];
    return `http://127.0.0.1:${this.port}${prefix}`;
  }

  /** Variables that point all four providers of a Drover process here, with keys of the right shape. */
  env(): Record<string, string> {
    return {
      ANTHROPIC_API_KEY: "sk-ant-scripted-0000000000000000",
      ANTHROPIC_BASE_URL: this.url("anthropic"),
      OPENAI_API_KEY: "sk-scripted-0000000000000000",
      OPENAI_BASE_URL: this.url("openai"),
      GOOGLE_GENERATIVE_AI_API_KEY: "AIza-scripted-0000000000000000",
      GOOGLE_GENERATIVE_AI_BASE_URL: this.url("google"),
      OLLAMA_BASE_URL: this.url("openai-compatible"),
    };
  }

  /** Resolves when `count` requests have arrived since the start or the last reset. */
  async called(count = 1): Promise<void> {
    if (this.count >= count) return;
    await new Promise<void>((resolve) => this.#watchers.push({ count, resolve }));
  }

  /** Cuts every connection and stops listening. */
  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    if (!this.#server.listening) return;
    this.#server.close();
    await once(this.#server, "close");
  }

  async #handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece as Buffer);
    const rawBody = Buffer.concat(pieces).toString();
    const path = (request.url ?? "").split("?")[0] ?? "";
    const route = routes.find((candidate) => candidate.path.test(path));
    if (!route || request.method !== "POST") {
      response.writeHead(404, { "content-type": "application/json" });
      response.end(
        JSON.stringify({ error: { message: `no such route: ${request.method} ${path}`, type: "not_found" } }),
      );
      return;
    }
    const body = JSON.parse(rawBody) as Json;
    const parsed = route.speaks.parse(body, path);
    const lastText = parsed.messages.findLastIndex((entry) => entry.role === "user" && entry.text !== "");
    const after = parsed.messages.slice(lastText + 1);
    const index = this.count++;
    const call: ModelServerCall = {
      index,
      wire: route.wire,
      ...parsed,
      query: parsed.messages[lastText]?.text ?? "",
      results: after.flatMap((entry) => entry.toolResults),
      turn: after.filter((entry) => entry.role === "assistant").length,
      headers: request.headers,
      body,
      rawBody,
      closed: new Promise((resolve) => response.once("close", () => resolve(!response.writableFinished))),
    };
    if (this.#record) this.calls.push(call);
    this.#watchers = this.#watchers.filter((watcher) => {
      if (this.count < watcher.count) return true;
      watcher.resolve();
      return false;
    });
    const entry = this.#queue.shift() ?? this.#fallback;
    const answer = typeof entry === "function" ? await entry(call) : entry;
    await this.#answer(answer, call, route.speaks, response);
  }

  async #answer(answer: ScriptAnswer | undefined, call: ModelServerCall, wire: Wire, response: ServerResponse) {
    if (answer === undefined) {
      response.writeHead(400, { "content-type": "application/json" });
      response.end(wire.errorBody(400, "the model server's script has no entry for this request"));
    } else if (typeof answer === "object" && "connection" in answer) {
      if (answer.connection === "reset") response.socket?.resetAndDestroy();
      else await call.closed;
    } else if (typeof answer === "object" && "status" in answer) {
      response.writeHead(answer.status, { "content-type": "application/json", ...answer.headers });
      response.end(answer.body ?? wire.errorBody(answer.status, answer.message ?? `scripted ${answer.status}`));
    } else {
      this.open++;
      try {
        await this.#stream(typeof answer === "string" ? { text: answer } : answer, call, wire, response);
      } finally {
        this.open--;
      }
    }
  }

  async #stream(reply: ScriptedReply, call: ModelServerCall, wire: Wire, response: ServerResponse): Promise<void> {
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
    response.flushHeaders();
    let sent = 0;
    /** Deals with what the script does after `sent` text chunks; true when the answer is over. */
    const interrupted = async (): Promise<boolean> => {
      if (reply.cutAfter === sent) {
        await flushed(response);
        response.destroy();
        return true;
      }
      if (reply.endAfter === sent) response.end();
      else if (reply.errorAfter?.chunks === sent) {
        response.write(wire.errorFrame(reply.errorAfter));
        if (reply.errorAfter.stay) await call.closed;
        else response.end();
      } else if (reply.stallAfter === sent) await call.closed;
      else return false;
      return true;
    };
    let pending = "";
    for (const frame of wire.frames(resolveReply(reply, call.index, call.model))) {
      if (frame.text) {
        // What came before goes out first, so that a client at a gate or at a cut has seen it.
        if (pending) response.write(pending);
        pending = "";
        if (reply.gate) await reply.gate.wait(call.closed);
        if (response.destroyed || (await interrupted())) return;
        sent++;
        response.write(frame.data);
      } else if (sent > 0 && (await interrupted())) {
        return;
      } else {
        pending += frame.data;
      }
    }
    if (response.destroyed || (await interrupted())) return;
    response.end(pending);
  }
}

/** Resolves when everything written so far is with the kernel, so that a cut does not eat it. */
async function flushed(response: ServerResponse): Promise<void> {
  await new Promise<void>((resolve) => response.write(":\n\n", () => resolve()));
}

/** Starts a server on a free port of 127.0.0.1. `record: false` keeps no calls, for load. */
export async function startModelServer(options: { port?: number; record?: boolean } = {}): Promise<ModelServer> {
  const server = new ModelServer({ record: options.record ?? true });
  await server.listen(options.port ?? 0);
  return server;
}

export function createGate(): Gate {
  return new Gate();
}
