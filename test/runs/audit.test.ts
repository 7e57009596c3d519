/** The durable audit trail on a real Postgres: sequencing under every disturbance, checkpoints, and verification of tables somebody tampered with. */
import { generateKeyPairSync } from "node:crypto";
import { type ChainedEntry, publicKeyOf, verifyChain } from "@drover/harness";
import { canonicalJson, toWireId, uuidv7 } from "@drover/protocol";
import {
  readAudit,
  readCheckpoints,
  readTrail,
  recordAudit,
  type Sequencer,
  startSequencer,
  verifyAudit,
} from "@drover/runs";
import { migrate, openPool, type Pool, type Queryable, transaction } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { afterEach, describe, expect, test, vi } from "vitest";
import { createDatabase } from "../support/database.ts";
import { startPostgres } from "../support/postgres.ts";
import { startProxy } from "../support/proxy.ts";

const logger = createLogger({ name: "test", level: process.env.TEST_LOG ?? "silent" });
const { privateKey } = generateKeyPairSync("ed25519");
const publicKeys = [publicKeyOf(privateKey)];
const undo: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

async function setUp(): Promise<{ url: string; pool: Pool; sequence(signing?: Signing): Sequencer }> {
  const database = await createDatabase();
  undo.push(() => database.drop());
  const pool = openPool({ url: database.url, logger, max: 20 });
  undo.push(() => pool.end());
  return { url: database.url, pool, sequence: (signing) => sequencer(pool, database.url, signing) };
}

interface Signing {
  everyEntries: number;
  withinMs: number;
}

function sequencer(pool: Pool, directUrl: string, signing?: Signing): Sequencer {
  const started = startSequencer({
    pool,
    directUrl,
    logger,
    ...(signing && { signing: { key: privateKey, ...signing } }),
  });
  undo.push(() => started.close());
  return started;
}

const entry = (
  tenant: string,
  action = "tool.called",
  data: Record<string, unknown> = {},
  runId: string | null = null,
) => ({
  tenant,
  actor: "worker",
  action,
  data,
  runId,
});
const record = (db: Queryable, tenant: string, ...actions: string[]) =>
  recordAudit(
    db,
    actions.map((action) => entry(tenant, action)),
  );

const one = async (pool: Pool, text: string, values: unknown[] = []) => (await pool.query(text, values)).rows[0];
const unchained = async (pool: Pool): Promise<number> =>
  (await one(pool, "SELECT count(*) AS n FROM audit_unchained")).n;
const chained = (pool: Pool, entries = 0) =>
  vi.waitFor(
    async () => {
      const { n } = await one(pool, "SELECT count(*) AS n FROM audit_chain");
      expect(n).toBeGreaterThanOrEqual(entries);
      expect(await unchained(pool)).toBe(0);
    },
    { timeout: 25_000, interval: 20 },
  );
async function trailOf(pool: Pool, tenant: string): Promise<ChainedEntry[]> {
  const trail: ChainedEntry[] = [];
  for await (const entry of readTrail(pool, tenant)) trail.push(entry);
  return trail;
}
const actionsOf = async (pool: Pool, tenant: string) => (await trailOf(pool, tenant)).map(({ action }) => action);
const leaders = async (pool: Pool): Promise<number[]> =>
  (
    await pool.query(
      `SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
       WHERE l.locktype = 'advisory' AND l.granted AND a.application_name = 'drover-sequencer' AND a.datname = current_database()`,
    )
  ).rows.map(({ pid }) => pid);

/** Every entry is in its own tenant's chain, once, without a gap, and all verify. */
async function expectWhole(pool: Pool, perTenant: Record<string, number>): Promise<void> {
  const trails = await verifyAudit(pool);
  expect(Object.fromEntries(trails.map(({ tenant, entries }) => [tenant, entries]))).toEqual(perTenant);
  for (const trail of trails) expect(trail).toMatchObject({ bad: null, stray: null, unchained: 0 });
  const { rows } = await pool.query(
    "SELECT FROM audit_entries e FULL JOIN audit_chain c ON c.entry_id = e.id AND c.tenant = e.tenant WHERE e.id IS NULL OR c.seq IS NULL",
  );
  expect(rows).toEqual([]);
}

describe("the sequencer", () => {
  test("chains what many writers commit, in many tenants, while several sequencers run and one leads", async () => {
    const { pool, sequence } = await setUp();
    for (let index = 0; index < 4; index++) sequence();
    const written: Record<string, number> = {};
    await Promise.all(
      Array.from({ length: 8 }, async (_, writer) => {
        for (let round = 0; round < 25; round++) {
          const tenant = `t${(writer + round) % 5}`;
          const size = 1 + ((writer * round) % 7);
          await transaction(pool, (tx) => record(tx, tenant, ...Array(size).fill("tool.called")));
          written[tenant] = (written[tenant] ?? 0) + size;
        }
      }),
    );
    await chained(pool);
    await expectWhole(pool, written);
    expect(await leaders(pool)).toHaveLength(1);
    // Those who do not lead hold no connection.
    const sessions =
      "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'drover-sequencer' AND datname = current_database()";
    await expect.poll(async () => (await one(pool, sessions)).n).toBe(1);
  });

  test("gives a transaction that commits late a later place, however long it took, and nothing to one that never does", async () => {
    const { pool, sequence } = await setUp();
    sequence();
    await transaction(pool, async (late) => {
      await record(late, "a", "late");
      await record(pool, "a", "early");
      await chained(pool, 1);
    });
    await chained(pool, 2);
    // An id of an hour ago, as a transaction of that length leaves it.
    await pool.query(
      "INSERT INTO audit_entries (id, tenant, actor, action) VALUES (uuidv7_floor(now() - interval '1 hour'), 'a', 'worker', 'very late')",
    );
    await expect(
      transaction(pool, async (tx) => {
        await record(tx, "a", "never");
        throw new Error("rolled back");
      }),
    ).rejects.toThrow("rolled back");
    await chained(pool, 3);
    expect(await actionsOf(pool, "a")).toEqual(["early", "late", "very late"]);
    await expectWhole(pool, { a: 3 });
  });

  test("leaves all of a batch or nothing when its connection dies in the middle of it", async () => {
    const { pool, sequence } = await setUp();
    await record(pool, "a", "1", "2", "3");
    await record(pool, "b", "1");
    await transaction(pool, async (tx) => {
      await tx.query("SELECT FROM audit_unchained ORDER BY entry_id DESC LIMIT 1 FOR UPDATE");
      sequence();
      // It has inserted, and waits for the row it is to take out of the inbox.
      await vi.waitFor(async () => {
        const { rowCount } = await pool.query(
          "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'drover-sequencer' AND datname = current_database() AND wait_event_type = 'Lock'",
        );
        expect(rowCount).toBe(1);
      });
      expect((await one(pool, "SELECT count(*) AS n FROM audit_chain")).n).toBe(0);
      expect(await unchained(pool)).toBe(4);
    });
    await chained(pool, 4);
    await expectWhole(pool, { a: 3, b: 1 });
  });

  test("is followed by another when its connection is ended, again and again, while entries come", async () => {
    const { pool, sequence } = await setUp();
    for (let index = 0; index < 3; index++) sequence();
    let entries = 0;
    for (let kill = 0; kill < 4; kill++) {
      await vi.waitFor(async () => {
        await record(pool, "a", ...Array(20).fill("tool.called"));
        entries += 20;
        const [pid] = await leaders(pool);
        expect(pid).toBeDefined();
        await pool.query("SELECT pg_terminate_backend($1)", [pid]);
      }, 10_000);
    }
    await chained(pool, entries);
    await expectWhole(pool, { a: entries });
  });

  test("hands over when it is closed, and has chained what was there", async () => {
    const { pool, sequence } = await setUp();
    const first = sequence();
    await vi.waitFor(async () => expect(await leaders(pool)).toHaveLength(1), 10_000);
    await record(pool, "a", "before");
    await first.close();
    expect(await actionsOf(pool, "a")).toEqual(["before"]);
    // The server lets go of its lock when it has seen the connection end.
    await vi.waitFor(async () => expect(await leaders(pool)).toEqual([]), 10_000);
    sequence();
    await record(pool, "a", "after");
    await chained(pool, 2);
    expect(await actionsOf(pool, "a")).toEqual(["before", "after"]);
  });

  test("is not held up by an inbox that names entries twice, or entries that are gone", async () => {
    const { pool, sequence } = await setUp();
    sequence();
    await record(pool, "a", "first");
    await chained(pool, 1);
    await pool.query("INSERT INTO audit_unchained (entry_id, tenant) SELECT id, tenant FROM audit_entries");
    await pool.query(
      "INSERT INTO audit_unchained (entry_id, tenant) SELECT uuidv7_now(), 'a' FROM generate_series(1, 1500)",
    );
    await record(pool, "a", "second");
    await vi.waitFor(async () => expect(await actionsOf(pool, "a")).toEqual(["first", "second"]), 10_000);
    const [trail] = await verifyAudit(pool);
    expect(trail).toMatchObject({
      entries: 2,
      bad: null,
      unchained: 0,
      stray: { message: "was deleted before it had a place" },
    });
  });

  test("goes on when Postgres is back", async () => {
    const postgres = await startPostgres();
    undo.push(() => postgres.stop());
    await migrate(postgres.url);
    const pool = openPool({ url: postgres.url, logger });
    undo.push(() => pool.end());
    sequencer(pool, postgres.url, { everyEntries: 1, withinMs: 60_000 });
    await record(pool, "a", "before");
    await chained(pool, 1);
    await record(pool, "a", "just before");
    await postgres.kill("SIGKILL");
    await postgres.restart();
    await record(pool, "a", "after");
    await chained(pool, 3);
    await expectWhole(pool, { a: 3 });
  });

  test("whose network falls silent loses the lead, and ends all the same", async () => {
    const { url, pool, sequence } = await setUp();
    const direct = new URL(url);
    const proxy = await startProxy(Number(direct.port), direct.hostname);
    undo.push(() => proxy.close());
    direct.host = `127.0.0.1:${proxy.port}`;
    const silent = sequencer(pool, direct.href);
    await vi.waitFor(async () => expect(await leaders(pool)).toHaveLength(1), 10_000);
    proxy.blackhole(true);
    sequence();
    await record(pool, "a", "x");
    await chained(pool, 1);
    await silent.close();
    await expectWhole(pool, { a: 1 });
  });
});

describe("contents", () => {
  test("of every odd kind verify from the database and through an export", async () => {
    const { pool, sequence } = await setUp();
    sequence();
    const deep = JSON.parse(`${"[".repeat(100)}1${"]".repeat(100)}`);
    const data = {
      deep,
      numbers: [1e21, -0, 5e-324, 0.1 + 0.2, 1e308, Number.MAX_SAFE_INTEGER],
      text: '日本 \u{1f600} \u0001 \\u0000 " \u2028',
      lost: "\u0000 \ud800",
      "10": 1,
      "9": 2,
      "": null,
      nested: { b: [], a: {} },
    };
    await recordAudit(pool, [entry("a", "odd", data, uuidv7()), entry("a", "é\u{1f600}")]);
    // As another writer may put it: white space, escapes, names twice, numbers of many forms.
    await pool.query(
      `INSERT INTO audit_entries (tenant, actor, action, data) VALUES
         ('a', 'sql', 'foreign', '{ "b" : 1E21, "a" : [ 1.0, -0, 12345678901234567890 ], "b" : "\\u00e9\\u0001" }'), ('a', 'sql', 'scalar', '"text"')`,
    );
    await chained(pool, 4);
    await expectWhole(pool, { a: 4 });
    const entries = await trailOf(pool, "a");
    const read = entries.find(({ action }) => action === "odd")!.data;
    expect(read).toEqual({ ...data, numbers: data.numbers.map((n) => n + 0), lost: "\ufffd \ufffd" });
    for (const write of [canonicalJson, JSON.stringify]) {
      const exported = entries.map((one) => JSON.parse(write(one)));
      expect(await verifyChain(exported)).toMatchObject([{ entries: 4, bad: null }]);
    }
  });
});

describe("pages", () => {
  test("are of one tenant, oldest first, after a place, and filtered by run, action and actor", async () => {
    const { pool, sequence } = await setUp();
    sequence();
    const run = uuidv7();
    await recordAudit(pool, [entry("b", "tool.called", {}, run)]);
    for (let index = 0; index < 6; index++) {
      await recordAudit(pool, [
        {
          ...entry("a", index % 2 ? "x" : "y", { index }, index < 3 ? run : null),
          actor: index === 5 ? "me" : "worker",
        },
      ]);
      await chained(pool, index + 2);
    }
    const indexes = async (filter: Partial<Parameters<typeof readAudit>[2]>) =>
      (await readAudit(pool, "a", { after: 0, limit: 10, ...filter })).map(({ data }) => data.index);
    expect(await indexes({})).toEqual([0, 1, 2, 3, 4, 5]);
    expect(await indexes({ after: 2, limit: 2 })).toEqual([2, 3]);
    expect(await indexes({ runId: run })).toEqual([0, 1, 2]);
    expect(await indexes({ action: "x" })).toEqual([1, 3, 5]);
    expect(await indexes({ actor: "me", action: "x" })).toEqual([5]);
    expect(await indexes({ runId: uuidv7() })).toEqual([]);
    const [first] = await readAudit(pool, "a", { after: 0, limit: 1 });
    expect(first).toMatchObject({
      tenant: "a",
      seq: 1,
      run_id: toWireId("run", run),
      hash: expect.stringMatching(/^[0-9a-f]{64}$/),
    });
    expect(new Date(first!.at).toISOString()).toBe(first!.at);
  });
});

describe("checkpoints", () => {
  test("are signed after so many entries, per tenant, and verify", async () => {
    const { pool, sequence } = await setUp();
    sequence({ everyEntries: 10, withinMs: 3_600_000 });
    await record(pool, "a", ...Array(25).fill("x"));
    await record(pool, "b", ...Array(9).fill("x"));
    await vi.waitFor(async () => expect(await readCheckpoints(pool)).toHaveLength(1), 10_000);
    await record(pool, "b", "x");
    await vi.waitFor(async () => expect(await readCheckpoints(pool)).toHaveLength(2), 10_000);
    const trails = await verifyAudit(pool, { publicKeys });
    expect(trails).toMatchObject([
      { tenant: "a", checkpoints: 1, bad: null },
      { tenant: "b", checkpoints: 1, bad: null },
    ]);
    expect(await readCheckpoints(pool, "b")).toMatchObject([{ tenant: "b", seq: 10 }]);
  });

  test("cover the last entries within their time, also those that another process left", async () => {
    const { pool, sequence } = await setUp();
    const unsigned = sequence();
    await record(pool, "a", "x", "y");
    await chained(pool, 2);
    await unsigned.close();
    expect(await readCheckpoints(pool)).toEqual([]);
    sequence({ everyEntries: 1000, withinMs: 200 });
    await vi.waitFor(async () => expect(await readCheckpoints(pool)).toMatchObject([{ seq: 2 }]), 10_000);
    await record(pool, "a", "z");
    await vi.waitFor(async () => expect(await readCheckpoints(pool)).toMatchObject([{ seq: 2 }, { seq: 3 }]), 10_000);
    expect(await verifyAudit(pool, { publicKeys })).toMatchObject([{ checkpoints: 2, bad: null }]);
    const stranger = publicKeyOf(generateKeyPairSync("ed25519").publicKey);
    expect(await verifyAudit(pool, { publicKeys: [stranger] })).toMatchObject([{ bad: { problem: "forged", seq: 2 } }]);
  });
});

describe("a superuser who switched the triggers off", () => {
  /** A good trail of six entries of `a`, two of `b` and a checkpoint of each, then `tamper`; returns what `verify` finds in `a`. */
  async function verified(tamper: (run: (sql: string) => Promise<unknown>, ids: string[]) => Promise<unknown>) {
    const { pool, sequence } = await setUp();
    const running = sequence({ everyEntries: 1, withinMs: 1000 });
    for (let index = 0; index < 6; index++) {
      await recordAudit(pool, [entry("a", "x", { index })]);
      await chained(pool, index + 1);
    }
    await record(pool, "b", "x", "y");
    await chained(pool, 8);
    await running.close();
    expect(await verifyAudit(pool, { publicKeys })).toMatchObject([{ bad: null }, { bad: null }]);
    const ids = (await trailOf(pool, "a")).map(({ id }) => id);
    await transaction(pool, async (tx) => {
      await tx.query("SET LOCAL session_replication_role = replica");
      await tamper((sql) => tx.query(sql), ids);
    });
    const trails = await verifyAudit(pool, { publicKeys });
    return { ids, a: trails.find(({ tenant }) => tenant === "a")!, b: trails.find(({ tenant }) => tenant === "b")! };
  }

  test.each([
    ["the data", `data = '{"index":99}'`],
    ["the actor", "actor = 'somebody else'"],
    ["the time", "at = at + interval '1 ms'"],
    ["the run", "run_id = uuidv7_now()"],
    ["the time to infinity", "at = 'infinity'"],
  ])("edits %s of an entry", async (_, change) => {
    const { a, b, ids } = await verified((run, [, , third]) =>
      run(`UPDATE audit_entries SET ${change} WHERE id = '${third}'`),
    );
    expect(a.bad).toMatchObject({ tenant: "a", seq: 3, id: ids[2], problem: "edited" });
    expect(b.bad).toBeNull();
  });

  test("deletes an entry, with its place or without, the last one too", async () => {
    const both = await verified(async (run, [, second]) => {
      await run(`DELETE FROM audit_chain WHERE entry_id = '${second}'`);
      await run(`DELETE FROM audit_entries WHERE id = '${second}'`);
    });
    expect(both.a.bad).toMatchObject({ seq: 2, id: null, problem: "missing" });
    for (const at of [1, 5]) {
      const entryOnly = await verified((run, ids) => run(`DELETE FROM audit_entries WHERE id = '${ids[at]}'`));
      expect(entryOnly.a.bad).toMatchObject({ seq: at + 1, id: null });
      const placeOnly = await verified((run, ids) => run(`DELETE FROM audit_chain WHERE entry_id = '${ids[at]}'`));
      expect(placeOnly.a.bad).toMatchObject({ seq: at + 1, id: null });
      expect(placeOnly.a.stray).toMatchObject({ id: placeOnly.ids[at] });
    }
  });

  test("cuts the tail: only the checkpoint knows", async () => {
    const cut = "DELETE FROM audit_chain WHERE tenant = 'a' AND seq > 4";
    const entries =
      "DELETE FROM audit_entries e WHERE tenant = 'a' AND NOT EXISTS (SELECT FROM audit_chain c WHERE c.entry_id = e.id)";
    const known = await verified(async (run) => {
      await run(cut);
      await run(entries);
    });
    expect(known.a.bad).toMatchObject({ seq: 5, problem: "cut" });
    const unknown = await verified(async (run) => {
      await run(cut);
      await run(entries);
      await run("DELETE FROM audit_checkpoints WHERE tenant = 'a' AND seq > 4");
    });
    expect(unknown.a.bad).toBeNull();
  });

  test("removes the whole trail of a tenant", async () => {
    const { a } = await verified(async (run) => {
      await run("DELETE FROM audit_chain WHERE tenant = 'a'");
      await run("DELETE FROM audit_entries WHERE tenant = 'a'");
    });
    expect(a.bad).toMatchObject({ seq: 1, problem: "cut" });
  });

  test("swaps two entries, puts one in, moves one to another tenant", async () => {
    const nobody = "00000000-0000-7000-8000-000000000000";
    const swapped = await verified((run, [, second, , , fifth]) =>
      run(
        `UPDATE audit_chain SET entry_id = '${nobody}' WHERE entry_id = '${second}';
         UPDATE audit_chain SET entry_id = '${second}' WHERE entry_id = '${fifth}';
         UPDATE audit_chain SET entry_id = '${fifth}' WHERE entry_id = '${nobody}'`,
      ),
    );
    expect(swapped.a.bad).toMatchObject({ seq: 2, id: swapped.ids[4], problem: "moved" });

    const put = await verified(async (run) => {
      await run("UPDATE audit_chain SET seq = seq + 100 WHERE tenant = 'a' AND seq >= 3");
      await run("UPDATE audit_chain SET seq = seq - 99 WHERE tenant = 'a' AND seq > 100");
      await run(`INSERT INTO audit_entries (id, tenant, actor, action) VALUES ('${nobody}', 'a', 'worker', 'x')`);
      await run(`INSERT INTO audit_chain VALUES ('a', 3, '${nobody}', '\\x${"ab".repeat(32)}')`);
    });
    expect(put.a.bad).toMatchObject({ seq: 3, id: nobody, problem: "inserted" });

    const moved = await verified((run, [, second]) =>
      run(`UPDATE audit_entries SET tenant = 'b' WHERE id = '${second}'`),
    );
    expect(moved.a.bad).toMatchObject({ seq: 2, problem: "missing" });
    expect(moved.b.stray).toMatchObject({ id: moved.ids[1] });
  });

  test("adds an entry that nobody chains, or takes one out of the inbox before it is", async () => {
    const { a, ids } = await verified(async (run) => {
      await run("INSERT INTO audit_entries (tenant, actor, action) VALUES ('a', 'worker', 'hidden')");
    });
    expect(a).toMatchObject({
      bad: null,
      stray: { message: expect.stringContaining("in neither the chain nor the inbox") },
    });
    expect(ids).not.toContain(a.stray!.id);
  });
});

test("verify reports what waits for its place, and that is no fault", async () => {
  const { pool } = await setUp();
  await record(pool, "a", "x", "y");
  expect(await verifyAudit(pool)).toEqual([
    { tenant: "a", entries: 0, cut: 0, head: null, checkpoints: 0, bad: null, unchained: 2, stray: null },
  ]);
  expect(await verifyAudit(pool, { tenant: "b" })).toMatchObject([{ tenant: "b", unchained: 0 }]);
});
