/** What the suites of the wake queue share: handlers that note what they get, waiting, and one server for a group of tests. */
import { randomUUID } from "node:crypto";
import { type ConsumeOptions, openQueue, type WakeQueue, type WakeUp } from "@drover/queue";
import { createLogger } from "@drover/telemetry";
import { afterAll, afterEach, beforeAll, expect } from "vitest";
import type { Place, Server } from "./queue-backends.ts";

export const logger = createLogger({ name: "test", level: process.env.DROVER_TEST_LOG ?? "silent" });
/** Soon enough for a test, long enough for a busy machine. */
export const quick = { lockDurationMs: 2000, stalledIntervalMs: 500 };
export const patience = { timeout: 25_000, interval: 50 };

export const run = (priority = 0, wake = 1): WakeUp => ({ runId: randomUUID(), wake, priority });
export const id = (item: WakeUp) => `run-${item.runId}-${item.wake}`;

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

export function gate() {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { open, opened };
}

/** A handler that notes what it is called with. */
export function recorder(answer: ConsumeOptions["handle"] = async () => "done") {
  const seen: string[] = [];
  const handle: ConsumeOptions["handle"] = (runId) => {
    seen.push(runId);
    return answer(runId);
  };
  /** Resolves when every one of `items` was handled at least once. */
  const all = (items: WakeUp[]) =>
    expect.poll(() => items.filter((item) => !seen.includes(item.runId)).length, patience).toBe(0);
  return { seen, handle, all };
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
    await answers(() => queue.depth());
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
