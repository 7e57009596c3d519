/**
 * A wait begins and ends under the run's row lock. Whoever comes first, and however close together: no run waits for nothing, no decision is lost,
 * and of two that exclude each other one wins.
 */
import type { ApprovalDecision } from "@drover/harness";
import { DroverError } from "@drover/protocol";
import { type ApprovalRecord, cancelRun, decideApproval, raiseRunBudget, setBudget } from "@drover/runs";
import { openPool, postgresBlobs, transaction } from "@drover/storage";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { leaveRuns } from "../../packages/runs/src/moves/leave.ts";
import { findResumable, resumeRuns } from "../../packages/runs/src/moves/park.ts";
import { findExpired } from "../../packages/runs/src/people/approvals.ts";
import { createBench, input, logger } from "./bench.ts";
import { createOwner } from "./owner.ts";

let bench: Awaited<ReturnType<typeof createBench>>;
let owner: Awaited<ReturnType<typeof createOwner>>;
beforeAll(async () => {
  bench = await createBench();
  owner = await createOwner(bench);
});
afterAll(() => bench.close());

const rounds = 50;
const yes: ApprovalDecision = { decision: "approve", by: "key_a" };
const decide = (asked: ApprovalRecord, decision: ApprovalDecision = yes) =>
  decideApproval(bench.pool, bench.blobs, asked, decision);
/** What a call that may lose answers with: the error table's code, or what it gave. */
const orCode = <T>(promise: Promise<T>) =>
  promise.catch((error: unknown) => {
    if (error instanceof DroverError) return error.code;
    throw error;
  });
const finals = ["completed", "partial", "failed", "cancelled"];
/** Either first, now this one, now that one, each after a random part of a millisecond. */
const race = <A, B>(round: number, a: () => Promise<A>, b: () => Promise<B>): Promise<[A, B]> => {
  const [first, second] = round % 2 === 0 ? [a(), b()] : ([b(), a()] as const).toReversed();
  return Promise.all([first as Promise<A>, second as Promise<B>]);
};

/** No run waits for an answer that nobody owes, no open question belongs to a run that ended, the log's numbers have no gap. */
async function expectSound(): Promise<void> {
  const { rows } = await bench.pool.query<{ stuck: number; orphaned: number; gaps: number }>(
    `SELECT (SELECT count(*) FROM runs r WHERE status = 'waiting' AND waiting_for = 'approval'
               AND NOT EXISTS (SELECT FROM approvals a WHERE a.run_id = r.id AND a.status = 'pending')) AS stuck,
            (SELECT count(*) FROM approvals a JOIN runs r ON r.id = a.run_id
             WHERE a.status = 'pending' AND r.status IN ('completed', 'partial', 'failed', 'cancelled')) AS orphaned,
            (SELECT count(*) FROM runs r WHERE last_seq <> (SELECT count(*) FROM run_events e WHERE e.run_id = r.id)) AS gaps`,
  );
  expect(rows[0]).toEqual({ stuck: 0, orphaned: 0, gaps: 0 });
}

describe("a decision and the park", () => {
  test("decided before: the park does not wait, the run is due again", async () => {
    const run = await owner.own();
    const asked = await owner.ask(run);
    expect(await decide(asked)).toEqual({ runId: run.id, resumed: null });
    expect(await owner.park(run)).toMatchObject({ status: "queued", woken: true });
    expect((await owner.types(run.id)).slice(-2)).toEqual(["approval.decided", "run.resumed"]);
    await expectSound();
  });

  test("decided after: the decision moves it on", async () => {
    const run = await owner.own();
    const asked = await owner.ask(run);
    expect(await owner.park(run)).toMatchObject({ status: "waiting" });
    expect((await decide(asked)).resumed).toMatchObject({ status: "queued", woken: true });
    expect((await owner.types(run.id)).slice(-3)).toEqual(["run.waiting", "approval.decided", "run.resumed"]);
    const again = await owner.claim(run.id);
    expect(again.epoch).toBe(run.epoch + 1);
    await expectSound();
  });

  test("a decision that is not committed holds the park up, and is seen by it", async () => {
    const run = await owner.own();
    const asked = await owner.ask(run);
    let parked: Promise<unknown> = Promise.resolve();
    await transaction(bench.pool, async (tx) => {
      await tx.query("SELECT FROM runs WHERE id = $1 FOR UPDATE", [run.id]);
      parked = owner.park(run);
      await expect
        .poll(
          async () =>
            (
              await bench.pool.query(
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
              )
            ).rowCount,
        )
        .toBe(1);
      await tx.query(
        "UPDATE approvals SET status = 'approved', decided_at = now(), decided_by = 'key_a', decision = '{}' WHERE id = $1",
        [asked.id],
      );
    });
    expect(await parked).toMatchObject({ status: "queued" });
  });

  test(`at the same time, ${rounds} times`, async () => {
    const seen = new Set<string>();
    for (let round = 0; round < rounds; round++) {
      const run = await owner.own();
      const asked = await owner.ask(run);
      const [decided, parked] = await race(
        round,
        () => decide(asked),
        () => owner.park(run),
      );
      // One of the two made it due, and it is.
      expect([decided.resumed?.status, parked!.status].filter((status) => status === "queued")).toHaveLength(1);
      expect(await bench.row(run.id)).toMatchObject({ status: "queued", woken: true, wake: 2 });
      seen.add(parked!.status);
    }
    expect(seen).toEqual(new Set(["queued", "waiting"]));
    await expectSound();
  });

  test("of two questions, the last decision moves it on, whichever that is", async () => {
    for (let round = 0; round < rounds; round++) {
      const run = await owner.own();
      const [one, two] = [await owner.ask(run), await owner.ask(run)];
      const results = await Promise.all([
        ...(round % 2 === 0 ? [owner.park(run)] : []),
        decide(one).then(({ resumed }) => resumed),
        decide(two).then(({ resumed }) => resumed),
        ...(round % 2 === 1 ? [owner.park(run)] : []),
      ]);
      expect(results.filter((left) => left?.status === "queued")).toHaveLength(1);
      expect(await bench.row(run.id)).toMatchObject({ status: "queued", wake: 2 });
    }
    await expectSound();
  });
});

test(`two decisions at once: exactly one holds, ${rounds} times`, async () => {
  for (let round = 0; round < rounds; round++) {
    const run = await owner.own();
    const asked = await owner.ask(run);
    await owner.park(run);
    const no: ApprovalDecision = { decision: "reject", by: "key_b" };
    const results = await race(
      round,
      () => orCode(decide(asked)),
      () => orCode(decide(asked, no)),
    );
    expect(results.filter((result) => result === "conflict")).toHaveLength(1);
    const { rows } = await bench.pool.query("SELECT status, decided_by FROM approvals WHERE id = $1", [asked.id]);
    const won =
      results[0] === "conflict"
        ? { status: "rejected", decided_by: "key_b" }
        : { status: "approved", decided_by: "key_a" };
    expect(rows[0]).toEqual(won);
    expect((await owner.types(run.id)).filter((type) => type === "approval.decided")).toHaveLength(1);
    const audit = await bench.pool.query(
      "SELECT action FROM audit_entries WHERE run_id = $1 AND action LIKE 'approval.%ed' AND action <> 'approval.requested'",
      [run.id],
    );
    expect(audit.rows).toEqual([{ action: `approval.${won.status}` }]);
  }
  await expectSound();
});

test("the one who lost is told how it was decided, and by whom", async () => {
  const run = await owner.own();
  const asked = await owner.ask(run);
  await decide(asked);
  await expect(decide(asked, { decision: "reject", by: "key_b" })).rejects.toThrow("It is approved already, by key_a.");
});

describe("a cancel and a decision", () => {
  test(`at the same time, ${rounds} times: the run is cancelled, and the question closed, by either`, async () => {
    const seen = new Set<unknown>();
    // A busy machine may favour one of them for long.
    for (let round = 0; round < rounds || (seen.size < 2 && round < 20 * rounds); round++) {
      const run = await owner.own();
      const asked = await owner.ask(run);
      await owner.park(run);
      const [decided] = await race(
        round,
        () => orCode(decide(asked)),
        () => cancelRun(bench.pool, "default", run.id, "key_a"),
      );
      expect((await bench.row(run.id)).status).toBe("cancelled");
      const { rows } = await bench.pool.query("SELECT status FROM approvals WHERE id = $1", [asked.id]);
      expect(rows[0].status).toBe(decided === "conflict" ? "expired" : "approved");
      seen.add(decided === "conflict" ? "cancel first" : "decision first");
    }
    expect(seen.size).toBe(2);
    await expectSound();
  });

  test(`a cancel and the park, ${rounds} times: it never waits on`, async () => {
    for (let round = 0; round < rounds; round++) {
      const run = await owner.own();
      await owner.ask(run);
      await race(
        round,
        () => owner.park(run),
        () => cancelRun(bench.pool, "default", run.id, "key_a"),
      );
      expect(await bench.row(run.id)).toMatchObject({ status: "cancelled", waiting_for: null, worker: null });
      expect((await owner.types(run.id)).filter((type) => finals.includes(type.slice(4)))).toEqual(["run.cancelled"]);
    }
    await expectSound();
  });
});

describe("expiry", () => {
  test("a person is too late, by the database's clock, whether the rescuer was there or not", async () => {
    const run = await owner.own();
    const asked = await owner.ask(run, -1000);
    await owner.park(run);
    await expect(decide(asked)).rejects.toThrow("It is expired already.");
    expect((await findExpired(bench.pool, 1000)).map(({ id }) => id)).toContain(asked.id);
    expect((await decide(asked, { decision: "expire", by: "system" })).resumed).toMatchObject({ status: "queued" });
    expect(await findExpired(bench.pool, 1000)).toEqual([]);
  });

  test(`two rescuers and a cancel at once, ${rounds} times: it is closed once`, async () => {
    const expire: ApprovalDecision = { decision: "expire", by: "system" };
    for (let round = 0; round < rounds; round++) {
      const run = await owner.own();
      const asked = await owner.ask(run, -1000);
      await owner.park(run);
      const results = await Promise.all([
        orCode(decide(asked, expire)),
        ...(round % 2 === 0 ? [cancelRun(bench.pool, "default", run.id, "key_a")] : []),
        orCode(decide(asked, expire)),
      ]);
      expect(
        results.filter((result) => typeof result === "object" && result && "resumed" in result).length,
      ).toBeLessThanOrEqual(1);
      expect((await bench.row(run.id)).status).toBe(round % 2 === 0 ? "cancelled" : "queued");
      expect((await owner.types(run.id)).filter((type) => type === "approval.decided").length).toBeLessThanOrEqual(1);
    }
    await expectSound();
  });
});

describe("money", () => {
  const capped = { input: input({ max_cost_usd: 1, action_budget: 10 }) };
  const atRun = { waitingFor: "budget", level: "run", data: '{"waiting_for":"budget","level":"run"}' } as const;
  const raise = (id: string, maxCostUsd = 2) =>
    raiseRunBudget(bench.pool, bench.blobs, { tenant: "default", id }, { maxCostUsd }, "key_a");

  test(`a raise and the park at the same time, ${rounds} times: it goes on, once`, async () => {
    const seen = new Set<string>();
    for (let round = 0; round < rounds; round++) {
      const run = await owner.own(capped);
      const [raised, parked] = await race(
        round,
        () => raise(run.id),
        () => owner.park(run, atRun),
      );
      expect([raised!.resumed?.status, parked!.status].filter((status) => status === "queued")).toHaveLength(1);
      expect(await bench.row(run.id)).toMatchObject({ status: "queued", wake: 2, waiting_level: null });
      seen.add(parked!.status);
    }
    expect(seen).toEqual(new Set(["queued", "waiting"]));
  });

  test("a raise of a run with large contents needs one connection, and sees raises made meanwhile", async () => {
    const run = await owner.own({ input: input({ query: "x".repeat(50_000), max_cost_usd: 1 }) });
    await owner.park(run, atRun);
    const pool = openPool({ url: bench.url, logger, max: 1, connectTimeoutMs: 2000 });
    const raiseBy = (maxCostUsd: number) =>
      raiseRunBudget(pool, postgresBlobs(pool), { tenant: "default", id: run.id }, { maxCostUsd }, "key_a");
    const [one, two] = await Promise.allSettled([raiseBy(3), raiseBy(3)]);
    await pool.end();
    expect([one!.status, two!.status].sort()).toEqual(["fulfilled", "rejected"]);
    expect(await bench.row(run.id)).toMatchObject({ status: "queued", budget_raises: 1 });
  });

  test("a raise that the owner knew of does not keep it from waiting", async () => {
    const run = await owner.own(capped);
    await raise(run.id);
    expect(await owner.park(run, { ...atRun, raises: 1 })).toMatchObject({ status: "waiting" });
    expect((await raise(run.id, 3))!.resumed).toMatchObject({ status: "queued" });
  });

  test("what is no raise is refused by field, and leaves it waiting", async () => {
    const run = await owner.own(capped);
    await owner.park(run, atRun);
    await expect(raise(run.id, 0.5)).rejects.toMatchObject({
      code: "invalid_input",
      errors: [{ path: "max_cost_usd", message: expect.stringContaining("more than the cap there is now (1)") }],
    });
    expect((await bench.row(run.id)).status).toBe("waiting");
    expect(
      await raiseRunBudget(bench.pool, bench.blobs, { tenant: "other", id: run.id }, { maxCostUsd: 2 }, "key_a"),
    ).toBeNull();
  });

  test.each(["session", "tenant_day", "tenant_month"])(
    "a cap of the %s that is raised between the refusal and the park is not missed",
    async (level) => {
      const run = await owner.own();
      // The call was refused here; now somebody raises the cap, and finds nobody waiting.
      const caps = { day: 1e9, month: 1e9, session: 1e9 };
      expect((await setBudget(bench.pool, "default", caps, "key_a")).map(({ runId }) => runId)).not.toContain(run.id);
      expect(await owner.park(run, { ...atRun, level })).toMatchObject({ status: "queued" });
      // It looks again, and is refused again: now it waits.
      const again = await owner.claim(run.id);
      expect(await owner.park(again, { ...atRun, level })).toMatchObject({ status: "waiting" });
      expect((await setBudget(bench.pool, "default", { day: 2e9 }, "key_a")).map(({ runId }) => runId)).toContain(
        run.id,
      );
    },
  );

  test(`a cap of the tenant and the park at the same time, ${rounds} times`, async () => {
    const seen = new Set<string>();
    for (let round = 0; round < rounds; round++) {
      const run = await owner.own();
      const [moved, parked] = await race(
        round,
        () => setBudget(bench.pool, "default", { month: 1e9 + round }, "key_a"),
        () => owner.park(run, { ...atRun, level: "tenant_month" }),
      );
      const resumed = moved.filter(({ runId }) => runId === run.id);
      expect([...resumed, parked!].filter(({ status }) => status === "queued")).toHaveLength(1);
      expect((await bench.row(run.id)).status).toBe("queued");
      seen.add(parked!.status);
    }
    expect(seen).toEqual(new Set(["queued", "waiting"]));
  });
});

describe("an end", () => {
  test("closes the questions of the run with it, for its owner", async () => {
    const run = await owner.own();
    const asked = await owner.ask(run);
    await leaveRuns(bench.pool, [await bench.leaving(run, { status: "partial" })]);
    const { rows } = await bench.pool.query("SELECT status, decided_by, decision FROM approvals WHERE id = $1", [
      asked.id,
    ]);
    expect(rows[0]).toMatchObject({ status: "expired", decided_by: "system", decision: { note: "the run ended" } });
    await expect(decide(asked)).rejects.toMatchObject({ code: "conflict" });
    await expectSound();
  });

  test("closes them for the rescuer, who ends a run that waits past its deadline", async () => {
    const run = await owner.own();
    const asked = await owner.ask(run);
    await owner.park(run);
    await leaveRuns(bench.pool, [await bench.leaving(run, { status: "failed" })], "unowned");
    expect(await bench.row(run.id)).toMatchObject({ status: "failed", waiting_for: null });
    await expect(decide(asked)).rejects.toMatchObject({ code: "conflict" });
    await expectSound();
  });

  test("a hand-over leaves them open", async () => {
    const run = await owner.own();
    const asked = await owner.ask(run);
    await leaveRuns(bench.pool, [await bench.leaving(run, { status: "queued", eventType: "run.handed_over" })]);
    expect((await decide(asked)).resumed).toBeNull();
    expect((await bench.row(run.id)).status).toBe("queued");
  });

  test("an owner that lost the run neither asks nor parks", async () => {
    const run = await owner.own();
    await bench.pool.query("UPDATE runs SET epoch = epoch + 1 WHERE id = $1", [run.id]);
    await expect(owner.ask(run)).rejects.toThrow(/no longer owned/);
    expect(await owner.park(run)).toBeNull();
    expect((await bench.pool.query("SELECT FROM approvals WHERE run_id = $1", [run.id])).rowCount).toBe(0);
  });
});

test("what waits with nothing open, by whatever accident, is found and goes on; what waits for something is left alone", async () => {
  const stuck = await owner.own();
  const asked = await owner.ask(stuck);
  await owner.park(stuck);
  await bench.pool.query("UPDATE approvals SET status = 'approved', decided_at = now() WHERE id = $1", [asked.id]);
  const waiting = await owner.own();
  await owner.ask(waiting);
  await owner.park(waiting);
  const broke = await owner.own();
  await owner.park(broke, { waitingFor: "budget", level: "run" });

  const found = await findResumable(bench.pool, 1000);
  expect(found).toContain(stuck.id);
  expect(found).not.toContain(waiting.id);
  expect(found).not.toContain(broke.id);
  const resumed = await transaction(bench.pool, (tx) => resumeRuns(tx, [stuck.id, waiting.id]));
  expect(resumed.map(({ runId }) => runId)).toEqual([stuck.id]);
  expect((await bench.row(waiting.id)).status).toBe("waiting");
});

test("a cap that was changed lately, and a day that is over lately, are found by a look that does not read all that waits", async () => {
  const { pool } = bench;
  const atDay = {
    waitingFor: "budget",
    level: "tenant_day",
    data: '{"waiting_for":"budget","level":"tenant_day"}',
  } as const;
  const run = await owner.own();
  await setBudget(pool, "default", { day: 1 }, "key_a");
  await pool.query("UPDATE budgets SET changed_at = now() - interval '1 day'");
  await owner.park(run, atDay);
  const waits = (ago: string) =>
    pool.query("UPDATE runs SET waiting_since = now() - $2::interval WHERE id = $1", [run.id, ago]);
  const day = 86_400_000;
  expect(await findResumable(pool, 10, 2 * day)).not.toContain(run.id);
  await waits("26 hours");
  expect(await findResumable(pool, 10, 0)).not.toContain(run.id);
  expect(await findResumable(pool, 10, day)).toContain(run.id);
  await waits("0");
  await pool.query("UPDATE budgets SET changed_at = now() + interval '1 second'");
  expect(await findResumable(pool, 10, 60_000)).toContain(run.id);
  await waits("3 hours");
  await pool.query("UPDATE budgets SET changed_at = now() - interval '1 hour'");
  expect(await findResumable(pool, 10, 60_000)).not.toContain(run.id);
  expect(await findResumable(pool, 10)).toContain(run.id);
});

test("another tenant's key decides nothing", async () => {
  const run = await owner.own();
  const asked = await owner.ask(run);
  await owner.park(run);
  await expect(decide({ ...asked, tenant: "other" })).rejects.toMatchObject({ code: "not_found" });
  expect((await bench.row(run.id)).status).toBe("waiting");
});
