/** What the suites of the wake queue share: listeners that count what they hear, waiting, and one server for a group of tests. */
import { type ConsumeOptions, openQueue, type WakeQueue } from "@drover/queue";
import { createLogger } from "@drover/telemetry";
import { afterAll, afterEach, beforeAll, expect } from "vitest";
import type { Place, Server } from "./queue-backends.ts";

export const logger = createLogger({ name: "test", level: process.env.DROVER_TEST_LOG ?? "silent" });
/** Soon enough for a test, long enough for a busy machine. Without `quick`, a ring whose taker was lost comes back after up to 25 s. */
export const quick = { lockDurationMs: 2000, stalledIntervalMs: 500 };
export const patience = { timeout: 45_000, interval: 50 };

/** Asks until there is an answer: the backend may be away for a while. */
export const answers = (ask: () => Promise<unknown>) =>
  expect
    .poll(
      () =>
        ask().then(
          () => true,
          () => false,
        ),
      patience,
    )
    .toBe(true);

/** Who hears rings and counts them; `answer` says whether it could. */
export function listener(answer: () => boolean = () => true) {
  const counted = { heard: 0, refused: 0 };
  const hear: ConsumeOptions["hear"] = () => {
    const could = answer();
    counted[could ? "heard" : "refused"]++;
    return could;
  };
  /** Resolves when so many rings were heard. */
  const heard = (atLeast: number) => expect.poll(() => counted.heard, patience).toBeGreaterThanOrEqual(atLeast);
  return { counted, hear, heard };
}

/** One server for a group of tests, and queues on it that are closed after each test. */
export function useServer(start: () => Promise<Server>) {
  let server: Server;
  const open: WakeQueue[] = [];
  beforeAll(async () => {
    server = await start();
  });
  afterEach(async () => {
    await Promise.all(open.splice(0).map((queue) => queue.close()));
  });
  afterAll(() => server.stop());

  async function openAt(place: Pick<Place, "config" | "postgresUrl">): Promise<WakeQueue> {
    const queue = await openQueue(place.config, { logger, postgresUrl: place.postgresUrl });
    open.push(queue);
    // On Redis it is open before it is connected.
    await answers(() => queue.check());
    return queue;
  }
  return {
    server: () => server,
    openAt,
    async fresh(): Promise<{ place: Place; queue: WakeQueue }> {
      const place = await server.place();
      return { place, queue: await openAt(place) };
    },
  };
}
