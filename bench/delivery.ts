/** How soon a healthy endpoint hears of a run's end while others hang: endpoints on ports of their own, each of a tenant of its own. */
import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";

import { createEndpoint } from "@drover/delivery";
import { createKey } from "../apps/api/src/index.ts";
import { percentiles } from "./load.ts";
import { type Stack, startApi, startWorker, until } from "./stack.ts";

const endpoints = 1000;
/** Of these, every tenth: they take a request and never answer. */
const hangs = (index: number): boolean => index % 10 === 0;
const runsPerSecond = 50;

export interface DeliveryLatency {
  /** From the message's insertion, some ms before its commit, to the request's arrival, ms. */
  p50: number;
  p99: number;
  worst: number;
  delivered: number;
  /** Requests under way to endpoints that hang, when the last run was submitted. */
  hanging: number;
}

/** Submits 50 runs a second for so long, over the tenants in turn, and times the webhooks of those that do not hang. */
export async function deliveryLatency(
  stack: Stack,
  env: Record<string, string>,
  seconds: number,
): Promise<DeliveryLatency> {
  const latencies: number[] = [];
  let hanging = 0;
  const servers = await Promise.all(
    Array.from({ length: endpoints }, (_, index) =>
      listen(
        createServer(async (request, response) => {
          const arrivedAt = Date.now();
          if (hangs(index)) {
            hanging++;
            response.on("close", () => hanging--);
            return;
          }
          const { timestamp } = JSON.parse(await text(request)) as { timestamp: string };
          latencies.push(arrivedAt - Date.parse(timestamp));
          response.end();
        }),
      ),
    ),
  );
  const keys: string[] = [];
  for (const [index, server] of servers.entries()) {
    const tenant = `endpoint-${index}`;
    keys.push((await createKey(stack.pool, { tenant, role: "submitter" })).key);
    await createEndpoint(stack.pool, tenant, { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/` });
  }
  const worker = await startWorker(stack, "redis", env);
  const { url, process: api } = await startApi(stack, "redis");
  const submit = async (index: number) => {
    const answer = await fetch(`${url}/query`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${keys[index % endpoints]}` },
      body: JSON.stringify({ query: "x".repeat(280) }),
    });
    if (answer.status !== 202) throw new Error(`a submission was answered ${answer.status}: ${await answer.text()}`);
  };

  const total = Math.round(seconds * runsPerSecond);
  const submitted: Promise<void>[] = [];
  const startedAt = performance.now();
  for (let index = 0; index < total; index++) {
    // An open loop: the next one is due at its time, however long the last one takes.
    const waitMs = startedAt + (index * 1000) / runsPerSecond - performance.now();
    if (waitMs > 0) await new Promise((resolve) => setTimeout(resolve, waitMs));
    submitted.push(submit(index));
  }
  await Promise.all(submitted);
  const held = hanging;
  const healthy = Array.from({ length: total }, (_, index) => index).filter((index) => !hangs(index)).length;
  await until(async () => latencies.length >= healthy);
  await Promise.all([api.stop(), worker.stop("SIGKILL")]);
  for (const server of servers) server.close().closeAllConnections();
  await stack.pool.query("DELETE FROM endpoints");
  return { ...percentiles(latencies), worst: Math.max(...latencies), delivered: latencies.length, hanging: held };
}

async function listen(server: Server): Promise<Server> {
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return server;
}
