/** One suite for every backend of the wake queue. What holds here is all that the rest of Drover may expect of it. */
import { lowestPriority } from "@drover/queue";
import { describe, expect, test } from "vitest";
import { backends } from "./queue-backends.ts";
import { gate, id, patience, quick, recorder, run, useServer } from "./queue-suite.ts";

describe.each(backends)("wake queue on $name", ({ name, start }) => {
  const { openAt, fresh } = useServer(start);

  test("serves by priority, and in order of arrival within one", async () => {
    const { queue } = await fresh();
    const items = [2, 0, 1, lowestPriority, 1, 0, 2].map((priority) => run(priority));
    for (const item of items) await queue.wake([item]);
    const { seen, handle, all } = recorder();
    queue.consume({ concurrency: 1, handle });
    await all(items);
    const expected = items.toSorted((a, b) => a.priority - b.priority).map((item) => item.runId);
    expect(seen).toEqual(expected);
  });

  test("takes a priority out of range for the nearest", async () => {
    const { queue } = await fresh();
    const items = [run(lowestPriority + 5), run(-3), run(1.5)];
    await queue.wake(items);
    const { seen, handle, all } = recorder();
    queue.consume({ concurrency: 1, handle });
    await all(items);
    expect(seen).toEqual([items[1], items[2], items[0]].map((item) => item!.runId));
  });

  test("handles the same wake-up once, and the next one of the run again", async () => {
    const { queue } = await fresh();
    const item = run();
    const last = run(9);
    await queue.wake([item, item]);
    await queue.wake([item]);
    await queue.wake([last]);
    const { seen, handle, all } = recorder();
    queue.consume({ concurrency: 1, handle });
    await all([item, last]);
    expect(seen).toEqual([item.runId, last.runId]);

    // Finished, and still known to the backend: the same id is ignored.
    const after = run(9);
    await queue.wake([item]);
    await queue.wake([after]);
    await all([after]);
    expect(seen).toEqual([item.runId, last.runId, after.runId]);

    await queue.wake([{ ...item, wake: 2 }]);
    await expect.poll(() => seen.filter((runId) => runId === item.runId).length, patience).toBe(2);
  });

  test("carries the run's id and nothing else", async () => {
    const { place, queue } = await fresh();
    const item = run(7);
    await queue.wake([item]);
    const waiting = await place.stored(id(item));
    expect(waiting.data).toEqual({ runId: item.runId });
    expect(waiting.options).toMatchObject({ attempts: 1 });
    expect(waiting.options).not.toHaveProperty("delay");

    const { handle, all } = recorder();
    queue.consume({ concurrency: 1, handle });
    await all([item]);
    await expect.poll(() => queue.depth(), patience).toMatchObject({ completed: 1 });
    const done = await place.stored(id(item));
    expect(done.data).toEqual({ runId: item.runId });
    expect(done.returned).toBeNull();
  });

  test("tells which wake-ups it still has: waiting and active ones, not lost and finished ones", async () => {
    const { place, queue } = await fresh();
    const [active, waiting, lost, never] = [run(0), run(5), run(5), run(5)];
    const { open: finish, opened } = gate();
    const { handle, all } = recorder(async () => {
      await opened;
      return "done";
    });
    await queue.wake([active]);
    const consumer = queue.consume({ concurrency: 1, handle });
    await all([active]);
    await queue.wake([waiting, lost]);
    await place.forget(id(lost));
    expect(await queue.known([active, waiting, lost, never])).toEqual(new Set([active.runId, waiting.runId]));
    // Another wake-up of the same run is another question.
    expect(await queue.known([{ ...waiting, wake: 2 }])).toEqual(new Set());
    expect(await queue.depth()).toMatchObject({ waiting: 1, active: 1 });
    finish();
    await all([waiting]);
    await consumer.close();
    expect(await queue.known([active, waiting])).toEqual(new Set());
  });

  test("knows nothing after everything was deleted, and goes on", async () => {
    const { place, queue } = await fresh();
    const items = Array.from({ length: 1200 }, () => run(1));
    await queue.wake(items);
    expect((await queue.known(items)).size).toBe(1200);
    await place.flush();
    expect((await queue.known(items)).size).toBe(0);

    const { handle, all } = recorder();
    queue.consume({ concurrency: 5, handle });
    const again = items.slice(0, 3).map((item) => ({ ...item, wake: 2 }));
    await queue.wake(again);
    await all(again);
  });

  test("loses everything under running handlers: they end normally", async () => {
    const { place, queue } = await fresh();
    const { open: finish, opened } = gate();
    const { seen, handle, all } = recorder(async (runId) => {
      if (runId === first.runId) await opened;
      return "done";
    });
    const first = run();
    const consumer = queue.consume({ concurrency: 2, handle, ...quick });
    await queue.wake([first]);
    await all([first]);
    await place.flush();
    const second = run();
    await queue.wake([second]);
    await all([second]);
    expect(consumer.running).toBe(1);
    finish();
    await consumer.close();
    expect(seen).toEqual([first.runId, second.runId]);
  });

  test("hands a job out again when its lock is lost, and touches no running handler", async () => {
    const { place, queue } = await fresh();
    const item = run();
    const { open: finish, opened } = gate();
    let calls = 0;
    let firstReturned = false;
    const consumer = queue.consume({
      concurrency: 5,
      ...quick,
      handle: async () => {
        if (++calls > 1) return "done";
        await opened;
        firstReturned = true;
        return "done";
      },
    });
    await queue.wake([item]);
    await expect.poll(() => calls, patience).toBe(1);
    await place.unlock(id(item));
    await expect.poll(() => calls, patience).toBe(2);
    expect(queue.counters.stalled).toBe(1);
    expect(firstReturned).toBe(false);
    await expect.poll(() => consumer.running, patience).toBe(1);

    const other = run();
    await queue.wake([other]);
    await expect.poll(() => calls, patience).toBe(3);
    finish();
    await consumer.close();
    expect(firstReturned).toBe(true);
    expect(calls).toBe(3);
  });

  test("handles 10,000 wake-ups, each exactly once, with two workers", { timeout: 120_000 }, async () => {
    const { place, queue } = await fresh();
    const other = await openAt(place);
    const items = Array.from({ length: 10_000 }, (_, index) => run(index % 3));
    const { seen, handle } = recorder();
    queue.consume({ concurrency: 50, handle });
    other.consume({ concurrency: 50, handle });
    await queue.wake(items);
    await expect.poll(() => seen.length, { timeout: 110_000, interval: 100 }).toBe(10_000);
    await expect.poll(() => queue.depth(), patience).toMatchObject({ waiting: 0, active: 0 });
    expect(seen.length).toBe(10_000);
    expect(new Set(seen)).toEqual(new Set(items.map((item) => item.runId)));
  });

  test("shows a failed run as failed, and a handler that throws too", async () => {
    const { queue } = await fresh();
    const [failed, thrown] = [run(1), run(2)];
    await queue.wake([failed, thrown]);
    const { seen, handle } = recorder(async (runId) => {
      if (runId === failed.runId) return "failed";
      throw new Error("a bug");
    });
    queue.consume({ concurrency: 1, handle });
    await expect.poll(() => queue.depth(), patience).toMatchObject({ waiting: 0, active: 0, completed: 0, failed: 2 });
    expect(seen).toEqual([failed.runId, thrown.runId]);
    expect(queue.counters.handlersThrown).toBe(1);
    const jobs = await queue.board().getJobs(["failed"], 0, 10);
    const reasons = Object.fromEntries(jobs.map((job) => [job.toJSON().id, job.toJSON().failedReason]));
    expect(reasons).toEqual({ [id(failed)]: expect.stringContaining("run failed"), [id(thrown)]: "a bug" });
    expect(await queue.known([failed, thrown])).toEqual(new Set());
  });

  test("closing waits for the handlers, and takes nothing more", async () => {
    const { queue } = await fresh();
    const items = Array.from({ length: 20 }, () => run(1));
    await queue.wake(items);
    const { open: finish, opened } = gate();
    let returned = 0;
    const { seen, handle } = recorder(async () => {
      await opened;
      returned++;
      return "done";
    });
    const consumer = queue.consume({ concurrency: 3, handle });
    await expect.poll(() => consumer.running, patience).toBe(3);
    let closed = false;
    const closing = consumer.close().then(() => {
      closed = true;
    });
    // Many turns of the backend, none of which may end it or start another handler.
    for (let turn = 0; turn < 20; turn++) await queue.depth();
    expect(closed).toBe(false);
    finish();
    await closing;
    expect(returned).toBe(3);
    expect(seen).toHaveLength(3);
    await expect.poll(() => queue.depth(), patience).toMatchObject({ waiting: 17, active: 0, completed: 3 });
  });

  test("pauses for everybody and resumes", async () => {
    const { place, queue } = await fresh();
    const other = await openAt(place);
    const item = run(1);
    let resumed = false;
    let handledWhile: boolean | undefined;
    other.consume({
      concurrency: 1,
      handle: async () => {
        handledWhile = resumed;
        return "done";
      },
    });
    await queue.pause();
    expect(await other.isPaused()).toBe(true);
    await queue.wake([item]);
    for (let turn = 0; turn < 20; turn++) {
      expect(await other.depth()).toMatchObject({ waiting: 1, active: 0, paused: true });
    }
    expect(await queue.known([item])).toEqual(new Set([item.runId]));
    resumed = true;
    await queue.resume();
    await expect.poll(() => handledWhile, patience).toBe(true);
    expect(await queue.depth()).toMatchObject({ paused: false });
  });

  test("a consumer stops taking and takes again", async () => {
    const { queue } = await fresh();
    const { seen, handle, all } = recorder();
    const consumer = queue.consume({ concurrency: 2, handle });
    const before = run();
    await queue.wake([before]);
    await all([before]);
    await consumer.pauseTaking();
    const items = [run(), run(3)];
    await queue.wake(items);
    for (let turn = 0; turn < 20; turn++) await queue.depth();
    expect(seen).toEqual([before.runId]);
    consumer.resumeTaking();
    await all(items);
    expect(seen).toHaveLength(3);
  });

  test("gives a job back while Postgres is away, and takes none until told", async () => {
    const { queue } = await fresh();
    let away = true;
    const { seen, handle, all } = recorder(async () => (away ? "postgres_away" : "done"));
    const items = [run(1), run(2), run(3)];
    const consumer = queue.consume({ concurrency: 1, handle });
    await queue.wake(items);
    await expect.poll(() => seen.length, patience).toBe(1);
    await expect.poll(() => queue.depth(), patience).toMatchObject({ waiting: 3, active: 0, failed: 0, completed: 0 });
    for (let turn = 0; turn < 20; turn++) await queue.depth();
    expect(seen).toEqual([items[0]!.runId]);
    away = false;
    consumer.resumeTaking();
    await all(items);
    await expect.poll(() => queue.depth(), patience).toMatchObject({ waiting: 0, active: 0, failed: 0, completed: 3 });
    expect(seen).toHaveLength(4);
  });

  test("raises and lowers its concurrency while handlers run", async () => {
    const { queue } = await fresh();
    const gates = new Map<string, () => void>();
    const { seen, handle } = recorder((runId) => new Promise((resolve) => gates.set(runId, () => resolve("done"))));
    const consumer = queue.consume({ concurrency: 1, handle });
    await queue.wake(Array.from({ length: 8 }, () => run(1)));
    await expect.poll(() => consumer.running, patience).toBe(1);
    consumer.setConcurrency(4);
    await expect.poll(() => consumer.running, patience).toBe(4);
    consumer.setConcurrency(1);
    for (const finish of gates.values()) finish();
    await expect.poll(() => seen.length, patience).toBe(5);
    expect(consumer.running).toBe(1);
    for (let handled = 5; handled <= 8; handled++) {
      await expect.poll(() => seen.length, patience).toBe(handled);
      gates.get(seen.at(-1)!)!();
    }
    await expect.poll(() => queue.depth(), patience).toMatchObject({ waiting: 0, active: 0, completed: 8 });
  });

  test("lets Bull Board look, pause and resume, and change nothing else", async () => {
    const { queue } = await fresh();
    const item = run(4);
    await queue.wake([item]);
    const board = queue.board({ format: ({ runId }) => ({ run: `run_${runId.replaceAll("-", "")}` }) });
    expect(await board.getJobCounts()).toMatchObject(name === "Postgres" ? {} : { prioritized: 1 });
    const job = await board.getJob(id(item));
    expect(board.format("data", job?.toJSON().data)).toEqual({ run: `run_${item.runId.replaceAll("-", "")}` });
    expect(await job?.getState()).toBe("prioritized");

    const refused = expect.objectContaining({ statusCode: 405 });
    await expect(job?.remove()).rejects.toEqual(refused);
    await expect(job?.retry()).rejects.toEqual(refused);
    await expect(board.empty()).rejects.toEqual(refused);
    await expect(board.clean("completed", 0)).rejects.toEqual(refused);
    await expect(board.obliterate()).rejects.toEqual(refused);
    await expect(board.addJob("run", {}, {})).rejects.toEqual(refused);
    expect(await queue.known([item])).toEqual(new Set([item.runId]));

    await board.pause();
    expect(await queue.isPaused()).toBe(true);
    await board.resume();
    expect(await queue.isPaused()).toBe(false);
  });
});
