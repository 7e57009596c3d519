import { setImmediate as nextTurn } from "node:timers/promises";
import { expect, onTestFinished, test } from "vitest";
import { type Duty, startDuties } from "../../packages/runs/src/worker/duties.ts";

const hour = 3_600_000;

function table(leads: boolean, more: Partial<Record<"each" | "leader" | "bad", Partial<Duty>>> = {}) {
  const went: string[] = [];
  const failed: string[] = [];
  const state = { leads };
  const duty = (name: "each" | "leader" | "bad", who: Duty["who"], run: () => unknown = () => {}): Duty => ({
    name,
    every: hour,
    who,
    async run() {
      went.push(name);
      return run();
    },
    ...more[name],
  });
  const duties = startDuties({
    duties: [
      duty("bad", "each", () => {
        throw new Error("no");
      }),
      duty("each", "each"),
      duty("leader", "leader"),
    ],
    leads: () => state.leads,
    onError: (name) => failed.push(name),
  });
  onTestFinished(() => duties.close());
  return { went, failed, state, duties };
}

test("one that fails holds up no other; what the leader does is done by it alone", async () => {
  const { went, failed, state, duties } = table(false);
  await expect.poll(() => went).toEqual(["bad", "each"]);
  expect(failed).toEqual(["bad"]);
  state.leads = true;
  duties.begin();
  await expect.poll(() => went).toEqual(["bad", "each", "leader"]);
});

test("what is asked for is done now, by whoever is asked, and once", async () => {
  const { went, duties } = table(false);
  await expect.poll(() => went).toEqual(["bad", "each"]);
  duties.soon("leader");
  duties.soon("leader");
  await expect.poll(() => went).toEqual(["bad", "each", "leader"]);
  duties.soon("each");
  await expect.poll(() => went).toEqual(["bad", "each", "leader", "each"]);
});

test("one goes again when it says so: at any time for a leader, only soon for others", async () => {
  const again = (ms: number) => {
    const went: number[] = [];
    return { went, run: async () => (went.push(0) < 3 ? ms : undefined) };
  };
  const [soon, late] = [again(1), again(hour)];
  const one = table(false, { leader: { run: soon.run } });
  one.duties.soon("leader");
  await expect.poll(() => soon.went.length).toBe(3);
  const other = table(false, { leader: { run: late.run } });
  other.duties.soon("leader");
  await expect.poll(() => late.went.length).toBe(1);
  other.duties.soon("each");
  await expect.poll(() => other.went.filter((name) => name === "each").length).toBe(2);
  expect(late.went.length).toBe(1);
});

test("closing waits for the one under way, and none comes after it", async () => {
  const gate = Promise.withResolvers<void>();
  const began = Promise.withResolvers<void>();
  const run = () => {
    began.resolve();
    return gate.promise;
  };
  const { went, duties } = table(true, { each: { run } });
  await began.promise;
  const closed = duties.close();
  duties.begin();
  gate.resolve();
  await closed;
  expect(went).toEqual(["bad"]);
});

test("however often it is asked for, one does not go all the time", async () => {
  let went = 0;
  const { duties } = table(true, { each: { run: async () => void ++went } });
  await expect.poll(() => went).toBeGreaterThanOrEqual(1);
  const began = performance.now();
  for (let asked = 0; asked < 10_000; asked++) {
    duties.soon("each");
    await nextTurn();
  }
  expect(went).toBeLessThanOrEqual(2 + (performance.now() - began) / 50);
});
