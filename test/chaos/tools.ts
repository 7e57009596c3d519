/** Tools that call an HTTP endpoint of the test, one for each effect, and that endpoint: it counts and can hold calls open. */
import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { defineTool } from "@drover/harness";
import { z } from "zod";

export const endpointTools = (url: string) =>
  (["pure", "idempotent", "unsafe"] as const).map((effect) =>
    defineTool({
      name: `${effect}_call`,
      description: `Calls the endpoint; its effect is ${effect}.`,
      input: z.object({ note: z.string() }),
      permission: effect === "pure" ? "read" : "write",
      effect,
      async execute({ note }, { idempotencyKey, signal }) {
        const response = await fetch(`${url}/${effect}`, {
          method: "POST",
          body: JSON.stringify({ note, idempotencyKey }),
          signal,
        });
        return { answer: await response.text() };
      },
    }),
  );

interface ToolCall {
  effect: string;
  note: string;
  idempotencyKey: string;
}

export async function startToolEndpoint() {
  const calls: ToolCall[] = [];
  const held: ServerResponse[] = [];
  let holding = false;
  let waiting: (() => void)[] = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const piece of request) body += piece;
    calls.push({ effect: request.url!.slice(1), ...JSON.parse(body) });
    for (const resolve of waiting) resolve();
    waiting = [];
    if (holding) held.push(response);
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
      for (const response of held.splice(0)) response.end("done");
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
