/** `drover webhooks`, `drover deliveries` and `drover redeliver`: who hears of what, what was sent, and sending it again. */
import type { DeliveryAnswer, EndpointAnswer } from "@drover/protocol";
import { exitCodes } from "../exit.ts";
import { oneLine, paint, table } from "../text.ts";
import type { DroverClient } from "./http.ts";
import { print, printJson } from "./outcome.ts";
import { type PageOptions, pageOf } from "./page.ts";

interface JsonOption {
  json?: boolean;
}

export interface EndpointOptions extends JsonOption {
  /** Where its messages go from now on; `--url` is the service's. */
  to?: string;
  event?: string[];
  description?: string;
  enabled?: boolean;
  signature?: string;
  thinOver?: number | "none";
}

export async function list(client: DroverClient, options: PageOptions): Promise<number> {
  const page = await client.endpoints(pageOf(options));
  if (options.json) printJson(page);
  else if (page.data.length === 0) print("no webhook endpoints");
  else {
    const rows = page.data.map((endpoint) => [
      endpoint.id,
      endpoint.enabled ? "enabled" : "disabled",
      endpoint.events === null ? "all" : endpoint.events.join(","),
      oneLine(endpoint.url, 200),
    ]);
    print(...table([["ENDPOINT", "STATUS", "EVENTS", "URL"], ...rows]));
    if (page.next_cursor !== null) print(paint("dim", `more: --cursor ${page.next_cursor}`));
  }
  return exitCodes.done;
}

export async function show(client: DroverClient, id: string, options: JsonOption): Promise<number> {
  return said(await client.endpoint(id), options);
}

export async function create(client: DroverClient, url: string, options: EndpointOptions): Promise<number> {
  return said(await client.createEndpoint({ ...changesOf(options), url }), options);
}

export async function update(client: DroverClient, id: string, options: EndpointOptions): Promise<number> {
  return said(await client.updateEndpoint(id, changesOf(options)), options);
}

export async function remove(client: DroverClient, id: string, options: JsonOption): Promise<number> {
  await client.deleteEndpoint(id);
  if (options.json) printJson({ id, deleted: true });
  else print(`${id}  deleted`);
  return exitCodes.done;
}

export async function rotate(
  client: DroverClient,
  id: string,
  options: JsonOption & { overlap?: number },
): Promise<number> {
  const answer = await client.rotateSecret(id, options.overlap);
  if (options.json) printJson(answer);
  else print(answer.secret);
  return exitCodes.done;
}

export async function test(client: DroverClient, id: string, options: JsonOption): Promise<number> {
  return owed(await client.testEndpoint(id), options);
}

export async function redeliver(client: DroverClient, id: string, options: JsonOption): Promise<number> {
  return owed(await client.redeliver(id), options);
}

export async function deliveries(client: DroverClient, runId: string, options: PageOptions): Promise<number> {
  const page = await client.deliveries(runId, pageOf(options));
  if (options.json) printJson(page);
  else if (page.data.length === 0) print("nothing is or was owed about it");
  else {
    const rows = page.data.map((delivery) => [
      delivery.id,
      delivery.status,
      delivery.type,
      String(delivery.attempts.length),
      delivery.next_attempt_at ?? "",
      lastOf(delivery),
      oneLine(delivery.url, 200),
    ]);
    print(...table([["DELIVERY", "STATUS", "EVENT", "TRIES", "NEXT", "LAST", "URL"], ...rows]));
    if (page.next_cursor !== null) print(paint("dim", `more: --cursor ${page.next_cursor}`));
  }
  return exitCodes.done;
}

const lastOf = ({ attempts }: DeliveryAnswer): string => {
  const last = attempts.at(-1);
  return last ? oneLine(last.error ?? `HTTP ${last.status_code}`, 60) : "";
};

/** What `POST` and `PATCH /webhooks` take. */
const changesOf = ({ to, event, description, enabled, signature, thinOver }: EndpointOptions) => ({
  url: to,
  events: event?.includes("all") ? null : event,
  description,
  enabled,
  signature,
  thin_over_bytes: thinOver === "none" ? null : thinOver,
});

function said(endpoint: EndpointAnswer & { secret?: string }, { json }: JsonOption): number {
  if (json) printJson(endpoint);
  else {
    const facts: [string, string | null | undefined][] = [
      ["url", oneLine(endpoint.url, 300)],
      ["events", endpoint.events === null ? "all" : endpoint.events.join(", ")],
      ["description", endpoint.description && oneLine(endpoint.description, 500)],
      ["why", endpoint.disabled_reason && oneLine(endpoint.disabled_reason, 300)],
      ["signature", endpoint.signature],
      ["thin over", endpoint.thin_over_bytes === null ? "never" : `${endpoint.thin_over_bytes} bytes`],
      ["created", endpoint.created_at],
      ["verify with", endpoint.secret],
    ];
    const lines = facts.flatMap(([name, value]) => (value ? [`  ${name.padEnd(12)}${value}`] : []));
    print(`${endpoint.id}  ${paint("bold", endpoint.enabled ? "enabled" : "disabled")}`, ...lines);
  }
  return exitCodes.done;
}

function owed(delivery: DeliveryAnswer, { json }: JsonOption): number {
  if (json) printJson(delivery);
  else {
    const before = delivery.delivered_at ? ["", `it had been delivered at ${delivery.delivered_at} already`] : [];
    print(`${delivery.id}  ${delivery.status}  ${delivery.type} to ${oneLine(delivery.url, 200)}`, ...before);
  }
  return exitCodes.done;
}
