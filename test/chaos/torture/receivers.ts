/**
 * Receivers of webhooks: one that always answers, a slow one, one that fails for a while again and again, and one for callbacks. Each keeps its own
 * books of what it accepted, and checks every signature when it comes.
 */
import { setTimeout as delay } from "node:timers/promises";
import { type ReceivedWebhook, type Receiver, type Reply, startReceiver, verified } from "../../support/receiver.ts";
import { shareOf } from "./scenario.ts";

export const receiverKinds = ["steady", "slow", "failing", "callback"] as const;
export type ReceiverKind = (typeof receiverKinds)[number];

interface Arrival {
  /** `webhook-id` */
  id: string;
  type: string;
  /** `run_…` or `bat_…` */
  subject: string;
  accepted: boolean;
}

export interface Receivers {
  url(kind: ReceiverKind): string;
  arrivals: Record<ReceiverKind, Arrival[]>;
  /** Requests that no receiver should get: a wrong signature, or no subject. */
  wrong: string[];
  /** Set each endpoint's secret before anything is sent to it. */
  secrets: Partial<Record<ReceiverKind, string>>;
  /** From now on everything is accepted, at once. */
  behave(): void;
  close(): Promise<void>;
}

/** The failing one's moods follow each other, ms. */
const moodMs = 4000;
const moods: (Reply | "hang")[] = [{ status: 500 }, { status: 200 }, "cut", { status: 503 }, { status: 200 }, "hang"];

export async function openReceivers(): Promise<Receivers> {
  const arrivals: Receivers["arrivals"] = { steady: [], slow: [], failing: [], callback: [] };
  const wrong: string[] = [];
  const secrets: Receivers["secrets"] = {};
  const startedAt = performance.now();
  const well = new AbortController();
  const untilWell = (ms: number) => delay(ms, undefined, { signal: well.signal }).catch(() => {});

  async function answer(kind: ReceiverKind, id: string): Promise<Reply> {
    if (well.signal.aborted) return { status: 200 };
    if (kind === "slow") await untilWell(50 + 350 * shareOf("slow", id));
    if (kind !== "failing") return { status: 204 };
    const mood = moods[Math.floor((performance.now() - startedAt) / moodMs) % moods.length]!;
    if (mood !== "hang") return mood;
    await untilWell(60_000);
    return "cut";
  }

  const receive =
    (kind: ReceiverKind) =>
    async (request: ReceivedWebhook): Promise<Reply> => {
      const id = request.headers["webhook-id"] ?? "";
      let event: ReturnType<typeof verified>;
      try {
        event = verified(request, secrets[kind]!);
      } catch (error) {
        wrong.push(`${kind}: ${id}: ${(error as Error).message}`);
        return { status: 400 };
      }
      const subject = event.data.task_id ?? event.data.batch_id;
      if (typeof subject !== "string") wrong.push(`${kind}: ${id}: ${event.type} of neither run nor batch`);
      const reply = await answer(kind, id);
      const accepted = typeof reply === "object" && reply.status < 300;
      arrivals[kind].push({ id, type: event.type, subject: String(subject), accepted });
      return reply;
    };

  const servers = new Map<ReceiverKind, Receiver>();
  for (const kind of receiverKinds) servers.set(kind, await startReceiver(receive(kind)));
  return {
    url: (kind) => servers.get(kind)!.url,
    arrivals,
    wrong,
    secrets,
    behave: () => well.abort(),
    async close() {
      well.abort();
      await Promise.all([...servers.values()].map((server) => server.close()));
    },
  };
}
