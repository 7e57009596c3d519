/**
 * Each rule of the batcher, over a real Postgres: its locks, its deadlocks, its broken connections. Over 500 lines because all
 * rules stand in one place, as the module's header lists them.
 */
import { createBatcher, faultOf, openPool, type Pool, type Transaction, transaction } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { createDatabase, type TestDatabase } from "../support/database.ts";
import { startProxy } from "../support/proxy.ts";

interface Op {
  key: string;
  value: string;
}

const logger = createLogger({ name: "test", level: "silent" });
let database: TestDatabase;
let pool: Pool;
beforeAll(async () => {
  database = await createDatabase();
  pool = openPool({ url: database.url, logger, max: 20 });
  await pool.query(
    `CREATE TABLE lists (key text PRIMARY KEY, items text[] NOT NULL DEFAULT '{}');
     CREATE TABLE entries (value text NOT NULL, data json)`,
  );
});
afterAll(async () => {
  await pool.end();
  await database.drop();
});
beforeEach(() => pool.query("INSERT INTO lists SELECT 'k' || n FROM generate_series(0, 9) n"));
afterEach(() => pool.query("TRUNCATE lists, entries"));

const op = (key: string, value = ""): Op => ({ key, value });

/** One transaction that touches the rows one after the other, in the order given: what a batch statement does, but slow enough to cross. */
async function appendOneByOne(own: Pool, ops: Op[], beforeEach?: (tx: Transaction, index: number) => Promise<unknown>) {
  await transaction(own, async (tx) => {
    for (const [index, { key, value }] of ops.entries()) {
      await beforeEach?.(tx, index);
      await tx.query("UPDATE lists SET items = items || $2::text WHERE key = $1", [key, value]);
    }
  });
  return ops.map(({ value }) => value);
}

const items = async (key: string): Promise<string[]> =>
  (await pool.query("SELECT items FROM lists WHERE key = $1", [key])).rows[0].items;
const entries = async (): Promise<string[]> =>
  (await pool.query("SELECT value FROM entries ORDER BY value")).rows.map((row) => row.value);

/** Resolves once `count` backends of this database wait for a lock. */
async function lockWaiters(count: number): Promise<void> {
  for (;;) {
    const { rows } = await pool.query(
      "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
    );
    if (rows[0].count >= count) return;
  }
}

/** The first call of `execute` waits until the test lets it go. */
function held<R>(execute: (ops: Op[]) => Promise<R[]>) {
  const started = Promise.withResolvers<void>();
  const gate = Promise.withResolvers<void>();
  const batches: Op[][] = [];
  return {
    started: started.promise,
    release: gate.resolve,
    batches,
    execute: async (ops: Op[]) => {
      batches.push(ops);
      started.resolve();
      await gate.promise;
      return await execute(ops);
    },
  };
}

describe("grouping", () => {
  it("what arrives while a commit is on its way is the next batch, and every caller gets its own answer", async () => {
    const { started, release, batches, execute } = held((ops) => appendOneByOne(pool, ops));
    const send = createBatcher({ key: (o: Op) => o.key, execute });
    const first = send(op("k0", "first"));
    await started;
    const others = Array.from({ length: 9 }, (_, n) => send(op(`k${9 - n}`, `v${n}`)));
    release();
    expect(await first).toBe("first");
    expect(await Promise.all(others)).toEqual(Array.from({ length: 9 }, (_, n) => `v${n}`));
    expect(batches.map((batch) => batch.length)).toEqual([1, 9]);
  });

  it("what arrives in one turn of the event loop is one batch, of at most `max`", async () => {
    const sizes: number[] = [];
    const send = createBatcher({
      key: (o: Op) => o.key,
      max: 4,
      execute: async (ops: Op[]) => {
        sizes.push(ops.length);
        return appendOneByOne(pool, ops);
      },
    });
    await Promise.all(Array.from({ length: 10 }, (_, n) => send(op(`k${n}`, "x"))));
    expect(sizes).toEqual([4, 4, 2]);
  });

  it("acknowledges nothing before its commit", async () => {
    await pool.query(
      `CREATE FUNCTION wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END $$;
       CREATE CONSTRAINT TRIGGER slow_commit AFTER UPDATE ON lists DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION wait_at_commit()`,
    );
    try {
      let answered = false;
      const send = createBatcher({ key: (o: Op) => o.key, execute: (ops: Op[]) => appendOneByOne(pool, ops) });
      await transaction(pool, async (tx) => {
        await tx.query("SELECT pg_advisory_xact_lock(7)");
        const sent = send(op("k1", "slow")).then(async () => {
          answered = true;
          expect(await items("k1")).toEqual(["slow"]);
        });
        await lockWaiters(1);
        expect(answered).toBe(false);
        expect(await items("k1")).toEqual([]);
        return { sent };
      }).then(({ sent }) => sent);
      expect(answered).toBe(true);
    } finally {
      await pool.query("DROP FUNCTION wait_at_commit CASCADE");
    }
  });
});

describe("locks", () => {
  it("two batchers with two lanes each on the same rows never deadlock, because each batch is sorted", async () => {
    const conflicts: unknown[] = [];
    const unsorted: string[][] = [];
    const batcher = () =>
      createBatcher({
        key: (o: Op) => o.key,
        lanes: 2,
        max: 6,
        execute: async (ops: Op[]) => {
          const keys = ops.map(({ key }) => key);
          if (keys.join() !== keys.toSorted().join()) unsorted.push(keys);
          try {
            return await appendOneByOne(pool, ops);
          } catch (error) {
            if (faultOf(error) === "conflict") conflicts.push(error);
            throw error;
          }
        },
      });
    const [up, down] = [batcher(), batcher()];
    const sent: Promise<string>[] = [];
    for (let n = 0; n < 200; n++) sent.push(up(op(`k${n % 10}`, `up${n}`)), down(op(`k${9 - (n % 10)}`, `down${n}`)));
    await Promise.all(sent);
    expect(unsorted).toEqual([]);
    expect(conflicts).toEqual([]);
    const all = await Promise.all(Array.from({ length: 10 }, (_, n) => items(`k${n}`)));
    expect(all.flat()).toHaveLength(400);
  });

  it("a key is never in two statements at once, and its operations stay in order, however many lanes there are", async () => {
    const inFlight = new Set<string>();
    const twice: string[] = [];
    let most = 0;
    let lanes = 0;
    const send = createBatcher({
      key: (o: Op) => o.key,
      lanes: 4,
      max: 3,
      execute: async (ops: Op[]) => {
        const keys = new Set(ops.map(({ key }) => key));
        for (const key of keys) {
          if (inFlight.has(key)) twice.push(key);
          inFlight.add(key);
        }
        most = Math.max(most, ++lanes);
        const results = await appendOneByOne(pool, ops);
        lanes--;
        for (const key of keys) inFlight.delete(key);
        return results;
      },
    });
    const sent: Record<string, string[]> = {};
    const answers: Promise<string>[] = [];
    for (let n = 0; n < 300; n++) {
      const key = `k${(n * n) % 7}`;
      sent[key] = [...(sent[key] ?? []), `${n}`];
      answers.push(send(op(key, `${n}`)));
      // Some come while others are under way.
      if (n % 50 === 49) await answers[n - 20];
    }
    await Promise.all(answers);
    expect(twice).toEqual([]);
    expect(most).toBeGreaterThan(1);
    for (const [key, values] of Object.entries(sent)) expect(await items(key)).toEqual(values);
  });
});

describe("conflicts", () => {
  it("a deadlock with somebody else is repeated in place, and applied once", async () => {
    const url = new URL(database.url);
    url.searchParams.set("options", "-c deadlock_timeout=20ms");
    const quick = openPool({ url: url.href, logger });
    const outsiderReady = Promise.withResolvers<void>();
    const outsiderDone = Promise.withResolvers<void>();
    let tries = 0;
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: (ops: Op[]) => {
        tries++;
        return appendOneByOne(quick, ops, async (_tx, index) => {
          if (tries > 1) await outsiderDone.promise;
          else if (index === 0) await outsiderReady.promise;
          // The one that closes the circle finds it: the outsider waits for k1 before we ask for k2.
          else await lockWaiters(1);
        });
      },
    });
    try {
      const sent = Promise.all([send(op("k1", "ours")), send(op("k2", "ours"))]);
      await transaction(pool, async (tx) => {
        await tx.query("SET LOCAL deadlock_timeout = '60s'");
        await tx.query("UPDATE lists SET items = items || 'theirs'::text WHERE key = 'k2'");
        outsiderReady.resolve();
        // Ours takes k1 first, then this waits for it.
        for (;;) {
          const { rows } = await pool.query("SELECT key FROM lists WHERE key = 'k1' FOR UPDATE SKIP LOCKED");
          if (rows.length === 0) break;
        }
        await tx.query("UPDATE lists SET items = items || 'theirs'::text WHERE key = 'k1'");
        outsiderDone.resolve();
      });
      await sent;
      expect(tries).toBe(2);
      expect(await items("k1")).toEqual(["theirs", "ours"]);
      expect(await items("k2")).toEqual(["theirs", "ours"]);
    } finally {
      await quick.end();
    }
  });

  it("one that never ends is given up, and the next batch goes on", async () => {
    let tries = 0;
    let always = true;
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: async (ops: Op[]) => {
        tries++;
        if (always) await pool.query("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$");
        return appendOneByOne(pool, ops);
      },
    });
    await expect(send(op("k1", "x"))).rejects.toMatchObject({ code: "40001" });
    expect(tries).toBe(10);
    always = false;
    await expect(send(op("k1", "y"))).resolves.toBe("y");
    expect(await items("k1")).toEqual(["y"]);
  });
});

describe("data that Postgres refuses", () => {
  const insert = async (ops: Op[]) => {
    await pool.query("INSERT INTO entries SELECT v, v::json FROM unnest($1::text[]) v", [
      ops.map(({ value }) => value),
    ]);
    return ops.map(({ value }) => value);
  };

  it.each([[[17]], [[0]], [[31]], [[3, 4, 30]]])("fails only the culprits of 32: %j", async (culprits) => {
    let statements = 0;
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: (ops: Op[]) => {
        statements++;
        return insert(ops);
      },
    });
    const values = Array.from({ length: 32 }, (_, n) => (culprits.includes(n) ? `{${n}` : `${100 + n}`));
    const results = await Promise.allSettled(values.map((value, n) => send(op(`k${n}`, value))));
    results.forEach((result, n) => {
      if (culprits.includes(n)) expect(result).toMatchObject({ status: "rejected", reason: { code: "22P02" } });
      else expect(result).toEqual({ status: "fulfilled", value: values[n] });
    });
    expect(await entries()).toEqual(values.filter((_, n) => !culprits.includes(n)).toSorted());
    expect(statements).toBeLessThanOrEqual(1 + culprits.length * 2 * Math.log2(32));
  });

  it("keeps the order of a key around its culprit", async () => {
    const order: string[] = [];
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: async (ops: Op[]) => {
        const done = await insert(ops);
        order.push(...done);
        return done;
      },
    });
    const values = ["1", "2", "{", "3", "4", "5"];
    const results = await Promise.allSettled(values.map((value) => send(op("same", value))));
    expect(results.map(({ status }) => status === "fulfilled")).toEqual([true, true, false, true, true, true]);
    expect(order).toEqual(["1", "2", "3", "4", "5"]);
  });

  it("any other error fails the batch at once", async () => {
    let statements = 0;
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: async () => {
        statements++;
        await pool.query("INSERT INTO no_such_table VALUES (1)");
        return [];
      },
    });
    const results = await Promise.allSettled([send(op("k1")), send(op("k2"))]);
    for (const result of results) expect(result).toMatchObject({ status: "rejected", reason: { code: "42P01" } });
    expect(statements).toBe(1);
  });
});

describe("a broken connection", () => {
  /** Reads back by value: each value is written by one operation only. */
  const readBack = async (ops: Op[]) => {
    const { rows } = await pool.query("SELECT value FROM entries WHERE value = ANY($1::text[])", [
      ops.map(({ value }) => value),
    ]);
    const found = new Set(rows.map((row) => row.value));
    return ops.map(({ value }) => (found.has(value) ? `read back ${value}` : undefined));
  };
  const quoted = (ops: Op[]) => ops.map(({ value }) => `('${value}')`).join(", ");

  async function throughProxy() {
    const url = new URL(database.url);
    const proxy = await startProxy(Number(url.port), url.hostname);
    url.host = `127.0.0.1:${proxy.port}`;
    const own = openPool({ url: url.href, logger });
    return {
      own,
      proxy,
      close: async () => {
        await own.end();
        await proxy.close();
      },
    };
  }

  it("after the commit and before the answer: it is read back and not sent twice", async () => {
    const { own, proxy, close } = await throughProxy();
    let sends = 0;
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: async (ops: Op[]) => {
        sends++;
        // One message to the server: its answer comes after the last statement, which waits for the test.
        await own.query(`BEGIN; INSERT INTO entries VALUES ${quoted(ops)}; COMMIT; SELECT pg_advisory_lock(11)`);
        return ops.map(({ value }) => `sent ${value}`);
      },
      recover: readBack,
    });
    try {
      await pool.query("BEGIN; SELECT 1; COMMIT");
      const results = await transaction(pool, async (tx) => {
        await tx.query("SELECT pg_advisory_xact_lock(11)");
        const sent = Promise.all([send(op("a", "one")), send(op("b", "two"))]);
        await lockWaiters(1);
        expect(await entries()).toEqual(["one", "two"]);
        proxy.cut();
        return await sent;
      });
      expect(results).toEqual(["read back one", "read back two"]);
      expect(await entries()).toEqual(["one", "two"]);
      expect(sends).toBe(1);
    } finally {
      await close();
    }
  });

  it("before the commit: it is looked for, not found, and sent again", async () => {
    let sends = 0;
    let lookedFor: string[] = [];
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: (ops: Op[]) =>
        transaction(pool, async (tx) => {
          await tx.query(`INSERT INTO entries VALUES ${quoted(ops)}`);
          // The server ends the session with the work done and not committed.
          if (++sends === 1) await tx.query("SELECT pg_terminate_backend(pg_backend_pid())");
          return ops.map(({ value }) => `sent ${value}`);
        }),
      recover: (ops) => {
        lookedFor = ops.map(({ value }) => value);
        return readBack(ops);
      },
    });
    expect(await Promise.all([send(op("a", "one")), send(op("b", "two"))])).toEqual(["sent one", "sent two"]);
    expect(lookedFor).toEqual(["one", "two"]);
    expect(await entries()).toEqual(["one", "two"]);
    expect(sends).toBe(2);
  });

  it("only what turns out to be missing is sent again", async () => {
    const sends: string[][] = [];
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: async (ops: Op[]) => {
        sends.push(ops.map(({ value }) => value));
        if (sends.length > 1) await pool.query(`INSERT INTO entries VALUES ${quoted(ops)}`);
        else {
          await pool.query("INSERT INTO entries VALUES ('two')");
          await pool.query("SELECT pg_terminate_backend(pg_backend_pid())");
        }
        return ops.map(({ value }) => `sent ${value}`);
      },
      recover: readBack,
    });
    const sent = ["one", "two", "three"].map((value, n) => send(op(`k${n}`, value)));
    expect(await Promise.all(sent)).toEqual(["sent one", "read back two", "sent three"]);
    expect(sends).toEqual([
      ["one", "two", "three"],
      ["one", "three"],
    ]);
    expect(await entries()).toEqual(["one", "three", "two"]);
  });

  it("it waits until the database is back, for the reading back too, and then goes on in order", async () => {
    const { own, proxy, close } = await throughProxy();
    const refused = Promise.withResolvers<void>();
    let lookups = 0;
    const order: string[] = [];
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: async (ops: Op[]) => {
        await own.query(`INSERT INTO entries VALUES ${quoted(ops)}`);
        order.push(...ops.map(({ value }) => value));
        return ops.map(({ value }) => value);
      },
      recover: async (ops) => {
        if (++lookups === 3) refused.resolve();
        await own.query("SELECT 1");
        return readBack(ops);
      },
    });
    try {
      await send(op("k", "before"));
      proxy.refuse(true);
      proxy.cut();
      const waiting = [send(op("k", "one")), send(op("k", "two")), send(op("j", "three"))];
      await refused.promise;
      waiting.push(send(op("k", "four")));
      proxy.refuse(false);
      expect(await Promise.all(waiting)).toEqual(["one", "two", "three", "four"]);
      expect(order).toEqual(["before", "three", "one", "two", "four"]);
      expect(await entries()).toHaveLength(5);
    } finally {
      await close();
    }
  });

  it("the waiting ends when the signal aborts", async () => {
    const { own, proxy, close } = await throughProxy();
    const stop = new AbortController();
    const tried = Promise.withResolvers<void>();
    const send = createBatcher({
      key: (o: Op) => o.key,
      signal: stop.signal,
      execute: async (ops: Op[]) => {
        await own.query("SELECT 1");
        return ops;
      },
      recover: async () => {
        tried.resolve();
        await own.query("SELECT 1");
        return [undefined];
      },
    });
    try {
      proxy.refuse(true);
      const failure = send(op("k")).catch((error) => error);
      await tried.promise;
      stop.abort();
      expect(faultOf(await failure)).toBe("unavailable");
      const late = send(op("k")).catch((error) => error);
      expect(faultOf(await late)).toBe("unavailable");
    } finally {
      await close();
    }
  });

  it("without a way to read back it rejects, and the next batch goes on", async () => {
    let sends = 0;
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: async (ops: Op[]) => {
        if (++sends === 1) await pool.query("SELECT pg_terminate_backend(pg_backend_pid())");
        return appendOneByOne(pool, ops);
      },
    });
    const failures = await Promise.allSettled([send(op("k1", "x")), send(op("k2", "x"))]);
    for (const failure of failures) {
      expect(failure.status).toBe("rejected");
      expect(faultOf((failure as PromiseRejectedResult).reason)).toBe("unavailable");
    }
    expect(sends).toBe(1);
    await expect(send(op("k1", "y"))).resolves.toBe("y");
    expect(await items("k1")).toEqual(["y"]);
  });

  it("a reading back that the server refuses for its data does not send anything blindly", async () => {
    let sends = 0;
    const send = createBatcher({
      key: (o: Op) => o.key,
      execute: async (ops: Op[]) => {
        sends++;
        await pool.query(`INSERT INTO entries VALUES ${quoted(ops)}`);
        if (sends === 1) await pool.query("SELECT pg_terminate_backend(pg_backend_pid())");
        return ops.map(({ value }) => `sent ${value}`);
      },
      recover: async (ops) => {
        if (ops.some(({ value }) => value === "odd")) await pool.query("SELECT 'odd'::int");
        return readBack(ops);
      },
    });
    const results = await Promise.allSettled(["one", "odd", "two"].map((value) => send(op(value, value))));
    expect(results).toEqual([
      { status: "fulfilled", value: "read back one" },
      { status: "rejected", reason: expect.objectContaining({ code: "22P02" }) },
      { status: "fulfilled", value: "read back two" },
    ]);
    expect(sends).toBe(1);
    expect(await entries()).toEqual(["odd", "one", "two"]);
  });
});

it("a batcher whose key or statement throws answers the callers, and goes on", async () => {
  let broken = true;
  const send = createBatcher<Op, string>({
    key: ({ key }) => {
      if (key === "none") throw new Error("no key");
      return key;
    },
    execute: async (ops) => {
      if (broken) throw undefined;
      return ops.map(({ value }) => value);
    },
  });
  await expect(send(op("none"))).rejects.toThrow("no key");
  await expect(send(op("k"))).rejects.toBeUndefined();
  broken = false;
  await expect(send(op("k", "fine"))).resolves.toBe("fine");
});
