/** On Postgres BullMQ keeps finished jobs until they are cleaned: by the consumer's clock. On Redis BullMQ does it itself. */
import { randomUUID } from "node:crypto";
import { migrateQueue, openQueue, queueConfig } from "@drover/queue";
import { createLogger } from "@drover/telemetry";
import pg from "pg";
import { expect, onTestFinished, test, vi } from "vitest";
import { createEmptyDatabase } from "../support/database.ts";

test("a consumer on Postgres removes what is finished for long", async () => {
  const { url, drop } = await createEmptyDatabase();
  onTestFinished(drop);
  await migrateQueue(url);
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  onTestFinished(() => client.end());
  const queue = await openQueue(queueConfig.parse({}), {
    logger: createLogger({ name: "test", level: "silent" }),
    postgresUrl: url,
  });
  onTestFinished(() => queue.close());

  vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
  onTestFinished(() => {
    vi.useRealTimers();
  });
  const items = Array.from({ length: 2500 }, (_, index) => ({ runId: randomUUID(), wake: 1, priority: index % 2 }));
  const fails = new Set<string>(items.slice(0, 100).map((item) => item.runId));
  queue.consume({ concurrency: 50, handle: async (runId) => (fails.has(runId) ? "failed" : "done") });
  await queue.wake(items);
  const counts = { timeout: 25_000, interval: 100 };
  await expect.poll(() => queue.depth(), counts).toMatchObject({ waiting: 0, active: 0, completed: 2400, failed: 100 });

  const age = (state: string, minutes: number, howMany: number) =>
    client.query(
      `UPDATE bullmq.job SET finished_at_ms = finished_at_ms - $2::bigint * 60000
        WHERE id IN (SELECT id FROM bullmq.job WHERE state::text = $1 ORDER BY id LIMIT $3)`,
      [state, minutes, howMany],
    );
  await age("completed", 16, 2300);
  await age("failed", 16, 90);
  await age("failed", 24 * 60, 40);
  await vi.advanceTimersByTimeAsync(80_000);
  await expect.poll(() => queue.depth(), counts).toMatchObject({ completed: 100, failed: 60 });
});
