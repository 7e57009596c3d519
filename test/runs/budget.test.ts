/** Money of tenants and sessions: set aside before a call, charged with it, given back whatever happens; never more than there is. */
import { randomUUID } from "node:crypto";
import { toNanos } from "@drover/harness/worker";
import { type CapChange, readBudget, type Submission, setBudget } from "@drover/runs";
import { openPool } from "@drover/storage";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { createBudgets, releaseOrphans } from "../../packages/runs/src/money/budget.ts";
import { takeOver } from "../../packages/runs/src/moves/rescue.ts";
import { addTenant, input, logger } from "./bench.ts";
import { dataOf, live } from "./live.ts";
import { createOwner } from "./owner.ts";

const world = live();
const signal = new AbortController().signal;
/** Nano-USD of claude-sonnet-4-5: 3 USD per million tokens in, 15 out. */
const costOf = (input: number, output: number) => input * 3000 + output * 15_000;
let tenant = "";
beforeEach(async () => {
  tenant = `t${randomUUID().slice(0, 8)}`;
  await addTenant(world.bench.pool, tenant);
});

const setCap = (caps: CapChange, of = tenant) => setBudget(world.bench.pool, of, caps, "key_admin");
const submit = (more: Parameters<typeof input>[0] = {}, about: Partial<Submission> = {}) =>
  world.submit({ tenant, ...about, input: input(more) });
const accounts = async (of = tenant) =>
  (
    await world.bench.pool.query(
      "SELECT level, ref, used_nanos AS used, reserved_nanos AS reserved FROM budget_accounts WHERE tenant = $1 ORDER BY level, ref",
      [of],
    )
  ).rows;
const spent = async (of = tenant): Promise<number> =>
  (
    await world.bench.pool.query("SELECT coalesce(sum(cost_nanos), 0)::bigint AS spent FROM runs WHERE tenant = $1", [
      of,
    ])
  ).rows[0].spent;
const nothingHeld = async () => {
  expect((await world.bench.pool.query("SELECT FROM budget_reservations")).rowCount).toBe(0);
  expect((await world.bench.pool.query("SELECT FROM budget_accounts WHERE reserved_nanos <> 0")).rowCount).toBe(0);
};

describe("200 runs against one nearly empty tenant budget", () => {
  const runs = 200;
  const slots = 50;
  const wanted = 400;

  async function everybody(cap: number, output: (asked: number) => number) {
    world.models.script(({ body }) => ({
      text: "an answer",
      usage: { input: 20, output: output(Number(body.max_tokens)) },
    }));
    await setCap({ month: cap });
    for (let n = 0; n < runs; n++) await submit({ max_tokens: wanted });
    await world.start({}, slots);
    await world.until("SELECT count(*) FROM runs WHERE tenant = $1 AND finished_at IS NULL", [tenant], { count: 0 });
    const [account] = await accounts();
    expect(account).toMatchObject({ level: "tenant_month", reserved: 0 });
    expect(account.used).toBe(await spent());
    await nothingHeld();
    const { rows } = await world.bench.pool.query(
      "SELECT status, stop_reason, count(*) FROM runs WHERE tenant = $1 GROUP BY 1, 2 ORDER BY 1",
      [tenant],
    );
    expect(rows.map(({ status, stop_reason }) => [status, stop_reason])).toEqual([
      ["completed", null],
      ["failed", "budget"],
    ]);
    return { used: account.used as number, completed: rows[0].count as number };
  }

  test("replies as long as allowed: not a nano more is spent than there is, and no call's worth is left over", async () => {
    const cap = costOf(500, 10 * wanted);
    const { used, completed } = await everybody(cap, (asked) => asked);
    expect(used).toBeLessThanOrEqual(cap);
    // What is left pays for no call of 256 tokens, its input reckoned at half its bytes.
    const inputTokens = Math.max(...world.models.calls.map(({ rawBody }) => rawBody.length));
    expect(cap - used).toBeLessThan(costOf(inputTokens, 256) * 1.25);
    expect(completed).toBeGreaterThanOrEqual(9);
  }, 60_000);

  test("a provider that writes twice what it was asked: too much by the calls in flight at most", async () => {
    const cap = costOf(500, 10 * wanted);
    const { used } = await everybody(cap, (asked) => 2 * asked);
    // Each call in flight was set aside in full, and costs at most `wanted` tokens more than that.
    expect(used - cap).toBeLessThanOrEqual(slots * costOf(0, wanted));
    // Nothing is set aside any more once it is spent: at least half of it was, before the first refusal.
    expect(used).toBeGreaterThan(cap / 2);
  }, 60_000);
});

describe("what is set aside", () => {
  const month = 1_000_000;

  async function holder() {
    const owner = await createOwner(world.bench);
    const budgets = createBudgets(world.bench.pool, signal);
    const own = async () => {
      const run = await owner.own({ tenant });
      return { run, budget: budgets(run, signal) };
    };
    return { owner, budgets, own };
  }

  test("is what every level has left at most, and comes back uncharged", async () => {
    await setCap({ month, day: 600_000 });
    const { own } = await holder();
    const [one, two] = [await own(), await own()];
    expect(one.run.capped).toBe(true);
    expect(await one.budget.reserve(400_000, 1)).toEqual({ granted: 400_000 });
    expect(await two.budget.reserve(400_000, 1)).toEqual({ granted: 200_000 });
    expect((await accounts()).map(({ level, reserved }) => [level, reserved])).toEqual([
      ["tenant_day", 600_000],
      ["tenant_month", 600_000],
    ]);
    await one.budget.settle(0);
    await one.budget.settle(0);
    await two.budget.settle(0);
    expect((await accounts()).map(({ used, reserved }) => [used, reserved])).toEqual([
      [0, 0],
      [0, 0],
    ]);
    await nothingHeld();
  });

  test("waits while others hold what is missing, and says which level is spent when nobody does", async () => {
    await setCap({ month, day: 600_000 });
    const { own, owner } = await holder();
    const [one, two] = [await own(), await own()];
    await one.budget.reserve(600_000, 600_000);
    let granted: unknown;
    const waiting = two.budget.reserve(500_000, 500_000).then((answer) => {
      granted = answer;
    });
    // Many turns of the database, none of which grants it.
    for (let turn = 0; turn < 10; turn++)
      expect(await accounts()).toMatchObject([{ reserved: 600_000 }, { reserved: 600_000 }]);
    expect(granted).toBeUndefined();
    await one.budget.settle(0);
    await waiting;
    expect(granted).toEqual({ granted: 500_000 });
    // Charged with the call's end.
    const usage = { input: 1, output: 1, cached: 0 };
    const data = {
      iteration: 1,
      model: "m/m",
      text: "",
      tool_calls: [],
      finish_reason: "stop",
      usage,
      cost_usd: 0.0003,
      duration_ms: 1,
    };
    await owner.append({
      runId: two.run.id,
      epoch: two.run.epoch,
      tenant,
      event: { type: "model.call", data },
      settles: true,
    });
    expect((await accounts()).map(({ used, reserved }) => [used, reserved])).toEqual([
      [300_000, 0],
      [300_000, 0],
    ]);
    expect(await one.budget.reserve(500_000, 500_000)).toEqual({ exhausted: "tenant_day" });
    await nothingHeld();
  });

  test("by a worker that died is replaced by the next owner's, or given back when there is none", async () => {
    await setCap({ month });
    const { own, owner, budgets } = await holder();
    const { run, budget } = await own();
    await budget.reserve(400_000, 1);
    const other = await own();
    await other.budget.reserve(300_000, 1);
    await releaseOrphans(world.bench.pool);
    expect(await accounts()).toMatchObject([{ reserved: 700_000 }]);
    await world.bench.pool.query("UPDATE runs SET worker = gen_random_uuid() WHERE id = ANY($1)", [
      [run.id, other.run.id],
    ]);
    await takeOver(world.bench.pool, 10);
    const next = await owner.claim(run.id);
    expect(await budgets(next, signal).reserve(500_000, 1)).toEqual({ granted: 500_000 });
    expect(await accounts()).toMatchObject([{ reserved: 800_000 }]);
    await releaseOrphans(world.bench.pool);
    expect(await accounts()).toMatchObject([{ reserved: 500_000, used: 0 }]);
    // The dead one comes back to life, and gives back nothing that is not its own.
    await budget.settle(0);
    expect(await accounts()).toMatchObject([{ reserved: 500_000 }]);
    await budgets(next, signal).settle(0);
    await world.bench.pool.query("UPDATE runs SET worker = gen_random_uuid() WHERE id = $1", [run.id]);
    await takeOver(world.bench.pool, 10);
    await releaseOrphans(world.bench.pool);
    await nothingHeld();
  });

  test("a call of unknown cost is charged what it was allowed", async () => {
    await setCap({ month });
    const { own, owner } = await holder();
    const { run, budget } = await own();
    await budget.reserve(400_000, 1);
    const usage = { input: 0, output: 0, cached: 0 };
    const data = {
      iteration: 1,
      model: "m/m",
      text: "",
      tool_calls: [],
      finish_reason: "stop",
      usage,
      cost_usd: null,
      duration_ms: 1,
    };
    await owner.append({ runId: run.id, epoch: run.epoch, tenant, event: { type: "model.call", data }, settles: true });
    expect(await accounts()).toMatchObject([{ used: 400_000, reserved: 0 }]);
  });

  test("many tenants and sessions, several workers, orphans and changing caps at once: no deadlock is seen, the books are right", async () => {
    const owner = await createOwner(world.bench);
    const tenants = await Promise.all(
      ["a", "b", "c"].map(async (name) => {
        const id = `${tenant}${name}`;
        await addTenant(world.bench.pool, id);
        await setCap({ day: 1e12, month: 1e12, session: 1e12 }, id);
        return id;
      }),
    );
    const sessions = [randomUUID(), randomUUID(), null];
    const runs = await Promise.all(
      Array.from({ length: 45 }, (_, n) =>
        owner.own({ tenant: tenants[n % 3]!, sessionId: sessions[Math.floor(n / 3) % 3]! }),
      ),
    );
    const workers = [0, 1, 2].map(() => createBudgets(world.bench.pool, signal));
    const charged = new Map<string, number>();
    let busy = true;
    const others = (async () => {
      for (let n = 0; busy; n++) {
        await releaseOrphans(world.bench.pool);
        await setCap({ day: 1e12 + n }, tenants[n % 3]);
      }
    })();
    await Promise.all(
      runs.map(async (run, n) => {
        const budget = workers[n % 3]!(run, signal);
        for (let turn = 0; turn < 6; turn++) {
          expect(await budget.reserve(1000 + n, 1)).toEqual({ granted: 1000 + n });
          if ((n + turn) % 3 === 0) {
            await budget.settle(0);
            continue;
          }
          const usage = { input: 1, output: 1, cached: 0 };
          const cost = 100 + n + turn;
          const data = {
            iteration: turn + 1,
            model: "m/m",
            text: "",
            tool_calls: [],
            finish_reason: "stop",
            usage,
            cost_usd: cost / 1e9,
            duration_ms: 1,
          };
          await owner.append({
            runId: run.id,
            epoch: run.epoch,
            tenant: run.tenant,
            event: { type: "model.call", data },
            settles: true,
          });
          budget.charged();
          for (const key of [run.tenant, ...(run.sessionId ? [`${run.tenant} ${run.sessionId}`] : [])])
            charged.set(key, (charged.get(key) ?? 0) + cost);
        }
      }),
    );
    busy = false;
    await others;
    await nothingHeld();
    for (const id of tenants) {
      for (const { level, ref, used } of await accounts(id))
        expect(used, `${level} ${ref}`).toBe(charged.get(level === "session" ? `${id} ${ref}` : id));
      expect(await accounts(id)).toHaveLength(4);
      expect(await spent(id)).toBe(charged.get(id));
    }
  }, 60_000);
});

describe("what counts", () => {
  const answer = (output: number) => world.models.script(() => ({ text: "an answer", usage: { input: 20, output } }));
  const one = costOf(20, 300);

  /** A final run of earlier times: the row of `id`, submitted so many days ago. */
  const earlier = (id: string, days: number) =>
    world.bench.pool.query(
      `WITH moved AS (SELECT (jsonb_populate_record(r, jsonb_build_object('id', uuidv7_floor(now() - $2 * interval '1 day')))).* FROM runs r WHERE id = $1)
       INSERT INTO runs SELECT * FROM moved`,
      [id, days],
    );

  test("a cap set in the middle of the month counts what was spent before", async () => {
    answer(300);
    await world.start();
    await world.rest(await submit(), tenant);
    expect(await accounts()).toEqual([]);
    expect(await readBudget(world.bench.pool, tenant)).toEqual({
      day: { cap: null, used: one },
      month: { cap: null, used: one },
      session: { cap: null },
    });
    await setCap({ month: one + costOf(0, 100) });
    const { run, outcome } = await world.rest(await submit(), tenant);
    expect(run).toMatchObject({ status: "failed", stopReason: "budget" });
    expect(outcome!.error!.message).toBe("The tenant's budget of the month is used up.");
    expect(world.models.count).toBe(1);
    expect(await accounts()).toMatchObject([{ level: "tenant_month", used: one, reserved: 0 }]);
  });

  test("the first reservation of a session, a day or a month reads none of the tenant's history", async () => {
    const { bench } = world;
    const owner = await createOwner(bench);
    const template = await owner.own({ tenant });
    // Finished runs of last year and of today, of many sessions.
    await bench.pool.query(
      `INSERT INTO runs (id, tenant, agent, session_id, status, woken, available_at, soft_ms, hard_ms, cost_nanos, finished_at)
       SELECT overlay(gen_random_uuid()::text placing CASE WHEN n % 2 = 0 THEN '0190' ELSE substr($1::text, 1, 4) END from 1 for 4)::uuid, $2,
              'default', md5((n % 500)::text)::uuid, 'completed', true, now(), 1000, 2000, 1000, now()
       FROM generate_series(1, 20000) n`,
      [template.id, tenant],
    );
    await bench.pool.query("ALTER TABLE runs SET (autovacuum_enabled = false); ANALYZE runs");
    // One connection for all that is counted: another's numbers may come to the server's statistics later.
    const pool = openPool({ url: bench.url, logger, max: 1 });
    onTestFinished(() => pool.end());
    await setBudget(pool, tenant, { day: 1e12, month: 1e12, session: 1e9 }, "key_admin");
    const read = async () => {
      await pool.query("SELECT pg_stat_force_next_flush()");
      const { rows } = await bench.pool.query(
        "SELECT pg_stat_clear_snapshot(), seq_tup_read + coalesce(idx_tup_fetch, 0) AS rows FROM pg_stat_user_tables WHERE relname = 'runs'",
      );
      return rows[0].rows as number;
    };
    const budgets = createBudgets(pool, signal);
    const before = await read();
    const sessions = [randomUUID(), (await bench.pool.query("SELECT md5('7')::uuid AS id")).rows[0].id];
    for (const sessionId of sessions) {
      const budget = budgets({ id: template.id, epoch: template.epoch, tenant, sessionId, capped: true }, signal);
      expect(await budget.reserve(1000, 1)).toEqual({ granted: 1000 });
    }
    // The old session's own 40 runs, and what the run itself takes.
    expect((await read()) - before).toBeLessThan(200);
    const all = await accounts();
    expect(
      all
        .filter(({ level }) => level === "session")
        .map(({ used }) => used)
        .sort(),
    ).toEqual([0, 40_000]);
    // Another day and month: their accounts begin at nothing.
    await bench.pool.query("DELETE FROM budget_accounts WHERE tenant = $1 AND level <> 'session'", [tenant]);
    const budget = budgets({ id: template.id, epoch: template.epoch, tenant, sessionId: null, capped: true }, signal);
    expect(await budget.reserve(1000, 1)).toEqual({ granted: 1000 });
    expect((await read()) - before).toBeLessThan(200);
  });

  test("yesterday and last month are over: each has an account of its own", async () => {
    answer(300);
    await world.start();
    const { run } = await world.rest(await submit(), tenant);
    await earlier(run.id, 2);
    await earlier(run.id, 40);
    await world.bench.pool.query("UPDATE runs SET cost_nanos = 7 WHERE id = $1", [run.id]);
    const now = await readBudget(world.bench.pool, tenant);
    expect(now.day.used).toBe(7);
    // Two days ago is this month or the last.
    expect([7, 7 + one]).toContain(now.month.used);

    await setCap({ day: 10 * one, month: 10 * one });
    await world.rest(await submit(), tenant);
    expect((await accounts()).map(({ level, used }) => [level, used])).toEqual([
      ["tenant_day", 7 + one],
      ["tenant_month", now.month.used + one],
    ]);
    // The day that begins finds no account of its own, and starts at nothing: under a cap nobody has spent in it before.
    await world.bench.pool.query(
      "UPDATE budget_accounts SET ref = '2026-01-01', used_nanos = $2 WHERE tenant = $1 AND level = 'tenant_day'",
      [tenant, 10 * one],
    );
    expect((await world.rest(await submit(), tenant)).run.status).toBe("completed");
    expect((await accounts()).filter(({ level }) => level === "tenant_day")).toMatchObject([
      { used: 10 * one },
      { used: one },
    ]);
  });

  test("a run that waits for a day that is over goes on by itself", async () => {
    answer(300);
    await world.start();
    await setCap({ day: 0 });
    const { run, log } = await world.rest(await submit({ on_budget: "pause" }), tenant);
    expect(run).toMatchObject({ status: "waiting", waitingFor: "budget", waitingLevel: "tenant_day" });
    expect(dataOf(log, "run.waiting")).toEqual([{ waiting_for: "budget", level: "tenant_day" }]);
    await world.bench.pool.query("UPDATE budgets SET day_nanos = $2 WHERE tenant = $1", [tenant, 10 * one]);
    await world.bench.pool.query("UPDATE runs SET waiting_since = now() - interval '1 day' WHERE id = $1", [run.id]);
    await world.until("SELECT status FROM runs WHERE id = $1", [run.id], { status: "completed" });
  });

  test("a session has a cap of its own; its neighbour and runs of no session do not feel it", async () => {
    answer(300);
    await world.start();
    await setCap({ session: one + costOf(0, 100) });
    const [session, other] = [randomUUID(), randomUUID()];
    const statusOf = async (sessionId: string | null) => {
      const { run, outcome } = await world.rest(await submit({}, { sessionId }), tenant);
      return [run.status, outcome!.error?.message];
    };
    expect(await statusOf(session)).toEqual(["completed", undefined]);
    expect(await statusOf(session)).toEqual(["failed", "The session's budget is used up."]);
    expect(await statusOf(other)).toEqual(["completed", undefined]);
    expect(await statusOf(null)).toEqual(["completed", undefined]);
    expect((await accounts()).map(({ level, used }) => [level, used])).toEqual([
      ["session", one],
      ["session", one],
    ]);
  });

  test("a model without a price is refused while a cap stands, and used when none does", async () => {
    answer(300);
    await world.start();
    const unpriced = { model: "ollama/some-model" };
    await setCap({ month: 1e9 });
    expect((await world.rest(await submit(unpriced), tenant)).run).toMatchObject({
      status: "failed",
      stopReason: "price_unknown",
    });
    expect(world.models.count).toBe(0);
    await setCap({ month: null });
    expect((await world.rest(await submit(unpriced), tenant)).run.status).toBe("completed");
  });

  test("a cap that was taken away while a call was under way has missed nothing when it comes back", async () => {
    const owner = await createOwner(world.bench);
    await setCap({ month: 1e9 });
    const run = await owner.own({ tenant });
    const budget = createBudgets(world.bench.pool, signal)(run, signal);
    await budget.reserve(1000, 1);
    await setCap({ month: null });
    await world.bench.pool.query("UPDATE runs SET cost_nanos = 5000 WHERE id = $1", [run.id]);
    expect((await readBudget(world.bench.pool, tenant)).month.used).toBe(5000);
    await setCap({ month: 1e9 });
    expect(await accounts()).toMatchObject([{ used: 5000, reserved: 1000 }]);
    await budget.settle(0);
    expect((await readBudget(world.bench.pool, tenant)).month.used).toBe(5000);
    await budget.reserve(1000, 1);
    expect(await accounts()).toMatchObject([{ used: 5000, reserved: 1000 }]);
    await budget.settle(0);
  });

  test("pause, and a raised cap: exactly the runs that wait for it go on", async () => {
    answer(300);
    await world.start({ agents: { default: { onBudget: "pause" } } });
    const other = `${tenant}x`;
    await addTenant(world.bench.pool, other);
    await setCap({ month: 0 });
    await setCap({ month: 0 }, other);
    const mine = [await submit(), await submit()];
    const ofOwnCap = await submit({ max_cost_usd: 0.0001 });
    const theirs = await world.submit({ tenant: other, input: input() });
    for (const id of [...mine, ofOwnCap]) expect((await world.rest(id, tenant)).run.status).toBe("waiting");
    expect((await world.rest(theirs, other)).run).toMatchObject({ status: "waiting", waitingLevel: "tenant_month" });
    expect((await world.bench.row(ofOwnCap)).waiting_level).toBe("run");
    expect(world.models.count).toBe(0);

    const resumed = await setCap({ month: toNanos(1) });
    expect(resumed.map(({ runId }) => runId).sort()).toEqual(mine.toSorted());
    await world.wake(resumed);
    for (const id of mine) expect((await world.rest(id, tenant)).run.status).toBe("completed");
    expect((await world.bench.row(ofOwnCap)).status).toBe("waiting");
    expect((await world.bench.row(theirs)).status).toBe("waiting");
    const { rows } = await world.bench.pool.query(
      "SELECT actor, action, data FROM audit_entries WHERE tenant = $1 AND action = 'budget.changed' ORDER BY at DESC",
      [tenant],
    );
    expect(rows[0]).toEqual({ actor: "key_admin", action: "budget.changed", data: { month: 1e9 } });
  });
});
