/** The pool, transactions, and what real errors of a real server mean. */
import { type Fault, faultOf, openPool, type Pool, type Transaction, transaction } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { adminQuery, createDatabase, type TestDatabase } from "../support/database.ts";
import { freePort } from "../support/ports.ts";
import { startPostgres } from "../support/postgres.ts";
import { type FaultProxy, startProxy } from "../support/proxy.ts";

const logger = createLogger({ name: "test", level: "silent" });
let database: TestDatabase;
let pool: Pool;
beforeAll(async () => {
  database = await createDatabase();
  pool = openPool({ url: database.url, logger });
  await pool.query("CREATE TABLE things (id int PRIMARY KEY, note text CHECK (note <> 'bad'))");
});
afterAll(async () => {
  await pool.end();
  await database.drop();
});
afterEach(() => pool.query("TRUNCATE things"));

/** A pool of its own for what breaks connections; ended with the test. */
async function withPool<T>(options: Partial<Parameters<typeof openPool>[0]>, body: (own: Pool) => Promise<T>) {
  const own = openPool({ url: database.url, logger, ...options });
  try {
    return await body(own);
  } finally {
    await own.end();
  }
}

/** The same database by way of a proxy. */
async function withProxy<T>(body: (url: string, proxy: FaultProxy) => Promise<T>): Promise<T> {
  const url = new URL(database.url);
  const proxy = await startProxy(Number(url.port), url.hostname);
  url.host = `127.0.0.1:${proxy.port}`;
  try {
    return await body(url.href, proxy);
  } finally {
    await proxy.close();
  }
}

const things = async () => (await pool.query("SELECT id FROM things ORDER BY id")).rows.map((row) => row.id);
const pidOf = async (tx: Transaction): Promise<number> =>
  (await tx.query("SELECT pg_backend_pid() AS pid")).rows[0].pid;

/** Resolves once the backend has gone. */
async function terminate(pid: number): Promise<void> {
  const { rows } = await pool.query("SELECT pg_terminate_backend($1, 10000) AS gone", [pid]);
  expect(rows[0].gone).toBe(true);
}

/** Resolves once the backend waits for a lock. */
async function waitsForLock(pid: number): Promise<void> {
  for (;;) {
    const { rows } = await pool.query("SELECT wait_event_type AS type FROM pg_stat_activity WHERE pid = $1", [pid]);
    if (rows[0]?.type === "Lock") return;
  }
}

async function failureOf(promise: Promise<unknown>): Promise<{ code?: string; message: string }> {
  try {
    await promise;
  } catch (error) {
    return error as { code?: string; message: string };
  }
  throw new Error("it did not fail");
}

it("parses bigint and numeric as numbers and times as dates", async () => {
  const { rows } = await pool.query(
    "SELECT 9007199254740991::bigint AS big, 0.5::numeric AS num, 7::int AS small, '2026-11-05T10:00:00.123Z'::timestamptz AS at",
  );
  expect(rows[0]).toEqual({
    big: Number.MAX_SAFE_INTEGER,
    num: 0.5,
    small: 7,
    at: new Date("2026-11-05T10:00:00.123Z"),
  });
});

describe("transaction", () => {
  it("commits what the body did and gives its result", async () => {
    const result = await transaction(pool, async (tx) => {
      await tx.query("INSERT INTO things VALUES (1)");
      expect(await things()).toEqual([]);
      return "done";
    });
    expect(result).toBe("done");
    expect(await things()).toEqual([1]);
  });

  it("rolls back when the body throws, and the connection is good for the next one", async () => {
    await withPool({ max: 1 }, async (own) => {
      const pids: number[] = [];
      const body = transaction(own, async (tx) => {
        pids.push(await pidOf(tx));
        await tx.query("INSERT INTO things VALUES (1)");
        throw new Error("changed my mind");
      });
      await expect(body).rejects.toThrow("changed my mind");
      expect(await things()).toEqual([]);
      await transaction(own, async (tx) => {
        pids.push(await pidOf(tx));
        await tx.query("INSERT INTO things VALUES (2)");
      });
      expect(await things()).toEqual([2]);
      expect(pids[1]).toBe(pids[0]);
    });
  });

  it("does not pretend to have committed when the body swallowed a failure", async () => {
    const body = transaction(pool, async (tx) => {
      await tx.query("INSERT INTO things VALUES (1)");
      await tx.query("INSERT INTO things VALUES (1)").catch(() => {});
    });
    await expect(body).rejects.toThrow("nothing was committed");
    expect(await things()).toEqual([]);
  });

  it("rejects, and the process lives, when the connection is lost between two statements", async () => {
    await withPool({ max: 1 }, async (own) => {
      let pid = 0;
      const body = transaction(own, async (tx) => {
        pid = await pidOf(tx);
        await tx.query("INSERT INTO things VALUES (1)");
        const lost = new Promise((resolve) => tx.once("end", resolve));
        await terminate(pid);
        await lost;
        await tx.query("INSERT INTO things VALUES (2)");
      });
      expect(faultOf(await failureOf(body))).toBe("unavailable");
      expect(await things()).toEqual([]);
      expect(await transaction(own, pidOf)).not.toBe(pid);
    });
  });

  it("lets go of a connection that no longer answers", async () => {
    await withProxy(async (url, proxy) => {
      await withPool({ url, max: 1, answerTimeoutMs: 300 }, async (own) => {
        const body = transaction(own, async (tx) => {
          await tx.query("INSERT INTO things VALUES (1)");
          proxy.forget();
          await tx.query("INSERT INTO things VALUES (2)");
        });
        expect(faultOf(await failureOf(body))).toBe("unavailable");
        await transaction(own, (tx) => tx.query("INSERT INTO things VALUES (3)"));
        expect(await things()).toEqual([3]);
      });
    });
  });
});

it("a pool survives the loss of its idle connections", async () => {
  await withPool({ max: 2 }, async (own) => {
    const pids = await Promise.all(
      [1, 2].map(async () => (await own.query("SELECT pg_backend_pid() AS pid")).rows[0].pid),
    );
    const lost = new Promise<void>((resolve) => own.once("error", () => resolve()));
    for (const pid of new Set(pids)) await terminate(pid);
    await lost;
    await expect(own.query("SELECT 1")).resolves.toMatchObject({ rowCount: 1 });
  });
});

describe("a server that says nothing", () => {
  it("is noticed while a statement is out, and everybody is told until it answers", async () => {
    await withProxy(async (url, proxy) => {
      await withPool({ url, max: 2 }, async (own) => {
        await own.query("SELECT 1");
        proxy.blackhole(true);
        // The second waits for the first one's connection attempt or statement, the third for a free connection.
        const told = await Promise.all([1, 2, 3].map(() => failureOf(own.query("SELECT 1"))));
        for (const error of told) expect(faultOf(error)).toBe("unavailable");
        const connections = proxy.connections;
        for (let times = 0; times < 50; times++)
          expect((await failureOf(own.query("SELECT 1"))).message).toBe("Postgres does not answer");
        expect(proxy.connections).toBeLessThanOrEqual(connections + 1);
        proxy.blackhole(false);
        await expect.poll(() => own.query("SELECT 1").then(() => "answered", faultOf)).toBe("answered");
      });
    });
  });

  it("breaks the transaction that is open, also between two statements", async () => {
    await withProxy(async (url, proxy) => {
      await withPool({ url, max: 1 }, async (own) => {
        const body = transaction(own, async (tx) => {
          await tx.query("INSERT INTO things VALUES (1)");
          const lost = new Promise((resolve) => tx.once("end", resolve));
          proxy.blackhole(true);
          await lost;
          await tx.query("INSERT INTO things VALUES (2)");
        });
        expect(faultOf(await failureOf(body))).toBe("unavailable");
        proxy.blackhole(false);
        await expect.poll(() => own.query("SELECT 1").then(() => "answered", faultOf)).toBe("answered");
        expect(await things()).toEqual([]);
      });
    });
  });

  it("is not one that is slow, nor one that answers late because we were busy", async () => {
    await withPool({ max: 2 }, async (own) => {
      const pids = await own.query("SELECT pg_backend_pid() AS pid, pg_sleep(2)");
      const asked = own.query("SELECT pg_backend_pid() AS pid, pg_sleep(0.1)");
      await new Promise((resolve) => setImmediate(resolve));
      const until = performance.now() + 1500;
      while (performance.now() < until);
      expect((await asked).rows[0].pid).toBe(pids.rows[0].pid);
    });
  });

  it("may be closed", async () => {
    await withProxy(async (url, proxy) => {
      await withPool({ url, max: 1 }, async (own) => {
        proxy.blackhole(true);
        expect(faultOf(await failureOf(own.query("SELECT 1")))).toBe("unavailable");
      });
      // And nobody asks any more.
      proxy.blackhole(false);
      await expect.poll(() => proxy.connections).toBe(0);
    });
  });
});

describe("a pool whose connections are all taken", () => {
  it("makes a request wait as long as others are answered", async () => {
    await withPool({ max: 1, stuckAfterMs: 300 }, async (own) => {
      const queue = Array.from({ length: 12 }, () => own.query("SELECT pg_sleep(0.1)"));
      await expect(own.query("SELECT 1")).resolves.toMatchObject({ rowCount: 1 });
      await Promise.all(queue);
    });
  });

  it("turns it away when none is, and serves the next one", async () => {
    await withPool({ max: 1, stuckAfterMs: 100 }, async (own) => {
      await transaction(own, async () => {
        const failures = await Promise.all([failureOf(own.query("SELECT 1")), failureOf(own.connect())]);
        for (const error of failures) expect(faultOf(error)).toBe("unavailable");
      });
      await expect(own.query("SELECT 1")).resolves.toMatchObject({ rowCount: 1 });
      expect([own.totalCount, own.waitingCount]).toEqual([1, 0]);
    });
  });
});

it("a transaction whose client is cut off does not keep its locks", async () => {
  const limit = await transaction(pool, (tx) => tx.query("SHOW idle_in_transaction_session_timeout"));
  expect(limit.rows).toEqual([{ idle_in_transaction_session_timeout: "15s" }]);
  const after = await pool.query("SHOW idle_in_transaction_session_timeout");
  expect(after.rows).toEqual([{ idle_in_transaction_session_timeout: "0" }]);
  await withPool({ max: 1 }, async (own) => {
    const body = transaction(own, async (tx) => {
      await tx.query("SET LOCAL idle_in_transaction_session_timeout = 50");
      const ended = new Promise((resolve) => tx.once("end", resolve));
      await tx.query("INSERT INTO things VALUES (1)");
      await ended;
    });
    expect(faultOf(await failureOf(body))).toBe("unavailable");
    expect(await things()).toEqual([]);
  });
});

describe("faultOf", () => {
  it.each<[string, string, string, Fault]>([
    ["a unique violation", "INSERT INTO things VALUES (1), (1)", "23505", "data"],
    ["a check violation", "INSERT INTO things VALUES (1, 'bad')", "23514", "data"],
    ["bad JSON", "SELECT '{'::json", "22P02", "data"],
    ["a NUL that jsonb cannot keep", `SELECT '"\\u0000"'::jsonb`, "22P05", "data"],
    ["JSON nested too deep", "SELECT repeat('[', 1000000)::json", "54001", "data"],
    [
      "a value too long for its index",
      "INSERT INTO indexed SELECT string_agg(md5(n::text), '') FROM generate_series(1, 5000) n",
      "54000",
      "data",
    ],
    ["a number out of range", "SELECT 99999999999::int", "22003", "data"],
    ["a lock that is not waited for", "SELECT pg_temp.raise_code('55P03')", "55P03", "conflict"],
    ["a table that is not there", "SELECT * FROM no_such_table", "42P01", "other"],
    ["a statement that is none", "SELEKT 1", "42601", "other"],
    [
      "a read-only server after a fail-over",
      "SET transaction_read_only = on; INSERT INTO things VALUES (1)",
      "25006",
      "unavailable",
    ],
    ["a full disk", "SELECT pg_temp.raise_code('53100')", "53100", "unavailable"],
    ["a disk that fails", "SELECT pg_temp.raise_code('58030')", "58030", "unavailable"],
    ["a time limit of the server", "SET statement_timeout = 10; SELECT pg_sleep(600)", "57014", "unavailable"],
  ])("%s", async (_what, statement, code, fault) => {
    await withPool({ max: 1 }, async (own) => {
      await own.query(
        `CREATE FUNCTION pg_temp.raise_code(code text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION USING ERRCODE = code; END $$;
         CREATE TEMPORARY TABLE indexed (t text UNIQUE)`,
      );
      const error = await failureOf(own.query(statement));
      expect(error.code).toBe(code);
      expect(faultOf(error)).toBe(fault);
    });
  });

  it("a deadlock and a serialization failure are conflicts", async () => {
    await pool.query("INSERT INTO things VALUES (1), (2)");
    const deadlock = await failureOf(
      transaction(pool, async (one) => {
        const pid = await pidOf(one);
        await one.query("SELECT FROM things WHERE id = 1 FOR UPDATE");
        await transaction(pool, async (two) => {
          await two.query("SELECT FROM things WHERE id = 2 FOR UPDATE");
          const crossing = one.query("SELECT FROM things WHERE id = 2 FOR UPDATE");
          await waitsForLock(pid);
          await Promise.all([crossing, two.query("SELECT FROM things WHERE id = 1 FOR UPDATE")]);
        });
      }),
    );
    expect(deadlock.code).toBe("40P01");
    expect(faultOf(deadlock)).toBe("conflict");

    const stale = await failureOf(
      transaction(pool, async (tx) => {
        await tx.query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ");
        await tx.query("SELECT FROM things");
        await pool.query("UPDATE things SET note = 'new' WHERE id = 1");
        await tx.query("UPDATE things SET note = 'newer' WHERE id = 1");
      }),
    );
    expect(stale.code).toBe("40001");
    expect(faultOf(stale)).toBe("conflict");
  });

  it("a terminated backend, in the middle of a statement, is unavailable", async () => {
    const failing = transaction(pool, async (tx) => {
      const pid = await pidOf(tx);
      const sleeping = tx.query("SELECT pg_sleep(600)");
      await Promise.all([sleeping, terminate(pid)]);
    });
    const error = await failureOf(failing);
    expect(error.code).toBe("57P01");
    expect(faultOf(error)).toBe("unavailable");
  });

  it("a cut, a refused and a silent connection are unavailable", async () => {
    await withProxy(async (url, proxy) => {
      await withPool({ url, max: 1, answerTimeoutMs: 300 }, async (own) => {
        const sleeping = failureOf(own.query("SELECT pg_sleep(600)"));
        while (proxy.connections === 0) await pool.query("SELECT 1");
        proxy.cut();
        expect(faultOf(await sleeping)).toBe("unavailable");

        proxy.refuse(true);
        expect(faultOf(await failureOf(own.query("SELECT 1")))).toBe("unavailable");
        proxy.refuse(false);

        await own.query("SELECT 1");
        proxy.forget();
        expect(faultOf(await failureOf(own.query("SELECT 1")))).toBe("unavailable");
        await expect(own.query("SELECT 1")).resolves.toMatchObject({ rowCount: 1 });
      });
      await withPool({ url, max: 1, connectTimeoutMs: 300 }, async (own) => {
        proxy.blackhole(true);
        expect(faultOf(await failureOf(own.query("SELECT 1")))).toBe("unavailable");
        proxy.blackhole(false);
      });
    });
  });

  it("a pool without a free connection is unavailable", async () => {
    await withPool({ max: 1, connectTimeoutMs: 1500 }, (own) =>
      transaction(own, async () => {
        expect(faultOf(await failureOf(own.query("SELECT 1")))).toBe("unavailable");
      }),
    );
  });

  it("a server that takes no more connections, and one that is not there, are unavailable", async () => {
    const role = `r_${database.name}`;
    await adminQuery(database.url, `CREATE ROLE ${role} LOGIN PASSWORD 'x'`);
    await adminQuery(database.url, `ALTER ROLE ${role} CONNECTION LIMIT 0`);
    const limited = new URL(database.url);
    limited.username = role;
    limited.password = "x";
    const error = await withPool({ url: limited.href }, (own) => failureOf(own.query("SELECT 1")));
    await adminQuery(database.url, `DROP ROLE ${role}`);
    expect(error.code).toBe("53300");
    expect(faultOf(error)).toBe("unavailable");

    const nowhere = new URL(database.url);
    nowhere.host = `localhost:${await freePort()}`;
    const refused = await withPool({ url: nowhere.href }, (own) => failureOf(own.query("SELECT 1")));
    expect(faultOf(refused)).toBe("unavailable");
    nowhere.host = "no-such-host.invalid:5432";
    const unknown = await withPool({ url: nowhere.href }, (own) => failureOf(own.query("SELECT 1")));
    expect(faultOf(unknown)).toBe("unavailable");
  });

  it("a server that crashes, restarts and shuts down is unavailable until it is back", async () => {
    const server = await startPostgres();
    try {
      await withPool({ url: server.url, max: 2 }, async (own) => {
        const crashed = failureOf(own.query("SELECT pg_sleep(600)"));
        await own.query("SELECT 1");
        await server.kill("SIGKILL");
        expect(faultOf(await crashed)).toBe("unavailable");
        // Other connections' processes notice that the server is gone each in its own time.
        await expect.poll(() => own.query("SELECT 1").then(() => "answered", faultOf)).toBe("unavailable");
        await server.restart();
        const stopped = failureOf(own.query("SELECT pg_sleep(600)"));
        await own.query("SELECT 1");
        await server.restart();
        expect(faultOf(await stopped)).toBe("unavailable");
        await expect(own.query("SELECT 1")).resolves.toMatchObject({ rowCount: 1 });
      });
    } finally {
      await server.stop();
    }
  });

  it("what is no error of Postgres is other, whatever was thrown", () => {
    for (const thrown of [undefined, null, "text", 7, {}, new Error("a bug"), new AggregateError([new Error("x")])])
      expect(faultOf(thrown)).toBe("other");
    const refused = Object.assign(new Error("refused"), { code: "ECONNREFUSED" });
    expect(faultOf(new AggregateError([new Error("x"), refused]))).toBe("unavailable");
  });
});
