/**
 * A pool that notices within a second when Postgres has fallen silent (stopped, cut off, unreachable), which TCP does not tell for minutes.
 * A slow statement is no sign of it, nor is one that waits in a pooler's queue: while something is out and nothing comes back, a direct connection
 * of its own asks `SELECT 1`. When that is not answered either, every connection is reset and everybody is told at once, until that one connection
 * has an answer again.
 */
import type { Socket } from "node:net";
import type { Logger } from "@drover/telemetry";
import pg from "pg";
import { isStale, NamingClient, StatementNames } from "./prepared.ts";

/** Nothing came back for so long: ask. */
const suspectAfterMs = 200;
/** The same while nobody waits for an answer, between two statements of a transaction. */
const idleSuspectAfterMs = 2000;
/** An answer to `SELECT 1` takes no longer, on the busiest machine; while away, how long a connection attempt is worth waiting for. */
const answerWithin = { suspected: 500, away: 1000 };
/** Between two attempts while Postgres is away. */
const askAgainMs = 100;
/** Times are counted in ticks of this process, so that a pause of ours, in which answers are not read, is no silence of Postgres. */
const tickMs = 50;

export interface SilencePoolOptions extends pg.PoolConfig {
  logger: Logger;
  /** The server without a pooler in between, to ask whether it answers. */
  directUrl: string;
  /** See `DatabaseOptions`. */
  stuckAfterMs: number | undefined;
  prepared: boolean;
}

export class SilencePool extends pg.Pool {
  readonly #config: pg.ClientConfig;
  readonly #logger: Logger;
  readonly #stuckAfterMs: number | undefined;
  readonly #clients = new Set<pg.Client>();
  /** Answers so far. */
  #answers = 0;
  #watching = false;
  readonly #waiting = new Set<{ forMs: number; turnAway(): void }>();
  #lookingAfter = false;
  /** Set while Postgres is away: what everybody is told. */
  #away: Error | undefined;
  #asking: pg.Client | undefined;

  constructor({ logger, stuckAfterMs, directUrl, prepared, ...config }: SilencePoolOptions) {
    const pool = { current: undefined as SilencePool | undefined };
    const names = new StatementNames(prepared, () =>
      logger.warn(
        "named statements do not last on these connections: each is planned anew from now on. Before a PgBouncer older than 1.21, or one with max_prepared_statements = 0, set DATABASE_PREPARED_STATEMENTS=false",
      ),
    );
    class Client extends NamingClient {
      constructor(options: pg.ClientConfig = {}) {
        super(options, names);
      }
      override connect(): Promise<pg.Client>;
      override connect(callback: (error: Error) => void): void;
      override connect(callback?: (error: Error) => void): Promise<pg.Client> | undefined {
        const refusal = pool.current!.#admit(this);
        if (!callback) return refusal ? Promise.reject(refusal) : super.connect();
        if (refusal) process.nextTick(callback, refusal);
        else super.connect(callback);
        return undefined;
      }
      override end(): Promise<void>;
      override end(callback: (error: Error) => void): void;
      override end(callback?: (error: Error) => void): Promise<void> | undefined {
        // Given up on with a statement under way.
        if (!(this as { readyForQuery?: boolean | null }).readyForQuery) reset(this);
        if (!callback) return super.end();
        super.end(callback);
        return undefined;
      }
    }
    super({ ...config, Client: Client as new () => pg.ClientBase });
    pool.current = this;
    this.#config = { ...config, connectionString: directUrl, application_name: `${config.application_name} probe` };
    this.#logger = logger;
    this.#stuckAfterMs = stuckAfterMs;
    this.on("acquire", () => this.#watch());
  }

  /**
   * A connection. Where all are taken, the wait ends when none of them was answered for `stuckAfterMs`: a queue of work that moves is no
   * outage. @throws Error for which `faultOf` says `unavailable`
   */
  override connect(): Promise<pg.PoolClient>;
  override connect(callback: ConnectCallback): void;
  override connect(callback?: ConnectCallback): Promise<pg.PoolClient> | undefined {
    const free = this.idleCount > 0 || this.totalCount < this.options.max;
    const waiting = free || this.#stuckAfterMs === undefined ? undefined : this.#waitForFree();
    if (!callback) return waiting ?? super.connect();
    if (!waiting) super.connect(callback);
    else
      waiting.then(
        (client) => callback(undefined, client, client.release),
        (error) => callback(error, undefined, () => {}),
      );
    return undefined;
  }

  /** A statement of its own. One that a named statement stood in the way of has not run, and is sent again. */
  override query(...args: never[]): never {
    const send = super.query.bind(this) as (...args: unknown[]) => Promise<unknown>;
    const again = (error: unknown) => {
      if (!isStale(error)) throw error;
      return send(...args);
    };
    return send(...args).catch(again) as never;
  }

  #waitForFree(): Promise<pg.PoolClient> {
    return new Promise((resolve, reject) => {
      const turnAway = () => {
        this.#waiting.delete(waiter);
        reject(unanswered("every connection to Postgres is taken, and none of them gets an answer"));
      };
      const waiter = { forMs: 0, turnAway };
      this.#waiting.add(waiter);
      super.connect((error, client) => {
        if (!this.#waiting.delete(waiter)) client?.release();
        else if (error) reject(error);
        else resolve(client!);
      });
      void this.#lookAfterWaiting();
    });
  }

  async #lookAfterWaiting(): Promise<void> {
    if (this.#lookingAfter) return;
    this.#lookingAfter = true;
    for (let answers = this.#answers; this.#waiting.size > 0; answers = this.#answers) {
      await pause(tickMs);
      for (const waiter of this.#waiting) {
        waiter.forMs = this.#answers === answers ? waiter.forMs + tickMs : 0;
        if (waiter.forMs >= this.#stuckAfterMs!) waiter.turnAway();
      }
    }
    this.#lookingAfter = false;
  }

  /** A new connection may be made, unless Postgres is known to be away. */
  #admit(client: pg.Client): Error | undefined {
    if (this.#away) return this.#away;
    this.#clients.add(client);
    const heard = () => this.#answers++;
    client.on("connect", heard);
    // After each answer, also an error's.
    client.on("drain", heard);
    client.once("end", () => this.#clients.delete(client));
    this.#watch();
    return undefined;
  }

  get #busy(): boolean {
    return !this.ended && (this.totalCount > this.idleCount || this.waitingCount > 0);
  }

  /** Somebody waits for an answer, or for a connection. One that is out and idle, as a leader's is mostly, waits for nothing. */
  get #expecting(): boolean {
    if (this.waitingCount > 0) return true;
    for (const client of this.#clients) if (!(client as { readyForQuery?: boolean | null }).readyForQuery) return true;
    return false;
  }

  /** Runs while something is out. */
  async #watch(): Promise<void> {
    if (this.#watching) return;
    this.#watching = true;
    let silentMs = 0;
    while (this.#busy) {
      const answers = this.#answers;
      await pause(suspectAfterMs);
      if (this.#answers !== answers || !this.#busy) {
        silentMs = 0;
        continue;
      }
      silentMs += suspectAfterMs;
      if (!this.#expecting && silentMs < idleSuspectAfterMs) continue;
      silentMs = 0;
      if ((await this.#isAnswered(answerWithin.suspected)) || this.#answers !== answers) continue;
      await this.#beAway();
    }
    this.#watching = false;
    this.#stopAsking();
  }

  async #beAway(): Promise<void> {
    this.#away = unanswered("Postgres does not answer");
    this.#logger.warn("Postgres does not answer: everybody is told at once until it does");
    for (const client of this.#clients) reset(client);
    while (!this.ended && !(await this.#isAnswered(answerWithin.away))) await pause(askAgainMs);
    this.#away = undefined;
    if (!this.ended) this.#logger.info("Postgres answers again");
  }

  /** Whether `SELECT 1` is answered in time. */
  async #isAnswered(withinMs: number): Promise<boolean> {
    let answered: boolean | undefined;
    const asked = this.#ask().then(
      () => true,
      // A server that refuses us (too many connections, starting up) is there, and tells everybody so itself.
      (error) => error instanceof pg.DatabaseError,
    );
    void asked.then((answer) => {
      answered = answer;
    });
    for (let ms = 0; ms < withinMs && answered === undefined; ms += tickMs) await Promise.race([asked, pause(tickMs)]);
    if (!answered) this.#stopAsking();
    return answered ?? false;
  }

  async #ask(): Promise<void> {
    if (!this.#asking) {
      this.#asking = new pg.Client({ ...this.#config, connectionTimeoutMillis: 0 });
      this.#asking.on("error", () => {});
      await this.#asking.connect();
    }
    await this.#asking.query("SELECT 1");
  }

  #stopAsking(): void {
    if (this.#asking) reset(this.#asking);
    this.#asking = undefined;
  }
}

/** Ends a connection at once. With a reset, so that the kernel does not go on sending what was lost: over TLS, that cannot be had. */
function reset(client: pg.Client): void {
  const stream = client.connection.stream as Socket;
  try {
    stream.resetAndDestroy();
  } catch {
    stream.destroy();
  }
}

type ConnectCallback = (
  error: Error | undefined,
  client: pg.PoolClient | undefined,
  done: (release?: Error | boolean) => void,
) => void;

const unanswered = (message: string): Error => Object.assign(new Error(message), { code: "ETIMEDOUT" });

/** Keeps no process alive. */
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms).unref());
