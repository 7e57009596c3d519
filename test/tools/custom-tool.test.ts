import { once } from "node:events";
import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import { createEgress } from "@drover/egress";
import { loadConfigFile } from "@drover/harness/worker";
import { builtinTools } from "@drover/tools";
import { expect, it, onTestFinished, vi } from "vitest";
import { callTool } from "./call.ts";

it("examples/custom-tool.ts is a valid configuration whose tool sends its idempotency key", async () => {
  const egress = createEgress();
  onTestFinished(() => egress.close());
  const path = new URL("../../examples/custom-tool.ts", import.meta.url).pathname;
  const { tools = [] } = await loadConfigFile(path, builtinTools({ egress }));
  const tool = tools.find(({ name }) => name === "create_ticket")!;
  const ticket = { title: "Printer", body: "It burns." };
  await expect(callTool(tool, ticket)).rejects.toThrow("TICKETS_URL");

  const asked: { request: IncomingMessage; body: string }[] = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    asked.push({ request, body });
    if (asked.length === 1) response.writeHead(503).end();
    else response.end(JSON.stringify({ id: "T-1" }));
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => void server.close());
  vi.stubEnv("TICKETS_URL", `http://127.0.0.1:${(server.address() as AddressInfo).port}/tickets`);
  onTestFinished(() => void vi.unstubAllEnvs());

  await expect(callTool(tool, ticket)).rejects.toThrow("The ticket service answered 503.");
  expect(await callTool(tool, ticket)).toEqual({ ticket_id: "T-1" });
  for (const { request, body } of asked) {
    expect(request.headers["idempotency-key"]).toBe("run_test:1:0");
    expect(JSON.parse(body)).toEqual(ticket);
  }
});
