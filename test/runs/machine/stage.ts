/**
 * Real connections whose statements are sent in the order that fast-check's scheduler decides. Every statement of an actor, also within
 * its transactions, waits for its turn; the next turn comes when all that was sent has ended or waits for a lock that somebody holds
 * who is not sent yet. So an order is a list of turns, and can be replayed. Faults cut an actor off from its statement's answer.
 */
import { setTimeout as delay, setImmediate as tick } from "node:timers/promises";
import { faultOf, openPool, type Pool } from "@drover/storage";
import type { Scheduler } from "fast-check";
import type pg from "pg";
import { logger } from "../bench.ts";

/**
 * What happens to the actor's statement number `at`. `before`: it never arrives. `after`: it is executed, its answer is lost. `killed`: as `after`, and
 * the actor is never heard of again. `cut`: from that one on, the first that must wait for a lock is cut off, while the server is still at it.
 */
export interface Fault {
  at: number;
  kind: "before" | "after" | "cut" | "killed";
}

/** Somebody who sends statements, one at a time. `say` names what comes next, for reports. */
export interface Part {
  name: string;
  faults: Fault[];
  act(pool: Pool, say: (what: string) => void): Promise<void>;
}

/** A statement that Postgres refused, of whatever actor. */
interface Refused {
  actor: string;
  code: string;
  message: string;
}

type State = "thinking" | "asking" | "scheduled" | "sent" | "done" | "killed";

interface Actor {
  part: Part;
  /** Those still to come. */
  faults: Fault[];
  state: State;
  what: string;
  statements: number;
  client?: pg.PoolClient | undefined;
  /** Opens the gate it stands at. */
  open?: () => void;
  /** Settles with the statement under way. */
  answer?: Promise<unknown>;
  /** It is to be cut off if the statement under way has to wait. */
  cutIfHeld?: boolean;
  error?: unknown;
}

const soonMs = 3;
const gone = () => Object.assign(new Error("the connection was cut by the test"), { code: "ECONNRESET" });
const pidOf = (client: pg.PoolClient) => (client as unknown as { processID: number }).processID;
const isKilled = ({ state }: Actor) => state === "killed";
const forever = new Promise<never>(() => {});

export class Stage {
  readonly #observer: Pool;
  readonly #seats: Pool[] = [];
  readonly #url: string;
  /** Backends whose client is gone: they may still be at work. */
  readonly #ghosts = new Set<number>();
  #refused: Refused[] = [];

  constructor(url: string, observer: Pool) {
    const fast = new URL(url);
    fast.searchParams.set("options", "-c deadlock_timeout=20ms");
    this.#url = fast.href;
    this.#observer = observer;
  }

  /**
   * Plays all parts to their end, `afterTurn` after every turn, when nothing moves. Returns what Postgres refused. Throws what `afterTurn` or an
   * actor threw, and when actors wait for each other for ever.
   */
  async play(scheduler: Scheduler, parts: Part[], afterTurn: () => Promise<void>): Promise<Refused[]> {
    this.#refused = [];
    const actors = parts.map(
      (part): Actor => ({ part, faults: part.faults, state: "thinking", what: "", statements: 0 }),
    );
    try {
      actors.forEach((actor, index) => {
        const say = (what: string) => {
          actor.what = what;
        };
        actor.part.act(this.#poolOf(actor, this.#seat(index)), say).then(
          () => {
            actor.state = "done";
          },
          (error) => {
            actor.state = "done";
            actor.error = error;
          },
        );
      });
      for (;;) {
        await this.#rest(actors);
        const failed = actors.find((actor) => actor.error !== undefined);
        if (failed) throw failed.error;
        await afterTurn();
        for (const actor of actors) {
          if (actor.state !== "asking") continue;
          actor.state = "scheduled";
          const { open } = actor;
          void scheduler.schedule(Promise.resolve(), `${actor.part.name}: ${actor.what}`).then(() => {
            actor.state = "thinking";
            open!();
          });
        }
        if (scheduler.count() === 0) break;
        await scheduler.waitNext(1);
      }
      const stuck = actors.filter(({ state }) => state !== "done" && state !== "killed");
      if (stuck.length > 0) throw new Error(`${stuck.map(({ part }) => part.name).join(", ")} wait for ever`);
      return this.#refused;
    } finally {
      for (const actor of actors) this.#kill(actor);
      while (this.#ghosts.size > 0) await this.#look([]);
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.#seats.map((seat) => seat.end()));
  }

  #seat(index: number): Pool {
    this.#seats[index] ??= openPool({ url: this.#url, logger, max: 1 });
    return this.#seats[index];
  }

  /** The part of a pool that statements are sent through. */
  #poolOf(actor: Actor, seat: Pool): Pool {
    const connect = async () => {
      const client = await seat.connect();
      if (client.listenerCount("error") === 0) client.on("error", () => {});
      actor.client = client;
      return client;
    };
    const release = (client: pg.PoolClient, error?: Error | boolean) => {
      // The stage has released it already when it has cut it.
      if (actor.client !== client) return;
      actor.client = undefined;
      client.release(error);
    };
    const pool = {
      query: async (text: string, values?: unknown[]) => {
        const client = await connect();
        try {
          return await this.#send(actor, client, text, values);
        } finally {
          release(client);
        }
      },
      connect: async () => {
        const client = await connect();
        return new Proxy(client, {
          get: (target, name) => {
            if (name === "query")
              return (text: string, values?: unknown[]) =>
                text === "BEGIN" ? target.query(text) : this.#send(actor, target, text, values);
            if (name === "release") return (error?: Error | boolean) => release(target, error);
            const value = Reflect.get(target, name);
            return typeof value === "function" ? value.bind(target) : value;
          },
        });
      },
    };
    return pool as unknown as Pool;
  }

  async #send(actor: Actor, client: pg.PoolClient, text: string, values?: unknown[]): Promise<pg.QueryResult> {
    // What it was rolled back for has been decided: whether that is told makes no difference.
    if (text === "ROLLBACK") return await client.query(text);
    const fault = actor.faults.find(({ at, kind }) => at === actor.statements && kind !== "cut");
    const cutting = actor.faults.some(({ at, kind }) => at <= actor.statements && kind === "cut");
    actor.statements++;
    await new Promise<void>((open) => {
      actor.open = open;
      actor.state = "asking";
    });
    if (fault?.kind === "before") {
      this.#cut(actor);
      throw gone();
    }
    actor.state = "sent";
    actor.cutIfHeld = cutting || fault?.kind === "killed";
    try {
      // The plan says when a lock comes free, however long that takes: nobody gives up before.
      const answer = client.query(text.replace("'lock_timeout', '200ms'", "'lock_timeout', '0'"), values);
      actor.answer = answer;
      const result = await answer;
      if (!fault) return result;
      this.#cut(actor);
      throw gone();
    } catch (error) {
      if (faultOf(error) !== "unavailable") {
        const { code = "", message } = error as { code?: string; message: string };
        this.#refused.push({ actor: `${actor.part.name}: ${actor.what}`, code, message });
      }
      if (fault?.kind === "killed") this.#kill(actor);
      if (isKilled(actor)) return await forever;
      throw error;
    } finally {
      if (!isKilled(actor)) actor.state = "thinking";
      actor.cutIfHeld = false;
    }
  }

  /** Ends the client's side of its connection. The server's may go on until its statement ends. */
  #cut(actor: Actor): void {
    const client = actor.client!;
    actor.client = undefined;
    this.#ghosts.add(pidOf(client));
    (client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy();
    client.release(true);
  }

  /** It is never heard of again. */
  #kill(actor: Actor): void {
    actor.state = "killed";
    if (actor.client) this.#cut(actor);
  }

  /** Resolves when nobody thinks, and every statement that was sent has ended or waits for somebody whose turn has not come. */
  async #rest(actors: Actor[]): Promise<void> {
    const sent = () => actors.filter(({ state }) => state === "sent");
    for (;;) {
      await tick();
      if (actors.some(({ state }) => state === "thinking")) continue;
      if (sent().length === 0 && this.#ghosts.size === 0) return;
      // Mostly they end at once, and nobody needs to be asked whether they wait.
      const answers = Promise.allSettled(sent().map(({ answer }) => answer));
      await Promise.race([answers, delay(soonMs)]);
      const under = sent();
      const held = await this.#look(under.map(({ client }) => pidOf(client!)));
      if (!held || sent().length < under.length || actors.some(({ state }) => state === "thinking")) continue;
      const doomed = under.find(({ cutIfHeld }) => cutIfHeld);
      if (!doomed) return;
      this.#cut(doomed);
      doomed.faults = doomed.faults.filter(({ kind }) => kind !== "cut");
      doomed.state = "thinking";
    }
  }

  /** Whether all of `pids`, and the ghosts, wait for locks of others than themselves. Forgets the ghosts that are gone. */
  async #look(pids: number[]): Promise<boolean> {
    const asked = [...pids, ...this.#ghosts];
    if (asked.length === 0) return true;
    const { rows } = await this.#observer.query<{ pid: number; by: number[] }>(
      "SELECT pid, pg_blocking_pids(pid) AS by FROM pg_stat_activity WHERE pid = ANY($1)",
      [asked],
    );
    const waitsFor = new Map(rows.map(({ pid, by }) => [pid, by]));
    for (const pid of this.#ghosts) if (!waitsFor.has(pid)) this.#ghosts.delete(pid);
    const held = (pid: number, seen: number[]): boolean =>
      (waitsFor.get(pid) ?? []).some((by) => !waitsFor.has(by) || (!seen.includes(by) && held(by, [...seen, by])));
    const all = [...waitsFor.keys()].every((pid) => held(pid, [pid]));
    if (!all) await delay(1);
    return all;
  }
}
