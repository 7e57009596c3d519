/**
 * Live news between processes, at best effort: "this run's log grew", token text while it streams, and bells. Nothing that
 * matters depends on it: who follows reads the log after a signal, and every 2 s without. This file is what all carriers share:
 * who follows what, and gathering many signals into few messages. Redis, Postgres or nothing carries them between processes.
 */

import { randomUUID } from "node:crypto";
import type { Logger } from "@drover/telemetry";
import type { QueueConfig } from "./config.ts";
import { createFaultLog } from "./fault-log.ts";
import { postgresWire } from "./signals-postgres.ts";
import { redisWire } from "./signals-redis.ts";
import { type Channel, type Part, packMessages, type Wire, type WireEvents } from "./signals-wire.ts";

/** Where a piece stands: of which model call, and after how many characters (UTF-16) of its text. A call that is made again begins at 0 again. */
export interface TextPlace {
  iteration: number;
  offset: number;
}

export interface Follower {
  /** The run's log grew, or may have (also called after a lost connection is back). */
  news(): void;
  /** A piece of the reply that is being streamed, in order within one epoch. A new epoch begins anew. */
  delta?(epoch: number, text: string, at?: TextPlace): void;
}

export interface Signals {
  /** The run's log grew. Gathered within one turn of the event loop; sent only when somebody follows the run. */
  news(runId: string): void;
  /** Text as it streams, gathered for 50 ms; sent only when somebody follows the run. `epoch` is the owner's. */
  delta(runId: string, epoch: number, text: string, at?: TextPlace): void;
  /**
   * Be told about one run until the returned function is called. Publishers learn of it within milliseconds, and again every
   * 10 s; what happened before they did is not told.
   */
  follow(runId: string, follower: Follower): () => void;
  /** Rings a named bell ("there are deliveries") in every process that listens. Rings of one turn are one. */
  ring(bell: string): void;
  /** Be told of rings until the returned function is called; also after a lost connection is back. */
  onRing(bell: string, listener: () => void): () => void;
  /** Sends what is gathered and disconnects. Nothing is called afterwards. */
  close(): Promise<void>;
}

const deltaMs = 50;
const announceMs = 10_000;
/** A run counts as followed for so long after its last announcement, ms. */
const interestMs = 30_000;
/** Parts waiting for a carrier that does not answer; more are dropped. */
const mostWaiting = 10_000;
const announcedAtOnce = 1000;

/**
 * Opens signals over `REDIS_URL`, or over NOTIFY on one direct Postgres connection without it. Returns at once, connected or
 * not; connects, and comes back after every outage, by itself.
 *
 * @param options.directUrl Postgres without a transaction pooler; used only without `REDIS_URL`.
 */
export async function openSignals(
  config: QueueConfig,
  options: { logger: Logger; directUrl: string },
): Promise<Signals> {
  const onError = createFaultLog(options.logger, "trouble with live signals");
  return createSignals(options.logger, (events) =>
    config.REDIS_URL ? redisWire(config, events, onError) : postgresWire(options.directUrl, events, onError),
  );
}

/** Signals within this process only. */
export function inMemorySignals(logger: Logger): Signals {
  return createSignals(logger);
}

function createSignals(logger: Logger, connect?: (events: WireEvents) => Wire): Signals {
  const origin = randomUUID();
  const followers = new Map<string, Set<Follower>>();
  const bells = new Map<string, Set<() => void>>();
  /** Runs that other processes follow, with the time (ms, monotonic) until which that holds. */
  const followedElsewhere = new Map<string, number>();

  let news = new Set<string>();
  let rings = new Set<string>();
  let deltas = new Map<string, { epoch: number; text: string; at: TextPlace | undefined }[]>();
  let flushScheduled = false;
  let deltaTimer: NodeJS.Timeout | undefined;
  let closed = false;

  // ------------------------------------------------------------------------------------------- to this process

  function call(fn: () => void): void {
    try {
      fn();
    } catch (error) {
      logger.error({ err: error }, "a follower of live signals threw");
    }
  }
  function tellNews(runId: string): void {
    for (const follower of [...(followers.get(runId) ?? [])]) call(() => follower.news());
  }
  function tellDelta(runId: string, epoch: number, text: string, at: TextPlace | undefined): void {
    for (const follower of [...(followers.get(runId) ?? [])]) call(() => follower.delta?.(epoch, text, at));
  }
  function tellRing(bell: string): void {
    for (const listener of [...(bells.get(bell) ?? [])]) call(listener);
  }

  // ---------------------------------------------------------------------------------------- to other processes

  const waiting: Record<Channel, Part[]> = { live: [], interest: [], bells: [] };
  let sending = false;
  let sent = 0;
  let echoDue = false;
  /** Runs followed here that are still to be announced. */
  let unannounced: Iterator<string> | undefined;

  function send(channel: Channel, parts: Part[]): void {
    if (!wire || waiting[channel].length + parts.length > mostWaiting) return;
    waiting[channel].push(...parts);
    if (!sending) void pump();
  }
  /** One batch is on its way at a time; what comes meanwhile is the next. */
  async function pump(): Promise<void> {
    sending = true;
    for (;;) {
      if (waiting.interest.length === 0) waiting.interest.push(...nextAnnounced());
      const channel = (["interest", "live", "bells"] as const).find((name) => waiting[name].length > 0);
      if (!channel || !wire) break;
      const messages = packMessages(origin, () => ++sent, waiting[channel].splice(0), wire.maxBytes);
      // Away: dropped. Followers look for themselves.
      await wire.publish(channel, messages).catch(() => {
        unannounced = undefined;
      });
    }
    sending = false;
  }

  function isFollowedElsewhere(runId: string): boolean {
    const until = followedElsewhere.get(runId);
    return until !== undefined && until > performance.now();
  }
  /** However many are followed: a slice at a time, and the beat, by which we know that we are heard, before them. */
  function announce(): void {
    if (!wire) return;
    unannounced = followers.keys();
    waiting.interest.unshift(["beat"]);
    if (!sending) void pump();
  }
  function nextAnnounced(): Part[] {
    const parts: Part[] = [];
    while (unannounced && parts.length < announcedAtOnce) {
      const { value, done } = unannounced.next();
      if (done) unannounced = undefined;
      else parts.push(["follow", value]);
    }
    return parts;
  }

  const wire = connect?.({
    connected(again) {
      send("interest", [["who"]]);
      announce();
      if (!again) return;
      for (const runId of followers.keys()) tellNews(runId);
      for (const bell of bells.keys()) tellRing(bell);
    },
    message(channel, from, parts) {
      if (closed) return;
      if (from === origin) {
        if (channel === "interest") echoDue = false;
        return;
      }
      for (const part of parts) {
        if (part[0] === "news") tellNews(part[1]);
        else if (part[0] === "delta") {
          const [, runId, epoch, piece, iteration, offset] = part;
          tellDelta(runId, epoch, piece, offset === undefined ? undefined : { iteration: iteration ?? 0, offset });
        } else if (part[0] === "ring") tellRing(part[1]);
        else if (part[0] === "follow") followedElsewhere.set(part[1], performance.now() + interestMs);
        else if (part[0] === "who" && followers.size > 0) announce();
      }
    },
  });
  wire?.subscribe("interest");

  const timer = setInterval(() => {
    const now = performance.now();
    for (const [runId, until] of followedElsewhere) if (until <= now) followedElsewhere.delete(runId);
    // Whoever does not hear its own last announcement hears nothing.
    if (echoDue) wire?.reset();
    echoDue = wire?.isConnected() ?? false;
    announce();
  }, announceMs);
  timer.unref();

  // ------------------------------------------------------------------------------------------------- gathering

  function schedule(): void {
    if (flushScheduled || closed) return;
    flushScheduled = true;
    setImmediate(flush);
  }
  function flush(): void {
    flushScheduled = false;
    if (closed) return;
    const [newsNow, ringsNow] = [news, rings];
    news = new Set();
    rings = new Set();
    const parts: Part[] = [];
    // A run's text goes before the news that it is finished.
    for (const runId of newsNow) flushDeltas(runId, parts);
    for (const runId of newsNow) {
      if (isFollowedElsewhere(runId)) parts.push(["news", runId]);
      tellNews(runId);
    }
    if (parts.length > 0) send("live", parts);
    for (const bell of ringsNow) tellRing(bell);
    if (ringsNow.size > 0)
      send(
        "bells",
        [...ringsNow].map((bell): Part => ["ring", bell]),
      );
  }
  function flushDeltas(runId: string, parts: Part[]): void {
    const pieces = deltas.get(runId);
    if (!pieces) return;
    deltas.delete(runId);
    const elsewhere = isFollowedElsewhere(runId);
    for (const { epoch, text, at } of pieces) {
      if (elsewhere) parts.push(["delta", runId, epoch, text, ...(at ? [at.iteration, at.offset] : [])] as Part);
      tellDelta(runId, epoch, text, at);
    }
  }
  function flushAllDeltas(): void {
    deltaTimer = undefined;
    const parts: Part[] = [];
    for (const runId of [...deltas.keys()]) flushDeltas(runId, parts);
    if (parts.length > 0) send("live", parts);
  }

  return {
    news(runId) {
      if (closed || !(followers.has(runId) || isFollowedElsewhere(runId))) return;
      news.add(runId);
      schedule();
    },
    delta(runId, epoch, text, at) {
      if (closed || text === "" || !(followers.has(runId) || isFollowedElsewhere(runId))) return;
      const pieces = deltas.get(runId);
      const last = pieces?.at(-1);
      if (!pieces) deltas.set(runId, [{ epoch, text, at }]);
      else if (last?.epoch === epoch && goesOn(last, at)) last.text += text;
      else pieces.push({ epoch, text, at });
      deltaTimer ??= setTimeout(flushAllDeltas, deltaMs);
    },
    follow(runId, follower) {
      wire?.subscribe("live");
      const set = followers.get(runId);
      // A copy of its own: the same object may follow twice.
      const mine: Follower = {
        news: () => follower.news(),
        delta: (epoch, text, at) => follower.delta?.(epoch, text, at),
      };
      if (set) set.add(mine);
      else {
        followers.set(runId, new Set([mine]));
        send("interest", [["follow", runId]]);
      }
      return () => {
        const left = followers.get(runId);
        left?.delete(mine);
        if (left?.size === 0) followers.delete(runId);
      };
    },
    ring(bell) {
      if (closed) return;
      rings.add(bell);
      schedule();
    },
    onRing(bell, listener) {
      wire?.subscribe("bells");
      const mine = () => listener();
      const set = bells.get(bell);
      if (set) set.add(mine);
      else bells.set(bell, new Set([mine]));
      return () => {
        const left = bells.get(bell);
        left?.delete(mine);
        if (left?.size === 0) bells.delete(bell);
      };
    },
    async close() {
      if (closed) return;
      clearInterval(timer);
      clearTimeout(deltaTimer);
      flush();
      flushAllDeltas();
      closed = true;
      followers.clear();
      bells.clear();
      deltas = new Map();
      await wire?.close();
    },
  };
}

/** Whether a piece at this place comes right after the one before. */
const goesOn = (last: { text: string; at: TextPlace | undefined }, at: TextPlace | undefined): boolean =>
  !at || !last.at || (last.at.iteration === at.iteration && last.at.offset + last.text.length === at.offset);
