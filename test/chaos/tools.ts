/**
 * Tools that call an HTTP endpoint of the test, one for each effect and for each answer of `verify`, and that endpoint: it counts and can
 * hold calls open.
 */
import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { type AnyTool, defineTool, type Verified } from "@drover/harness";
import { z } from "zod";

const verifies: Record<string, () => Verified | Promise<Verified>> = {
  done: () => "done",
  output: () => ({ done: true, output: { answer: "found out" } }),
  not_done: () => "not_done",
  unknown: () => "unknown",
  throwing: () => {
    throw new Error("nobody answers");
  },
  hanging: () => new Promise(() => {}),
};

export interface EndpointOptions {
  /** Of every call (default: the harness's); an unsafe call is in doubt for so long after its owner was seen to be gone. */
  timeoutMs?: number;
  /** The tools say so, and never get to call: the effect does not take place. */
  holdBefore?: (tool: string) => void;
}

export function endpointTools(url: string, { timeoutMs, holdBefore }: EndpointOptions = {}): AnyTool[] {
  const post = async (path: string, about: Record<string, unknown>, signal: AbortSignal) => {
    const response = await fetch(`${url}/${path}`, { method: "POST", body: JSON.stringify(about), signal });
    return await response.text();
  };
  const base = (name: string): AnyTool =>
    defineTool({
      name,
      description: `Calls the endpoint as ${name}.`,
      input: z.object({ note: z.string() }),
      permission: "write",
      effect: "unsafe",
      ...(timeoutMs !== undefined && { timeoutMs }),
      async execute({ note }, { idempotencyKey, signal }) {
        if (holdBefore) {
          holdBefore(name);
          await new Promise(() => {});
        }
        return { answer: await post(name.replace(/_call$/, ""), { note, idempotencyKey }, signal) };
      },
    }) as AnyTool;
  return [
    { ...base("pure_call"), permission: "read", effect: "pure" },
    { ...base("idempotent_call"), effect: "idempotent" },
    base("unsafe_call"),
    { ...base("send_call"), permission: "irreversible" },
    ...Object.entries(verifies).map(
      ([answer, verify]): AnyTool => ({
        ...base(`unsafe_${answer}`),
        verify: async ({ input, idempotencyKey }, { signal }) => {
          await post(`verify_${answer}`, { ...input, idempotencyKey }, signal);
          return await verify();
        },
      }),
    ),
  ];
}

interface ToolCall {
  effect: string;
  note: string;
  idempotencyKey: string;
  /** ms since 1970. */
  at: number;
}

export async function startToolEndpoint() {
  const calls: ToolCall[] = [];
  const held: { effect: string; response: ServerResponse }[] = [];
  let holding = false;
  let waiting: (() => void)[] = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const piece of request) body += piece;
    calls.push({ effect: request.url!.slice(1), ...JSON.parse(body), at: Date.now() });
    for (const resolve of waiting) resolve();
    waiting = [];
    if (holding) held.push({ effect: request.url!.slice(1), response });
    else response.end("done");
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    calls,
    /** From now on calls are counted but not answered, until `release`. */
    hold: () => {
      holding = true;
    },
    release: () => {
      holding = false;
      for (const { response } of held.splice(0)) response.end("done");
    },
    /** Answers those that are held and came for this effect; the others, and whoever comes later, wait on. */
    releaseOnly: (effect: string) => {
      for (const call of held.splice(0)) {
        if (call.effect === effect) call.response.end("done");
        else held.push(call);
      }
    },
    /** Resolves when this many calls have arrived. */
    called: async (count: number) => {
      while (calls.length < count) await new Promise<void>((resolve) => waiting.push(resolve));
    },
    close: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}
