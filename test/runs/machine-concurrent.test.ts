/**
 * Whoever writes to the same runs at once, in whatever order their statements arrive, and whichever answer is lost: every committed state is
 * sound, every move is one of the table, nobody was told something that is not so, and in the end every run is final. fast-check decides the order.
 */
import fc from "fast-check";
import { afterAll, beforeAll, test } from "vitest";
import { type ApiCall, call, createHands, type Holding, takeStep, type WorkerStep } from "./machine/actors.ts";
import { expectAllowedMoves, expectSound, expectTruth } from "./machine/invariants.ts";
import { type Death, drain, type Pass, rescue } from "./machine/rescue.ts";
import { type Fault, type Part, Stage } from "./machine/stage.ts";
import { type Bench, cases, createMachineBench, createWorld, patience, type World } from "./machine/world.ts";

let bench: Bench;
let stage: Stage;
beforeAll(async () => {
  bench = await createMachineBench();
  stage = new Stage(bench.url, bench.pool);
});
afterAll(async () => {
  await stage.close();
  await bench.close();
});

const record = <T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }) => fc.record(model, { noNullPrototype: true });
const which = fc.nat({ max: 1 });
const park: fc.Arbitrary<WorkerStep> = record({
  do: fc.constant("park"),
  for: fc.constantFrom("approval", "approval", "run", "tenant_day"),
});
const leave: fc.Arbitrary<WorkerStep> = record({
  do: fc.constant("leave"),
  status: fc.constantFrom("completed", "partial", "failed", "queued", "queued"),
  delayMs: fc.constantFrom(0, 60_000),
  rollback: fc.boolean(),
});
const step = fc.oneof(
  { weight: 5, arbitrary: fc.constantFrom<WorkerStep[]>({ do: "step" }, { do: "ask" }) },
  { weight: 3, arbitrary: park },
  { weight: 2, arbitrary: leave },
);
const holding: fc.Arbitrary<Holding> = record({
  run: fc.constantFrom(0, 0, 0, 1, null),
  steps: fc.array(step, { minLength: 1, maxLength: 4 }),
});
const apiCall = fc.oneof<fc.Arbitrary<ApiCall>[]>(
  record({ do: fc.constant("cancel"), run: which }),
  record({ do: fc.constant("decide"), yes: fc.boolean() }),
  record({ do: fc.constant("raise"), run: which }),
  record({ do: fc.constant("cap"), nanos: fc.integer({ min: 1e9, max: 2e9 }) }),
  record({ do: fc.constant("roll back"), run: which }),
);
const death = fc.constantFrom<Death[]>(
  { cause: "crashed" },
  { cause: "silent" },
  { cause: "blocked", culprit: null },
  { cause: "blocked", culprit: 0 },
  { cause: "blocked", culprit: 1 },
);
const pass = fc.oneof<fc.Arbitrary<Pass>[]>(
  fc.constantFrom<Pass[]>(
    { do: "take over" },
    { do: "wake due" },
    { do: "end overdue" },
    { do: "expire" },
    { do: "make rollbacks" },
    { do: "resume stuck" },
    { do: "close batches" },
  ),
  record({
    do: fc.constant("declare dead"),
    worker: which,
    death,
  }),
  record({ do: fc.constant("come back"), worker: which }),
  record({ do: fc.constant("time passes"), over: fc.constantFrom("delays", "questions", "limits") }),
);
const fault = (...kinds: Fault["kind"][]) =>
  fc.array(record({ at: fc.nat({ max: 7 }), kind: fc.constantFrom(...kinds) }), { maxLength: 1 });
/** What has happened to the first run before all others begin: in the hands of the first worker, or it was taken from them, or is in the second's. */
const before = fc.constantFrom<{ steps: WorkerStep[]; lost: "no" | "taken over" | "claimed anew" }[]>(
  { steps: [], lost: "no" },
  { steps: [{ do: "ask" }], lost: "no" },
  { steps: [{ do: "ask" }, { do: "park", for: "approval" }], lost: "no" },
  { steps: [{ do: "park", for: "run" }], lost: "no" },
  { steps: [], lost: "taken over" },
  { steps: [{ do: "ask" }], lost: "claimed anew" },
);
const several = { minLength: 1, maxLength: 3 };
const plan = record({
  before,
  workers: fc.array(
    record({
      holdings: fc.array(holding, { minLength: 1, maxLength: 2 }),
      faults: fault("before", "after", "cut", "killed"),
    }),
    { minLength: 2, maxLength: 3 },
  ),
  api: fc.array(record({ calls: fc.array(apiCall, several), faults: fault("before", "after", "cut") }), {
    maxLength: 2,
  }),
  rescuers: fc.array(record({ passes: fc.array(pass, several), faults: fault("before", "after", "cut") }), {
    maxLength: 2,
  }),
});
type Plan = typeof plan extends fc.Arbitrary<infer T> ? T : never;

async function cast(world: World, { before, workers, api, rescuers }: Plan): Promise<Part[]> {
  const [first, second] = world.workers.map((worker) => createHands(world, bench.pool, worker));
  const held = [await first!.claim(world.runs[0]!)];
  for (const step of before.steps) await takeStep(world, first!, held[0]![0]!, 0, step);
  if (before.lost !== "no") {
    await rescue(world, bench.pool, { do: "declare dead", worker: 0, death: { cause: "crashed" } });
    await rescue(world, bench.pool, { do: "take over" });
    if (before.lost === "claimed anew") held.push(await second!.claim(world.runs[0]!));
  }
  return [
    ...workers.map(
      ({ holdings, faults }, index): Part => ({
        name: `worker ${index}`,
        faults,
        async act(pool, say) {
          const hands = createHands(world, pool, world.workers[index]!);
          for (const [at, { run, steps }] of holdings.entries()) {
            say("claim");
            const id = run === null ? null : world.runs[run]!;
            // It goes on with what it holds, or held.
            const claimed = (at === 0 && held[index]) || (await hands.claim(id));
            for (const one of claimed) {
              say("load");
              const raises = await hands.raises(one);
              for (const step of steps) {
                say(Object.values(step).join(" "));
                await takeStep(world, hands, one, raises, step);
              }
            }
          }
        },
      }),
    ),
    ...api.map(
      ({ calls, faults }, index): Part => ({
        name: `api ${index}`,
        faults,
        async act(pool, say) {
          for (const one of calls) {
            say(Object.values(one).join(" "));
            await call(world, pool, `key_${index}`, one);
          }
        },
      }),
    ),
    ...rescuers.map(
      ({ passes, faults }, index): Part => ({
        name: `rescuer ${index}`,
        faults,
        async act(pool, say) {
          for (const one of passes) {
            say(Object.values(one).join(" "));
            await rescue(world, pool, one);
          }
        },
      }),
    ),
  ];
}

test(
  "writers at once: sound in every committed state, true to everybody, and nothing lost or stuck",
  async () => {
    await fc.assert(
      fc.asyncProperty(plan, fc.scheduler(), async (plan, scheduler) => {
        const world = await createWorld(bench, { runs: 2, workers: 3 });
        const parts = await cast(world, plan);
        const refused = await stage.play(scheduler, parts, () => expectSound(bench.pool));
        if (refused.length > 0) throw new Error(`Postgres refused: ${JSON.stringify(refused)}`);
        await drain(world);
        await expectSound(bench.pool);
        await expectAllowedMoves(bench.pool);
        await expectTruth(world);
      }),
      cases(100, 3000),
    );
  },
  patience,
);
