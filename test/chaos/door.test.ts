/** Many runs through the door while one worker after the other is killed: each ends, and no effect is made more often than a person said it may. */
import { listApprovals } from "@drover/runs";
import { expect, test } from "vitest";
import { input } from "../runs/bench.ts";
import { chaos, dataOf } from "./world.ts";

const world = chaos();
const runs = 40;
const turns = [["idempotent_call", "send_call"], ["unsafe_done"], ["unsafe_call", "pure_call"]];
/** Steps after which the workers kill themselves; all of them together are less than the runs take. */
const deaths = [25, 60];
const short = { TOOL_TIMEOUT_MS: "2500" };

test(`${runs} runs, ${deaths.length} workers that die, and people who decide meanwhile`, async () => {
  world.models.script((call) => {
    const [, note] = /run (\d+)/.exec(call.query)!;
    const names = turns[call.turn];
    return names ? { toolCalls: names.map((name) => ({ name, input: { note } })) } : "Done.";
  });
  const ids: string[] = [];
  for (let n = 0; n < runs; n++) ids.push(await world.bench.submit({ input: input({ query: `run ${n}` }) }));

  let over = false;
  let decided = 0;
  const people = (async () => {
    while (!over)
      // Half of the wake-ups are lost.
      for (const { runId } of await listApprovals(world.bench.pool, "default", { status: "pending", limit: 1 }))
        await world.decide(runId, { decision: "approve" }, { wake: decided++ % 2 === 0 });
  })();
  for (const steps of deaths) await (await world.start({ ...short, KILL_AFTER: String(steps) })).exited;
  await world.start(short);
  const logs = [];
  for (const id of ids) logs.push((await world.ended(id)).log);
  over = true;
  await people;

  for (const [n, log] of logs.entries()) {
    expect(log.at(-1)!.type, `run ${n}`).toBe("run.completed");
    for (const name of turns.flat()) {
      const made = world.endpoint.calls.filter(
        ({ effect, note }) => note === String(n) && (effect === name || `${effect}_call` === name),
      );
      const doubts = dataOf(log, "approval.requested").filter(
        ({ subject, tool_name }) => subject === "uncertain" && tool_name === name,
      );
      expect(
        dataOf(log, "tool.result").filter(({ tool_name, status }) => tool_name === name && status === "ok"),
        `run ${n} ${name}`,
      ).toHaveLength(1);
      // Its `verify` says it is done, also when its worker died before it was.
      if (name !== "unsafe_done") expect(made.length, `run ${n} ${name}`).toBeGreaterThanOrEqual(1);
      expect(new Set(made.map(({ idempotencyKey }) => idempotencyKey)).size, `run ${n} ${name}`).toBeLessThanOrEqual(1);
      if (name !== "idempotent_call" && name !== "pure_call")
        expect(made.length, `run ${n} ${name}`).toBeLessThanOrEqual(1 + doubts.length);
    }
    const questions = dataOf(log, "approval.requested").filter(({ subject }) => subject === "call");
    expect(questions, `run ${n}`).toHaveLength(1);
  }
  const rescued = logs.flat().filter(({ type }) => type === "run.rescued").length;
  expect(rescued).toBeGreaterThanOrEqual(deaths.length);
}, 120_000);
