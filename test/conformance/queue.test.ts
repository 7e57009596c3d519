/** One suite for every backend of the wake queue. What holds here is all that the rest of Drover may expect of it. */
import { type BoardSource, runsPerRing } from "@drover/queue";
import { describe, expect, test } from "vitest";
import { backends } from "./queue-backends.ts";
import { listener, patience, useServer } from "./queue-suite.ts";

describe.each(backends)("wake queue on $name", ({ start }) => {
  const { openAt, fresh } = useServer(start);

  test("a ring is heard once, carries nothing, and leaves nothing behind", async () => {
    const { place, queue } = await fresh();
    await queue.wake(1);
    expect(await place.jobs()).toEqual([{ id: expect.stringMatching(/^bell-\d$/), data: {} }]);
    const { counted, hear, heard } = listener();
    queue.consume({ hear });
    await heard(1);
    await expect.poll(() => place.jobs(), patience).toEqual([]);
    for (let times = 2; times <= 20; times++) {
      await queue.wake(1);
      await heard(times);
    }
    expect(counted).toEqual({ heard: 20, refused: 0 });
    await expect.poll(() => place.jobs(), patience).toEqual([]);
  });

  test("no runs, no ring; many runs, a ring for every 64; and never more than eight wait, whatever was asked for", async () => {
    const { place, queue } = await fresh();
    await queue.wake(0);
    expect(await place.jobs()).toHaveLength(0);
    await queue.wake(2 * runsPerRing + 1);
    expect(await place.jobs()).toHaveLength(3);
    await queue.wake(10_000);
    for (let times = 0; times < 30; times++) await queue.wake(1);
    await Promise.all(Array.from({ length: 500 }, () => queue.wake(3)));
    expect(await place.jobs()).toHaveLength(8);
    const { counted, hear, heard } = listener();
    queue.consume({ hear });
    await heard(8);
    await expect.poll(() => place.jobs(), patience).toEqual([]);
    expect(counted.heard).toBe(8);
  });

  test("calls of many at once share a few round trips", async () => {
    const { queue } = await fresh();
    const { counted, hear, heard } = listener();
    queue.consume({ hear });
    await Promise.all(Array.from({ length: 1000 }, () => queue.wake(1)));
    await heard(1);
    expect(counted.heard).toBeLessThanOrEqual(100);
  });

  test("what happens after a ring was heard is rung for again, however quick", async () => {
    const { queue } = await fresh();
    // Each ring is followed by another from within: one that was swallowed would end the chain.
    const { hear, heard } = listener(() => {
      void queue.wake(1);
      return true;
    });
    queue.consume({ hear });
    await queue.wake(1);
    await heard(200);
  });

  test("every one of many rings is heard by one of two consumers, and neither hears all", async () => {
    const { place, queue } = await fresh();
    const other = await openAt(place);
    const [one, two] = [listener(), listener()];
    queue.consume({ hear: one.hear });
    other.consume({ hear: two.hear });
    const both = () => one.counted.heard > 0 && two.counted.heard > 0;
    await expect
      .poll(async () => {
        await queue.wake(10 * runsPerRing);
        return both();
      }, patience)
      .toBe(true);
  });

  test("is empty after everything was deleted, and goes on", async () => {
    const { place, queue } = await fresh();
    const { hear, heard } = listener();
    await queue.wake(10_000);
    await place.flush();
    expect(await place.jobs()).toEqual([]);
    queue.consume({ hear });
    await queue.wake(1);
    await heard(1);
    await place.flush();
    await queue.wake(1);
    await heard(2);
  });

  test("closing takes nothing more", async () => {
    const { place, queue } = await fresh();
    const { counted, hear, heard } = listener();
    const consumer = queue.consume({ hear });
    await queue.wake(1);
    await heard(1);
    await consumer.close();
    await queue.wake(1);
    for (let turn = 0; turn < 20; turn++) await queue.check();
    expect(counted.heard).toBe(1);
    expect(await place.jobs()).toHaveLength(1);
  });

  test("pauses for everybody and resumes", async () => {
    const { place, queue } = await fresh();
    const other = await openAt(place);
    const { counted, hear, heard } = listener();
    other.consume({ hear });
    await queue.pause();
    expect(await other.isPaused()).toBe(true);
    await queue.wake(1);
    for (let turn = 0; turn < 20; turn++) await other.check();
    expect(counted.heard).toBe(0);
    expect(await place.jobs()).toHaveLength(1);
    await queue.resume();
    await heard(1);
    expect(await queue.isPaused()).toBe(false);
  });

  test("a consumer stops taking and takes again", async () => {
    const { queue } = await fresh();
    const { counted, hear, heard } = listener();
    const consumer = queue.consume({ hear });
    await queue.wake(1);
    await heard(1);
    consumer.pauseTaking();
    await queue.wake(1);
    for (let turn = 0; turn < 20; turn++) await queue.check();
    expect(counted.heard).toBe(1);
    consumer.resumeTaking();
    await heard(2);
    // Many times in a row, as a worker whose slots come and go does it.
    for (let times = 3; times < 30; times++) {
      consumer.pauseTaking();
      consumer.resumeTaking();
      await queue.wake(1);
      await heard(times);
    }
  });

  test("who cannot hear gives the ring back, takes none until told, and another hears it", async () => {
    const { place, queue } = await fresh();
    let can = false;
    const { counted, hear, heard } = listener(() => can);
    const consumer = queue.consume({ hear });
    await queue.wake(1);
    await expect.poll(() => counted.refused, patience).toBe(1);
    for (let turn = 0; turn < 20; turn++) await queue.check();
    expect(counted.refused).toBe(1);
    expect(await place.jobs()).toHaveLength(1);
    const other = await openAt(place);
    const second = listener();
    const able = other.consume({ hear: second.hear });
    await second.heard(1);
    await able.close();
    can = true;
    consumer.resumeTaking();
    await queue.wake(1);
    await heard(1);
  });

  test("lets Bull Board look, pause and resume, and change nothing else", async () => {
    const { place, queue } = await fresh();
    const job = {
      id: "run-1",
      state: "failed",
      data: { task_id: "run_1" },
      priority: 3,
      attempt: 2,
      createdAt: 1,
      startedAt: 2,
      finishedAt: 3,
      worker: "w",
      failedReason: "why",
      link: { href: "/here", displayText: "it" },
    } as const;
    const asked: unknown[] = [];
    const source: BoardSource = {
      counts: async () => ({ active: 0, waiting: 0, delayed: 0, completed: 0, failed: 1 }),
      list: async (...args) => {
        asked.push(args);
        return [job];
      },
      get: async (id) => (id === job.id ? job : undefined),
    };
    const board = queue.board(source);
    expect(board.getName()).toBe("runs");
    expect(await board.getJobCounts()).toMatchObject({ failed: 1 });
    const [listed] = await board.getJobs(["failed", "active", "paused"], 10, 19);
    expect(asked).toEqual([[["active", "failed"], 10, 19]]);
    const shown = listed!.toJSON();
    expect(shown).toMatchObject({ id: "run-1", failedReason: "why", processedOn: 2, finishedOn: 3, attemptsMade: 2 });
    expect(board.format("data", shown.data)).toEqual({ task_id: "run_1" });
    expect(board.externalJobUrl?.(shown)).toEqual(job.link);
    expect(await board.getJob("other")).toBeUndefined();
    const single = await board.getJob("run-1");
    expect(await single?.getState()).toBe("failed");

    const refused = expect.objectContaining({ statusCode: 405 });
    await expect(single?.remove()).rejects.toEqual(refused);
    await expect(single?.retry()).rejects.toEqual(refused);
    await queue.wake(1);
    await expect(board.empty()).rejects.toEqual(refused);
    await expect(board.clean("completed", 0)).rejects.toEqual(refused);
    await expect(board.obliterate()).rejects.toEqual(refused);
    await expect(board.addJob("run", {}, {})).rejects.toEqual(refused);
    expect(await place.jobs()).toHaveLength(1);

    await board.pause();
    expect(await queue.isPaused()).toBe(true);
    await board.resume();
    expect(await queue.isPaused()).toBe(false);
  });
});
