/** Retries whose workers are killed: what the run before had finished, and what the dead worker had, is neither done nor paid for again. */
import { retryRun, wakeRuns } from "@drover/runs";
import { expect, test } from "vitest";
import { chaos, dataOf } from "./world.ts";

const world = chaos();
const turns = ["pure_call", "idempotent_call", "unsafe_call", "idempotent_call"];

async function retry(id: string): Promise<string> {
  const { pool, blobs, queue } = world.bench;
  const asked = { tenant: "default", id, changes: {}, callbackDecides: false, actor: "key_person", leaseMs: 2000 };
  const { id: again, made } = (await retryRun(pool, blobs, asked))!;
  await wakeRuns(queue, [made!]);
  return again;
}

test("the model refuses in every third call, each retry's worker is killed after its first step: every step once", async () => {
  let refuseAt = 3;
  world.models.script((call) => {
    if (call.index + 1 === refuseAt) return { status: 400, message: "not now" };
    const name = turns[call.turn];
    return name ? { toolCalls: [{ name, input: { note: `n${call.turn}` } }] } : "All done.";
  });
  const first = await world.bench.submit();
  const worker = await world.start();
  expect((await world.ended(first)).run).toMatchObject({ status: "partial", steps: 4 });
  await worker.kill("SIGKILL");

  refuseAt = 6;
  const victim = await world.start({ KILL_AFTER: "1" });
  const second = await retry(first);
  expect((await victim.exited).signal).toBe("SIGKILL");
  await world.start();
  const ended = await world.ended(second);
  expect(ended.run).toMatchObject({ status: "partial", steps: 4, iterations: 2 });
  expect(ended.log.filter(({ type }) => type === "run.rescued")).toHaveLength(1);

  const third = await world.ended(await retry(second));
  expect(third.run).toMatchObject({ status: "completed", retryOf: second, steps: 1, iterations: 1 });
  // Five replies and two refusals; each effect once, in its order.
  expect(world.models.count).toBe(7);
  expect(world.endpoint.calls.map(({ note }) => note)).toEqual(["n0", "n1", "n2", "n3"]);
  expect(dataOf(third.log, "model.call").map(({ iteration }) => iteration)).toEqual([1, 2, 3, 4, 5]);
  expect(third.outcome.result.tool_calls.map(({ status }) => status)).toEqual(Array(4).fill("ok"));
});

test("killed inside an idempotent call of a retry: made again under the key of the run that first meant to make it", async () => {
  world.models.script((call) =>
    call.turn === 0 ? { toolCalls: [{ name: "idempotent_call", input: { note: "once" } }] } : "All done.",
  );
  world.endpoint.hold();
  const first = await world.bench.submit();
  const worker = await world.start();
  await world.endpoint.called(1);
  await world.bench.pool.query("UPDATE runs SET hard_at = now() WHERE id = $1", [first]);
  await world.start();
  await worker.kill("SIGKILL");
  expect((await world.ended(first)).run).toMatchObject({ status: "failed", stopReason: "time_limit" });

  const again = await retry(first);
  await world.endpoint.called(2);
  // Whoever has it is killed; a third goes on.
  const { rows } = await world.bench.pool.query(
    "SELECT w.pid FROM workers w JOIN runs r ON r.worker = w.id WHERE r.id = $1",
    [again],
  );
  await world.start();
  process.kill(rows[0].pid, "SIGKILL");
  world.endpoint.release();
  const { run } = await world.ended(again);
  expect(run.status).toBe("completed");
  expect(world.endpoint.calls.map(({ idempotencyKey }) => idempotencyKey)).toEqual(Array(3).fill(`${first}:1:0`));
  expect(world.models.count).toBe(2);
});
