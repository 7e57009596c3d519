/** The numbers of messages: dense, per tenant, never behind a reader's cursor, whatever becomes of writers and sequencers. */
import { uuidv7 } from "@drover/protocol";
import { inMemorySignals } from "@drover/queue";
import { readFeed, type Sequencer, startSequencer, waitForFeed } from "@drover/runs";
import { migrate, openPool, type Pool, type Queryable, transaction } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { Kysely, PostgresDialect } from "kysely";
import { Migrator } from "kysely/migration";
import pg from "pg";
import { afterEach, describe, expect, test, vi } from "vitest";
import { initial } from "../../packages/storage/src/migrations/0001_initial.ts";
import { door } from "../../packages/storage/src/migrations/0002_door.ts";
import { liveness } from "../../packages/storage/src/migrations/0003_liveness.ts";
import { createDatabase, createEmptyDatabase } from "../support/database.ts";
import { type SpawnedNode, spawnNode } from "../support/process.ts";

const logger = createLogger({ name: "test", level: process.env.TEST_LOG ?? "silent" });
const patience = { timeout: 20_000, interval: 20 };
const undo: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

async function setUp() {
  const database = await createDatabase();
  undo.push(() => database.drop());
  const pool = openPool({ url: database.url, logger, max: 20 });
  undo.push(() => pool.end());
  const sequence = (more: { signals?: ReturnType<typeof inMemorySignals> } = {}): Sequencer => {
    const started = startSequencer({ pool, directUrl: database.url, logger, ...more });
    undo.push(() => started.close());
    return started;
  };
  return { url: database.url, pool, sequence };
}

/** Owes a message to the whole tenant, or to one endpoint. Returns its id. */
async function owe(db: Queryable, tenant: string, { id = uuidv7(), endpointId = null as string | null } = {}) {
  await db.query(
    "INSERT INTO messages (id, tenant, type, endpoint_id, data) VALUES ($1, $2, 'endpoint.disabled', $3, '{}')",
    [id, tenant, endpointId],
  );
  return id;
}

const unnumbered = async (pool: Pool): Promise<number> =>
  (await pool.query("SELECT FROM messages_unnumbered")).rowCount!;
const numbered = (pool: Pool) => vi.waitFor(async () => expect(await unnumbered(pool)).toBe(0), patience);

/** Ids in the order of their numbers, which have no gap. */
async function feedOf(pool: Pool, tenant: string): Promise<string[]> {
  const { messages } = await readFeed(pool, tenant, { after: 0, limit: 100_000 });
  expect(messages.map(({ seq }) => seq)).toEqual(messages.map((_, index) => index + 1));
  return messages.map(({ id }) => id);
}

const leaders = async (pool: Pool): Promise<number[]> =>
  (
    await pool.query(
      `SELECT l.pid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
       WHERE l.locktype = 'advisory' AND l.granted AND a.application_name = 'drover-sequencer' AND a.datname = current_database()`,
    )
  ).rows.map(({ pid }) => pid);

/** Reads a tenant's feed as a client does, until it has seen so many messages. */
async function follow(pool: Pool, tenant: string, count: () => number): Promise<string[]> {
  const seen: string[] = [];
  let after = 0;
  while (seen.length < count()) {
    const { messages, lastSeq } = await readFeed(pool, tenant, { after, limit: 7 });
    expect(messages.map(({ seq }) => seq)).toEqual(messages.map((_, index) => after + index + 1));
    seen.push(...messages.map(({ id }) => id));
    after = lastSeq;
    // The writers and the sequencer share this machine.
    if (messages.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return seen;
}

describe("numbers", () => {
  test("who follows sees each message once while many commit at once, some of them late, and several sequencers run", async () => {
    const { pool, sequence } = await setUp();
    for (let index = 0; index < 3; index++) sequence();
    const tenants = ["a", "b", "c"];
    const owed = new Map<string, string[]>(tenants.map((tenant) => [tenant, []]));
    let writing = true;
    const followers = tenants.map((tenant) =>
      follow(pool, tenant, () => (writing ? Number.POSITIVE_INFINITY : owed.get(tenant)!.length)),
    );
    await Promise.all(
      Array.from({ length: 8 }, async (_, writer) => {
        for (let round = 0; round < 25; round++) {
          const tenant = tenants[(writer + round) % 3]!;
          const ids = await transaction(pool, async (tx) => {
            const made = [await owe(tx, tenant), await owe(tx, tenant)];
            // Every fifth transaction stays open over a pass or two of the sequencer.
            if (round % 5 === writer % 5) await tx.query("SELECT pg_sleep(0.15)");
            return made;
          });
          owed.get(tenant)!.push(...ids);
        }
      }),
    );
    writing = false;
    const seen = await Promise.all(followers);
    for (const [index, tenant] of tenants.entries()) {
      expect(seen[index]).toEqual(await feedOf(pool, tenant));
      expect(seen[index]!.toSorted()).toEqual(owed.get(tenant)!.toSorted());
    }
    expect(await leaders(pool)).toHaveLength(1);
  });

  test("a message whose transaction took long comes after those that were numbered meanwhile, one that was rolled back never", async () => {
    const { pool, sequence } = await setUp();
    sequence();
    const order: string[] = [];
    let late = "";
    await transaction(pool, async (tx) => {
      late = await owe(tx, "a");
      order.push(await owe(pool, "a"));
      await numbered(pool);
      expect(await feedOf(pool, "a")).toEqual(order);
    });
    await numbered(pool);
    // An id of an hour ago, as a transaction of that length leaves it.
    const older = await owe(pool, "a", { id: uuidv7(Date.now() - 3_600_000) });
    await expect(
      transaction(pool, async (tx) => {
        await owe(tx, "a");
        throw new Error("rolled back");
      }),
    ).rejects.toThrow("rolled back");
    await numbered(pool);
    expect(await feedOf(pool, "a")).toEqual([...order, late, older]);
  });

  test("tenants have numbers of their own; what goes to one endpoint only has none", async () => {
    const { pool, sequence } = await setUp();
    await owe(pool, "a", { endpointId: uuidv7() });
    const [one, other, two] = [await owe(pool, "a"), await owe(pool, "b"), await owe(pool, "a")];
    sequence();
    await numbered(pool);
    expect(await feedOf(pool, "a")).toEqual([one, two]);
    expect(await feedOf(pool, "b")).toEqual([other]);
    expect(await feedOf(pool, "c")).toEqual([]);
  });

  test("a backlog of several batches keeps its order", async () => {
    const { pool, sequence } = await setUp();
    await pool.query(
      "INSERT INTO messages (id, tenant, type) SELECT uuidv7_floor('2026-01-01'::timestamptz + n * interval '1 ms'), 't' || n % 2, 'x' FROM generate_series(1, 2500) n",
    );
    sequence();
    await numbered(pool);
    for (const tenant of ["t0", "t1"]) {
      const ids = await feedOf(pool, tenant);
      expect(ids).toHaveLength(1250);
      expect(ids).toEqual(ids.toSorted());
    }
  });

  test("a deleted message keeps its number, and a page of nothing but deleted ones says where to go on", async () => {
    const { pool, sequence } = await setUp();
    const ids = [];
    for (let index = 0; index < 4; index++) ids.push(await owe(pool, "a"));
    sequence();
    await numbered(pool);
    await pool.query("DELETE FROM messages WHERE id = ANY($1)", [[ids[1], ids[2]]]);
    expect(await readFeed(pool, "a", { after: 1, limit: 2 })).toMatchObject({ messages: [], lastSeq: 3, end: false });
    expect((await readFeed(pool, "a", { after: 3, limit: 2 })).messages).toMatchObject([{ seq: 4, id: ids[3] }]);
  });

  test("what was there before the migration is numbered too", async () => {
    const database = await createEmptyDatabase();
    undo.push(() => database.drop());
    const db = new Kysely<unknown>({
      dialect: new PostgresDialect({ pool: new pg.Pool({ connectionString: database.url, max: 1 }) }),
    });
    const before = { "0001_initial": initial, "0002_door": door, "0003_liveness": liveness };
    const { error } = await new Migrator({ db, provider: { getMigrations: async () => before } }).migrateToLatest();
    await db.destroy();
    expect(error).toBeUndefined();
    const pool = openPool({ url: database.url, logger });
    undo.push(() => pool.end());
    const old = [uuidv7(), uuidv7()];
    await pool.query("INSERT INTO messages (id, tenant, type) SELECT unnest($1::uuid[]), 'a', 'query.completed'", [
      old,
    ]);
    await migrate(database.url);
    const later = await owe(pool, "a");
    const sequencer = startSequencer({ pool, directUrl: database.url, logger });
    undo.push(() => sequencer.close());
    await numbered(pool);
    expect(await feedOf(pool, "a")).toEqual([...old, later]);
  });
});

describe("a sequencer", () => {
  test("that is cut off in the middle of a batch leaves all of it or nothing", async () => {
    const { pool, sequence } = await setUp();
    const ids = [await owe(pool, "a"), await owe(pool, "a"), await owe(pool, "a")];
    await transaction(pool, async (tx) => {
      await tx.query("SELECT FROM messages_unnumbered ORDER BY message_id DESC LIMIT 1 FOR UPDATE");
      sequence();
      // Its batch is written but for the row it waits for.
      await vi.waitFor(async () => {
        const { rowCount } = await pool.query(
          `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE application_name = 'drover-sequencer' AND datname = current_database() AND wait_event_type = 'Lock'`,
        );
        expect(rowCount).toBe(1);
      }, patience);
      expect(await feedOf(pool, "a")).toEqual([]);
      expect(await unnumbered(pool)).toBe(3);
    });
    await numbered(pool);
    expect(await feedOf(pool, "a")).toEqual(ids);
  });

  test("that is killed with its process is followed by another process's, while messages come", {
    timeout: 60_000,
  }, async () => {
    const { url, pool } = await setUp();
    const start = async (): Promise<SpawnedNode> => {
      const started = spawnNode(new URL("./sequencer-process.ts", import.meta.url), { env: { DATABASE_URL: url } });
      undo.push(() => started.kill("SIGKILL"));
      await started.waitForLine("ready");
      return started;
    };
    const leading = await start();
    await vi.waitFor(async () => expect(await leaders(pool)).toHaveLength(1), patience);
    // It stands by: the lock is taken.
    await start();
    const [first] = await leaders(pool);
    const owed: string[] = [];
    let writing = true;
    const writer = (async () => {
      while (writing) owed.push(await owe(pool, "a"));
    })();
    const seen = follow(pool, "a", () => (writing ? Number.POSITIVE_INFINITY : owed.length));
    undo.push(async () => {
      writing = false;
      await writer;
    });
    await vi.waitFor(async () => expect(await feedOf(pool, "a")).not.toEqual([]), patience);
    await leading.kill("SIGKILL");
    await vi.waitFor(async () => {
      const now = await leaders(pool);
      expect(now).toHaveLength(1);
      expect(now[0]).not.toBe(first);
    }, patience);
    writing = false;
    await writer;
    expect(await seen).toEqual(await feedOf(pool, "a"));
    expect((await seen).toSorted()).toEqual(owed.toSorted());
  });
});

describe("waiting for the feed", () => {
  const waiting = (pool: Pool, signals: ReturnType<typeof inMemorySignals>, after: number, waitMs: number) =>
    waitForFeed({ db: pool, signals, tenant: "a", after, waitMs, signal: new AbortController().signal });

  test("ends when a message has its number, not with another tenant's", async () => {
    const { pool, sequence } = await setUp();
    const signals = inMemorySignals(logger);
    sequence({ signals });
    let ended = false;
    const news = waiting(pool, signals, 0, 60_000).then(() => {
      ended = true;
    });
    await owe(pool, "b");
    await numbered(pool);
    expect(ended).toBe(false);
    const id = await owe(pool, "a");
    await news;
    expect(await feedOf(pool, "a")).toEqual([id]);
    // What is there already is not waited for.
    await waiting(pool, signals, 0, 60_000);
  });

  test("ends without news too: nobody tells, the time is up, or whoever waited is gone", async () => {
    const { pool, sequence } = await setUp();
    const signals = inMemorySignals(logger);
    await waiting(pool, signals, 0, 50);
    const gone = new AbortController();
    const left = waitForFeed({ db: pool, signals, tenant: "a", after: 0, waitMs: 60_000, signal: gone.signal });
    gone.abort();
    await left;
    sequence();
    const untold = waiting(pool, signals, 0, 60_000);
    await owe(pool, "a");
    await untold;
    expect(await feedOf(pool, "a")).toHaveLength(1);
  });
});
