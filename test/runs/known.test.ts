/** A worker carries the agents and models it knows; the others' runs wait for one that knows theirs, in nobody's way, and not for ever. */
import type { Observation } from "@drover/runs";
import { expect, test } from "vitest";
import { claimNext, type Known } from "../../packages/runs/src/moves/claim.ts";
import { findOverdue } from "../../packages/runs/src/moves/rescue.ts";
import { readAside, wakeDue, wakeKnown } from "../../packages/runs/src/moves/wake.ts";
import { claimMany, claimRuns } from "../support/claim.ts";
import { input } from "./bench.ts";
import { live } from "./live.ts";

const world = live();
const old: Known = { agents: ["default"], models: ["anthropic/*", "own/big"] };
const of = (agent: string, model?: string) => ({ input: input({ agent, ...(model !== undefined && { model }) }) });

test.each([
  ["an agent it knows", of("default"), true],
  ["one it does not", of("new"), false],
  ["a provider it knows", of("default", "anthropic/claude-x"), true],
  ["a model it knows", of("default", "own/big"), true],
  ["another of that provider", of("default", "own/small"), false],
  ["a provider that only begins so", of("default", "anthropic2/x"), false],
  ["a name with an asterisk", of("default", "own/*"), false],
])("%s", async (_what, more, isKnown) => {
  const { pool } = world.bench;
  const worker = await world.bench.addWorker();
  const id = await world.bench.submit(more);
  expect(await claimRuns(pool, worker, [id], { known: old })).toHaveLength(isKnown ? 1 : 0);
  if (isKnown) return;
  expect(await claimMany(pool, worker, 10, { known: old })).toEqual([]);
  const { woken, wake, status } = await world.bench.row(id);
  expect([woken, wake, status]).toEqual([false, 1, "queued"]);
  // No delay that has passed; and a worker that knows it takes it.
  expect(await wakeDue(pool, 10)).toEqual([]);
  const known = { agents: [...old.agents, "new"], models: [more.input.model ?? ""] };
  expect(await claimMany(pool, worker, 10, { known })).toMatchObject([{ id }]);
  expect(await world.bench.row(id)).toMatchObject({ set_aside_at: null, status: "running" });
});

test("what is set aside is woken when a living worker knows it, and ends when none has for long enough", async () => {
  const { pool } = world.bench;
  const [one, other] = [await world.bench.submit(of("new")), await world.bench.submit(of("newer"))];
  const stranger = await world.bench.addWorker();
  const { runs, seen, aside } = await claimNext(pool, stranger, { most: 10, known: old });
  expect([runs, seen, aside.sort()]).toEqual([[], 2, ["new", "newer"]]);
  expect(await claimNext(pool, stranger, { most: 10, known: old })).toEqual({ runs: [], seen: 0, aside: [] });
  const knowing = async (agents: string[] | null) => {
    const id = await world.bench.addWorker();
    await pool.query("UPDATE workers SET agents = $2, models = '{}' WHERE id = $1", [id, agents]);
    return id;
  };
  await pool.query("DELETE FROM workers");
  const worker = await knowing(["new"]);
  expect(await readAside(pool)).toMatchObject([
    { agent: "new", model: null, runs: 1, known: true },
    { agent: "newer", model: null, runs: 1, known: false },
  ]);
  const overdue = async (noWorkerMs: number) =>
    (await findOverdue(pool, { graceMs: 0, most: 10, noWorkerMs })).map(({ id, cause }) => [id, cause]);
  expect(await overdue(60_000)).toEqual([]);
  await pool.query("UPDATE runs SET set_aside_at = now() - interval '2 minutes' WHERE set_aside_at IS NOT NULL");
  expect(await overdue(60_000)).toEqual([[other, "no_worker"]]);
  expect(await wakeKnown(pool, 10)).toMatchObject([{ runId: one, woken: true, wake: 2 }]);
  expect(await wakeKnown(pool, 10)).toEqual([]);
  await world.bench.endWorker(worker);
  await knowing(null);
  expect(await overdue(60_000)).toEqual([]);
});

test("a deploy that adds an agent: the old worker leaves its runs, goes on with its own, and the new one takes them", async () => {
  world.models.script(() => "done");
  await world.bench.pool.query("DELETE FROM workers");
  const told: Observation[] = [];
  await world.start({ known: old, observe: (observation) => told.push(observation) }, 1);
  const waiting: string[] = [];
  for (let n = 0; n < 20; n++) waiting.push(await world.submit(of("new")));
  for (let n = 0; n < 3; n++)
    expect((await world.rest(await world.submit(of("default")))).run.status).toBe("completed");

  await world.until("SELECT count(*) AS n FROM runs WHERE set_aside_at IS NOT NULL AND status = 'queued'", [], {
    n: 20,
  });
  await expect
    .poll(() => told.filter(({ type }) => type === "unclaimed"), { timeout: 20_000 })
    .toMatchObject([{ agent: "new", model: null }]);

  expect(told.some((one) => one.type === "set_aside" && one.agents.includes("new"))).toBe(true);

  await world.start({ known: { ...old, agents: ["default", "new"] }, agents: { new: {} } });

  for (const id of waiting) expect((await world.rest(id)).run.status).toBe("completed");
});

test("a run that no worker takes ends with a clear code, and can be retried", async () => {
  await world.bench.pool.query("DELETE FROM workers");
  await world.start({ known: old, noWorkerMs: 1 });
  const { run, outcome, log } = await world.rest(await world.submit(of("new", "own/small")));
  expect(run).toMatchObject({ status: "failed", stopReason: "no_worker", setAsideAt: null });
  expect(outcome!.error).toEqual({
    code: "no_worker",
    message: 'No worker took the agent "new" with the model "own/small": is it in the configuration of the workers?',
  });
  expect(log.map(({ type }) => type)).toEqual(["run.queued", "run.failed"]);
});
