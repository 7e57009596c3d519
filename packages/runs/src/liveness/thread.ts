/**
 * The liveness thread: one direct connection that holds this worker's lock, says once a heartbeat "this worker lives", hears what it is told,
 * and looks whether the others live. It runs beside the main loop, so that a busy main loop is not taken for death; one that is stuck for
 * good it ends, with the whole process. Talks to `liveness.ts` by messages and shared memory only.
 */

import { randomInt } from "node:crypto";
import { once } from "node:events";
import { readFileSync, writeSync } from "node:fs";
import type { Debugger, InspectorNotification } from "node:inspector";
import { Session } from "node:inspector/promises";
import { setTimeout as delay } from "node:timers/promises";
import { parentPort, workerData } from "node:worker_threads";
import { toWireId, uuidv7 } from "@drover/protocol";
import pg from "pg";
import { type Held, sayAlive } from "./beat.ts";
import type { Death, FromThread, ThreadData, ToThread } from "./liveness.ts";
import { silent, unlocked, workersLock, workersLockClass } from "./lock.ts";
import { identify, isGone } from "./process.ts";
import { type Inside, insideName, LivenessMemory } from "./shared.ts";

/** This connection string will never do. */
class Unusable extends Error {}

const data = workerData as ThreadData;
const memory = new LivenessMemory(data.memory);
const port = parentPort!;
const tell = (message: FromThread) => port.postMessage(message);
const stopping = new AbortController();
const beatMs = data.leaseMs / 10;
/** Pause between two looks at the others' locks: a lock that is missing twice is the end of its worker. */
const lookMs = 500;
const reconnectMs = { first: 20, most: Math.min(1000, beatMs) };
/** What the watchdog gives its last words, ms. */
const lastWordsMs = 1000;
/** How long a stuck main loop may take to say whose code it runs, ms: at once, on a machine that has a processor for it. Beats go on meanwhile. */
const askMs = 2000;

const ownProcess = identify(data.pid);
let id = uuidv7();
let lockId = randomInt(1, 2 ** 31);
let registered = false;
let client: pg.Client | undefined;

/** What the heartbeats ask about. */
let held: Held = { runs: [], epochs: [] };

port.on("message", (message: ToThread) => {
  if (message === "stop") stopping.abort();
  else held = message;
});

/** One connection's life: lock, register or come back, then beat and look until it breaks or we are told to stop. */
async function live(): Promise<void> {
  const own = connect();
  client = own;
  const broken = new AbortController();
  own.on("error", (error) => broken.abort(error));
  own.on("end", () => broken.abort(new Error("the connection was closed")));
  own.on("notification", (message) => {
    if (message.channel === "drover_control" && message.payload) tell({ type: "cancel", runIds: [message.payload] });
  });
  try {
    await own.connect();
    if (!registered) await requireSession(own);
    await own.query("LISTEN drover_control");
    await takeLock(own);
    if (!registered) await register(own);
    const watch = new Watch();
    for (let beatAt = 0; !stopping.signal.aborted; ) {
      broken.signal.throwIfAborted();
      if (performance.now() >= beatAt) {
        beatAt = performance.now() + beatMs;
        await beat(own);
      }
      const deaths = await watch.look(own);
      if (deaths.length > 0) tell({ type: "deaths", deaths });
      const pauseMs = Math.max(0, Math.min(lookMs, beatAt - performance.now()));
      await delay(pauseMs, undefined, { signal: AbortSignal.any([stopping.signal, broken.signal]) }).catch(() => {});
    }
    await leave(own);
  } finally {
    await Promise.race([own.end().catch(() => {}), delay(lastWordsMs)]);
  }
}

function connect(): pg.Client {
  return new pg.Client({
    connectionString: data.url,
    connectionTimeoutMillis: data.leaseMs / 2,
    query_timeout: data.leaseMs / 2,
    keepAlive: true,
    application_name: "drover-liveness",
  });
}

/** A transaction pooler gives an idle client's server connection to the next one: then the lock and LISTEN would be somebody else's. */
async function requireSession(own: pg.Client): Promise<void> {
  const pidOf = async (of: pg.Client) =>
    (await of.query<{ pid: number }>("SELECT pg_backend_pid() AS pid")).rows[0]!.pid;
  const pid = await pidOf(own);
  const other = connect();
  other.on("error", () => {});
  try {
    await other.connect();
    await other.query("BEGIN");
    if ((await pidOf(other)) !== pid && (await pidOf(own)) === pid) return;
  } finally {
    await other.end().catch(() => {});
  }
  throw new Unusable(
    "DATABASE_DIRECT_URL (or DATABASE_URL, without it) leads through a transaction pooler, which keeps no lock and no LISTEN; set DATABASE_DIRECT_URL to the database itself",
  );
}

/** The same lock after a reconnect: a session of ours that the server still takes for living is ended. */
async function takeLock(own: pg.Client): Promise<void> {
  const take = async () =>
    (await own.query<{ taken: boolean }>("SELECT pg_try_advisory_lock($1, $2) AS taken", [workersLockClass, lockId]))
      .rows[0]!.taken;
  for (;;) {
    if (await take()) return;
    if (!registered) {
      lockId = randomInt(1, 2 ** 31);
      continue;
    }
    await own.query(
      `SELECT pg_terminate_backend(l.pid, 1000) FROM ${workersLock("l")} AND l.objid::bigint = $1 AND l.pid <> pg_backend_pid()`,
      [lockId],
    );
    if (await take()) return;
    throw new Error("the last connection of this worker still holds its lock");
  }
}

async function register(own: pg.Client): Promise<void> {
  const { host, pid, slots, leaseMs, known } = data;
  await own.query(
    `INSERT INTO workers (id, host, pid, process, slots, lease_ms, lock_id, agents, models) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
     ON CONFLICT DO NOTHING`,
    [id, host, pid, ownProcess, slots, leaseMs, lockId, known?.agents ?? null, known?.models ?? null],
  );
  registered = true;
  place = null;
  tell({ type: "registered", id });
}

/** Where this worker's row was written last. */
let place: string | null = null;

/** "I live": says it, and asks about the runs that this worker holds, by their keys. */
async function beat(own: pg.Client): Promise<void> {
  const sentAt = process.hrtime.bigint();
  const heard = await sayAlive(own, id, held, place);
  if (heard) {
    if (!heard.locked) throw new Error("this worker's lock is gone");
    place = heard.place;
    memory.confirmed = sentAt;
    tell({ type: "beat", lost: heard.lost, cancelled: heard.cancelled });
    return;
  }
  // Declared dead while away: what was owned is somebody else's. Start anew under another id; it was not a crash, and must not count as one.
  tell({ type: "dead", id });
  await own.query("UPDATE workers SET cause = 'silent' WHERE id = $1 AND cause = 'crashed'", [id]);
  // Whose row somebody removed has died as well, as far as its runs go.
  await own.query(
    `INSERT INTO workers (id, host, pid, slots, lease_ms, dead_at, cause) VALUES ($1, $2, $3, $4, $5, clock_timestamp(), 'silent')
     ON CONFLICT DO NOTHING`,
    [id, data.host, data.pid, data.slots, data.leaseMs],
  );
  await own.query(
    `UPDATE runs SET crashes = greatest(crashes - 1, 0), lost_worker = NULL
     WHERE id IN (SELECT id FROM runs WHERE lost_worker = $1 ORDER BY id FOR UPDATE)`,
    [id],
  );
  id = uuidv7();
  await register(own);
}

/** The row goes last. Whatever this worker could not hand over is free for the others at once; its row stays then, to say so. */
async function leave(own: pg.Client): Promise<void> {
  const { rowCount } = await own.query(
    "DELETE FROM workers w WHERE id = $1 AND dead_at IS NULL AND NOT EXISTS (SELECT FROM runs r WHERE r.worker = w.id AND r.status = 'running')",
    [id],
  );
  if (rowCount === 0)
    await own.query(
      "UPDATE workers SET dead_at = clock_timestamp(), cause = 'stopped' WHERE id = $1 AND dead_at IS NULL",
      [id],
    );
}

/**
 * Looks at the others over this worker's own connection, which breaks with a restart or fail-over: whoever is missing then may be away as we
 * were. Nobody is condemned before one lease of uninterrupted watching, except one whose process, on this machine, is certainly gone.
 */
class Watch {
  #since = performance.now();
  #last = { monotonic: performance.now(), wall: Date.now() };
  /** Workers whose lock was missing at the last look, and when. */
  #missing = new Map<string, number>();

  /** Returns the workers declared dead now, by us. */
  async look(own: pg.Client): Promise<Death[]> {
    const now = performance.now();
    // A gap in our own looks: whoever is silent may have been paused just like us. One of the clocks stands still while a machine sleeps.
    if (Math.max(now - this.#last.monotonic, Date.now() - this.#last.wall) > data.leaseMs / 2) {
      this.#since = now;
      this.#missing.clear();
    }
    this.#last = { monotonic: now, wall: Date.now() };
    const { rows } = await own.query<{ id: string; process: string | null; silent: boolean; unlocked: boolean }>(
      `SELECT id, process, silent, unlocked FROM (SELECT w.id, w.process, ${silent} AS silent, ${unlocked} AS unlocked FROM workers w
       WHERE w.dead_at IS NULL AND w.id <> $1) w WHERE silent OR unlocked`,
      [id],
    );
    const watched = now - this.#since > data.leaseMs;
    const before = this.#missing;
    this.#missing = new Map(rows.flatMap((row) => (row.unlocked ? [[row.id, before.get(row.id) ?? now]] : [])));
    const condemned = rows.filter(
      (row) =>
        (row.unlocked && isGone(ownProcess, row.process)) ||
        (watched && (row.silent || now - (this.#missing.get(row.id) ?? now) >= lookMs * 0.8)),
    );
    if (condemned.length === 0) return [];
    const { rows: dead } = await own.query<Death>(
      `UPDATE workers w SET dead_at = clock_timestamp(), cause = CASE WHEN ${unlocked} THEN 'crashed' ELSE 'silent' END
       WHERE w.id = ANY($1::uuid[]) AND w.dead_at IS NULL AND (${unlocked} OR ${silent}) RETURNING w.id, w.host, w.pid, w.cause`,
      [condemned.map((row) => row.id)],
    );
    return dead;
  }
}

/** Ends the process when its main loop has not come round for `limitMs`: a loop, a regular expression, a synchronous call. */
function watchMainLoop(limitMs: number): void {
  const limit = BigInt(Math.round(limitMs * 1e6));
  let lastTick = process.hrtime.bigint();
  let came = { pulse: memory.pulse, at: lastTick, starved: starvedNs() };
  const timer = setInterval(() => {
    const now = process.hrtime.bigint();
    const { pulse } = memory;
    const starved = starvedNs();
    // A gap in our own ticks: the whole process was paused, the main loop is not to blame.
    if (pulse !== came.pulse || now - lastTick > limit / 4n) came = { pulse, at: now, starved };
    lastTick = now;
    const excused = min(starved - came.starved, mostExcused * limit);
    if (now - came.at - excused <= limit) return;
    clearInterval(timer);
    void endProcess(limitMs);
  }, limitMs / 20);
}

const min = (a: bigint, b: bigint) => (a < b ? a : b);
/** A blocked loop on a busy machine must end as well: so many times its limit is what others' use of the processor excuses at most. */
const mostExcused = 3n;

/**
 * How long the main loop has been ready to run while others had the processor: a loop that gets none on a busy machine is not blocked. 0 where
 * the system does not say. Source: Linux's documentation, scheduler/sched-stats, `/proc/<pid>/schedstat`.
 */
function starvedNs(): bigint {
  try {
    return BigInt(readFileSync(`/proc/self/task/${data.pid}/schedstat`, "utf8").split(" ")[1] ?? 0);
  } catch {
    return 0n;
  }
}

async function endProcess(limitMs: number): Promise<void> {
  const culprit = (await whoIsRunning()) ?? memory.stuckIn();
  const about = {
    level: 60,
    time: new Date().toISOString(),
    name: "worker",
    pid: data.pid,
    worker: id,
    ...(culprit && { task_id: toWireId("run", culprit.runId), tool: culprit.tool }),
    msg: `the event loop has been blocked for ${limitMs / 1000} s${culprit?.tool ? ` by the tool ${culprit.tool}` : ""}: ending this process`,
  };
  try {
    // The logger lives in the loop that is stuck.
    writeSync(1, `${JSON.stringify(about)}\n`);
  } catch {
    // A full pipe: the row of `workers` says it too.
  }
  const told = client?.query(
    "UPDATE workers SET dead_at = clock_timestamp(), cause = 'blocked', culprit = $2, culprit_tool = $3 WHERE id = $1 AND dead_at IS NULL",
    [id, culprit?.runId ?? null, culprit?.tool ?? null],
  );
  await Promise.race([Promise.resolve(told).catch(() => {}), delay(lastWordsMs)]);
  // `process.exit` in a thread ends the thread only.
  process.kill(data.pid, "SIGKILL");
}

/**
 * Whose code the main loop is stuck in: it is stopped as a debugger would, and asked. undefined when it cannot be stopped, because it is inside
 * something native that waits or computes.
 */
async function whoIsRunning(): Promise<Inside | undefined> {
  const session = new Session();
  const ask = async (): Promise<Inside | undefined> => {
    session.connectToMainThread();
    const paused = once(session, "Debugger.paused");
    await session.post("Debugger.enable");
    await session.post("Debugger.pause");
    const [{ params }] = (await paused) as [InspectorNotification<Debugger.PausedEventDataType>];
    const { result } = await session.post("Debugger.evaluateOnCallFrame", {
      callFrameId: params.callFrames[0]!.callFrameId,
      expression: `JSON.stringify(globalThis[Symbol.for(${JSON.stringify(insideName)})]?.getStore() ?? null)`,
      silent: true,
    });
    return JSON.parse(result.value) ?? undefined;
  };
  return await Promise.race([ask().catch(() => undefined), delay(askMs, undefined)]);
}

if (data.watchdogMs !== undefined) watchMainLoop(data.watchdogMs);

for (let pauseMs = reconnectMs.first; !stopping.signal.aborted; ) {
  const connectedAt = performance.now();
  try {
    await live();
  } catch (error) {
    if (error instanceof Unusable) tell({ type: "unusable", reason: error.message });
    else tell({ type: "down", reason: (error as Error).message });
    // A connection that was cut is replaced at once: until then the lock is free.
    pauseMs = performance.now() - connectedAt > beatMs ? reconnectMs.first : Math.min(2 * pauseMs, reconnectMs.most);
    await delay(pauseMs, undefined, { signal: stopping.signal }).catch(() => {});
  }
}
process.exit(0);
