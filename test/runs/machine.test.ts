/**
 * One run, two workers, people and the rescuer, one deed after the other, against a model that knows no database: after each deed the row, the
 * log, the messages owed and the open questions are what the model says, and the one who did it was told so.
 */
import { setTimeout as delay } from "node:timers/promises";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { ClaimedRun } from "../../packages/runs/src/moves/claim.ts";
import { type ApiCall, call, createHands, type Hands, takeStep, type WorkerStep } from "./machine/actors.ts";
import { expectAllowedMoves, expectSound, expectTruth } from "./machine/invariants.ts";
import { type Deed, foresee, type Model, newModel } from "./machine/model.ts";
import { type Death, drain, type Pass, rescue } from "./machine/rescue.ts";
import { type Bench, cases, createMachineBench, createWorld, patience, type World } from "./machine/world.ts";

let bench: Bench;
beforeAll(async () => {
  bench = await createMachineBench();
});
afterAll(() => bench.close());

interface Seat {
  hands: Hands;
  held?: { run: ClaimedRun; raises: number };
}

interface Real {
  world: World;
  seats: Seat[];
}

const sit = (world: World, seat: number): Seat => ({ hands: createHands(world, bench.pool, world.workers[seat]!) });

async function perform({ world, seats }: Real, deed: Deed): Promise<void> {
  const { pool } = bench;
  if (deed.by === "api") {
    await call(world, pool, "key_a", deed.does);
    return;
  }
  if (deed.by === "rescuer") {
    await rescue(world, pool, deed.does);
    return;
  }
  const seat = seats[deed.seat]!;
  if (deed.does.do === "sit down anew") {
    world.workers[deed.seat] = await bench.addWorker(3_600_000);
    seat.hands = sit(world, deed.seat).hands;
  } else if (deed.does.do === "claim") {
    const [run] = await seat.hands.claim(deed.does.next ? null : world.runs[0]!);
    if (run) seat.held = { run, raises: await seat.hands.raises(run) };
  } else await takeStep(world, seat.hands, seat.held!.run, seat.held!.raises, deed.does);
}

/** Delays end when a deed says so, however slow this machine is; and a rollback is a run of its own, of which no more is wanted here. */
const keepApart = (world: World) =>
  bench.pool.query(
    `WITH delayed AS (UPDATE runs SET available_at = now() + interval '1 hour' WHERE id = $1 AND status = 'queued' AND NOT woken AND available_at > now())
     UPDATE runs SET available_at = now() + interval '1 hour', woken = false WHERE of_run = $1 AND status = 'queued'`,
    [world.runs[0]],
  );

async function observed({ world }: Real) {
  const { rows } = await bench.pool.query(
    `SELECT status, stop_reason, epoch, attempt, crashes, steps, cancel_requested_at IS NOT NULL AS cancel, budget_raises, waiting_for,
            waiting_level, available_at <= now() AS due, woken, wake, rollback, last_seq, worker IS NOT NULL AS owned,
            (SELECT array_agg(type ORDER BY seq) FROM run_events WHERE run_id = r.id) AS log,
            (SELECT coalesce(array_agg(type ORDER BY id), '{}') FROM messages WHERE run_id = r.id) AS messages,
            (SELECT count(*)::int FROM approvals WHERE run_id = r.id AND status = 'pending') AS questions
     FROM runs r WHERE id = $1`,
    [world.runs[0]],
  );
  const { attempt, cancel, due, woken, wake, ...row } = rows[0];
  return {
    ...row,
    messages: row.messages.toSorted(),
    ...(["queued", "running", "waiting"].includes(row.status) && { attempt, cancel }),
    ...(row.status === "queued" && { due, woken, wake }),
  };
}

const foreseen = (run: Model) => ({
  status: run.status,
  stop_reason: run.stopReason,
  epoch: run.epoch,
  crashes: run.crashes,
  steps: run.steps,
  budget_raises: run.raises,
  waiting_for: run.waitingFor,
  waiting_level: run.level,
  rollback: run.rollback,
  last_seq: run.log.length,
  owned: run.owner !== null,
  log: run.log,
  messages: run.messages.toSorted(),
  questions: run.questions.length,
  ...(["queued", "running", "waiting"].includes(run.status) && { attempt: run.attempt, cancel: run.cancelRequested }),
  ...(run.status === "queued" && { due: run.due, woken: run.woken, wake: run.wake }),
});

/** Steps need a run, lost or not; the dead leave a free seat; of those who own nothing, only one kind dies: it makes no difference. */
function isPossible(run: Readonly<Model>, deed: Deed): boolean {
  const { by, does } = deed;
  if (by === "rescuer" && does.do === "declare dead")
    return does.death.cause === "silent" || run.owner === run.seats[does.worker]!.worker;
  if (by !== "worker" || does.do === "claim") return true;
  const { held, worker } = run.seats[deed.seat]!;
  return does.do === "sit down anew" ? worker.death !== undefined : held !== undefined;
}

const told = (deed: Deed) => `${deed.by}${"seat" in deed ? ` ${deed.seat}` : ""}: ${JSON.stringify(deed.does)}`;

/** Deeds in a row, those that are possible. */
class Command implements fc.AsyncCommand<Model, Real> {
  readonly deeds: Deed[];
  constructor(...deeds: Deed[]) {
    this.deeds = deeds;
  }

  check(run: Readonly<Model>): boolean {
    return isPossible(run, this.deeds[0]!);
  }

  async run(run: Model, real: Real): Promise<void> {
    for (const deed of this.deeds) {
      if (!isPossible(run, deed)) continue;
      const before = real.world.told.length;
      await perform(real, deed);
      // The times of a row are rounded to a millisecond, up as well: what comes next is later.
      await delay(2);
      await keepApart(real.world);
      foresee(run, deed);
      expect(await observed(real), told(deed)).toEqual(foreseen(run));
      expect(real.world.told.slice(before).at(-1)?.answer, `${told(deed)}: what was told`).toBe(run.answer);
    }
  }

  toString(): string {
    return this.deeds.map(told).join(", ");
  }
}

const seat = fc.nat({ max: 1 });
const worker = (...does: Extract<Deed, { by: "worker" }>["does"][]) =>
  fc.tuple(seat, fc.constantFrom(...does)).map(([seat, does]) => new Command({ by: "worker", seat, does }));
const api = (...calls: ApiCall[]) => fc.constantFrom(...calls).map((does) => new Command({ by: "api", does }));
const rescuer = (...passes: Pass[]) => fc.constantFrom(...passes).map((does) => new Command({ by: "rescuer", does }));
const leave = (status: "completed" | "partial" | "failed" | "queued", delayMs = 0, rollback = false): WorkerStep => ({
  do: "leave",
  status,
  delayMs,
  rollback,
});
const deaths: Death[] = [
  { cause: "crashed" },
  { cause: "crashed" },
  { cause: "silent" },
  { cause: "blocked", culprit: null },
  { cause: "blocked", culprit: 0 },
  { cause: "blocked", culprit: 1 },
];
/** A worker is lost with what it holds, another one sits down, and one of the two seats has the run again. */
function loss(worker: number, death: Death, next: number): Deed[] {
  const passes: Pass[] = [
    { do: "declare dead", worker, death },
    { do: "take over" },
    { do: "end overdue" },
    { do: "time passes", over: "delays" },
    { do: "wake due" },
  ];
  return [
    ...passes.map((does): Deed => ({ by: "rescuer", does })),
    { by: "worker", seat: worker, does: { do: "sit down anew" } },
    { by: "worker", seat: next, does: { do: "claim", next: false } },
  ];
}
const death = fc.constantFrom(...deaths);
const lost = fc.tuple(seat, death, seat).map((how) => new Command(...loss(...how)));
const lostAgainAndAgain = fc
  .tuple(seat, death)
  .map(
    ([seat, death]) => new Command(...loss(seat, death, seat), ...loss(seat, death, seat), ...loss(seat, death, seat)),
  );
const handedOver = fc
  .tuple(seat, seat)
  .map(
    ([from, to]) =>
      new Command(
        { by: "worker", seat: from, does: leave("queued") },
        { by: "worker", seat: to, does: { do: "claim", next: true } },
      ),
  );

/** Each group is as likely as the others: what ends a run is rare, what moves it from hand to hand is not. */
const commands = fc.commands(
  [
    worker({ do: "claim", next: false }, { do: "claim", next: true }),
    worker({ do: "claim", next: false }),
    worker({ do: "step" }),
    worker({ do: "step" }, { do: "ask" }),
    worker({ do: "ask" }),
    worker({ do: "park", for: "approval" }, { do: "park", for: "run" }, { do: "park", for: "tenant_day" }),
    worker({ do: "sit down anew" }, leave("queued"), leave("queued", 60_000)),
    handedOver,
    lost,
    lost,
    api({ do: "decide", yes: true }, { do: "decide", yes: false }, { do: "raise", run: 0 }, { do: "cap", nanos: 1e9 }),
    rescuer(
      { do: "take over" },
      { do: "end overdue" },
      { do: "resume stuck" },
      { do: "come back", worker: 0 },
      { do: "come back", worker: 1 },
      ...[0, 1].flatMap((worker) => deaths.map((death): Pass => ({ do: "declare dead", worker, death }))),
    ),
    rescuer(
      { do: "time passes", over: "delays" },
      { do: "time passes", over: "questions" },
      { do: "time passes", over: "limits" },
      { do: "wake due" },
      { do: "expire" },
      { do: "make rollbacks" },
      { do: "close batches" },
    ),
    fc.oneof(
      worker(leave("completed"), leave("failed", 0, true), leave("partial", 0, true)),
      api({ do: "cancel", run: 0 }, { do: "roll back", run: 0 }),
      lostAgainAndAgain,
    ),
  ],
  { maxCommands: 40, size: "max", ...(process.env.FC_COMMANDS && { replayPath: process.env.FC_COMMANDS }) },
);

test(
  "one deed after the other: the run is what the model says after each, and can always be brought to its end",
  async () => {
    await fc.assert(
      fc.asyncProperty(commands, async (commands) => {
        const world = await createWorld(bench, { runs: 1, workers: 2 });
        await fc.asyncModelRun(
          () => ({ model: newModel(), real: { world, seats: [sit(world, 0), sit(world, 1)] } }),
          commands,
        );
        await expectSound(bench.pool);
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
