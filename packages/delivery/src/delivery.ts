/**
 * The loop of a worker process: fan out, claim, send, write down. It wakes by a nudge or a ring, when the next delivery is
 * due, when a place it was short of comes free, and once a second whatever happens; so a lost wake-up costs a second.
 */

import { setTimeout as pause } from "node:timers/promises";
import type { Egress } from "@drover/egress";
import { toWireId } from "@drover/protocol";
import { Bell } from "@drover/runs";
import { type Blobs, faultOf, type Pool, throughOutages } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { messageBody, thinBody } from "./body.ts";
import { type ClaimedDelivery, claimDue, nextDueInMs, releaseClaims } from "./claim.ts";
import { disableGone, noteFailure } from "./disabling.ts";
import { fanOut } from "./fan-out.ts";
import { Lanes } from "./lanes.ts";
import { type Attempt, createOutcomeWriter, type DeliveryStatus } from "./outcome.ts";
import { send, unsent } from "./send.ts";

export interface DeliveryOptions {
  pool: Pool;
  blobs: Blobs;
  egress: Pick<Egress, "request">;
  logger: Logger;
  metrics?: DeliveryMetrics;
  /** Where people reach the service: messages of waiting runs carry links to decide (default: they carry none). */
  publicUrl?: string | undefined;
  /** Under which id it claims (uuid), when it begins to; see `release`. */
  worker?: () => string;
  /** Whether links to decide may go where the run's own submitter said (default yes). */
  approveOwn?: boolean;
  /** Requests under way at once (default 200). */
  concurrency?: number;
  /** Of these, to one destination (default 8): an endpoint, or the callbacks of one tenant to one origin. */
  perDestination?: number;
  /** Subscribes to rings from other processes: `(ring) => signals.onRing("delivery", ring)`. Returns the unsubscription. */
  onRing?: (ring: () => void) => () => void;
  /** For a whole request and its answer, ms (default 15,000, which is what clients are told). */
  timeoutMs?: number;
}

export interface DeliveryMetrics {
  /** One try is written down: how long its request took in ms, and what became of it. */
  delivered(ms: number, result: "delivered" | "retry" | "failed" | "disabled"): void;
}

export interface Delivery {
  start(): void;
  /** Something may be due: a run was settled, a delivery was asked for. Cheap, never throws. */
  nudge(): void;
  /** These workers are dead: what they were trying need not wait for the end of their claims. Never throws. */
  release(workers: string[]): void;
  /**
   * Claims nothing more, waits up to `graceMs` (default 15,000) for the requests under way and cuts those that are left:
   * they stay claimed and come again, here or elsewhere, within half a minute.
   */
  close(graceMs?: number): Promise<void>;
}

const pollMs = 1000;
/** After losing a race for the same deliveries to another worker. */
const contendedMs = 20;
const fanOutPage = 500;
/** How long a claim outlives the request's deadline: time to build the message, through a short outage too, and to write the outcome down. */
const slackMs = 15_000;
const buildMs = 7500;
const defaultTimeoutMs = 15_000;
/** How long a close waits for what was cut: only a statement that Postgres does not answer takes longer. */
const cutMs = 1000;

const metricNames = { delivered: "delivered", pending: "retry", failed: "failed", disabled: "disabled" } as const;

export function createDelivery(options: DeliveryOptions): Delivery {
  const { pool, blobs, egress, logger, metrics } = options;
  const timeoutMs = options.timeoutMs ?? defaultTimeoutMs;
  const lanes = new Lanes(options.concurrency ?? 200, options.perDestination ?? 8);
  const bell = new Bell();
  const cut = new AbortController();
  const write = createOutcomeWriter(pool, cut.signal);
  const underWay = new Set<Promise<void>>();
  let closing = false;
  let running: Promise<void> | undefined;
  let unsubscribe = () => {};

  async function run(): Promise<void> {
    let failing = false;
    while (!closing) {
      let idleMs = pollMs;
      try {
        idleMs = await pass();
        if (failing) logger.info("deliveries go on");
        failing = false;
      } catch (error) {
        if (!failing) logger.warn({ err: error }, "deliveries cannot go on for now");
        failing = true;
      }
      if (!closing) await bell.heard(idleMs);
    }
  }

  /** Returns how long there is nothing to do unless the bell rings, ms. */
  async function pass(): Promise<number> {
    const more = (await fanOut(pool, fanOutPage)) === fanOutPage;
    const idleMs = await claim();
    return more ? 0 : idleMs;
  }

  async function claim(): Promise<number> {
    const limits = lanes.ask();
    if (closing || limits.most === 0) return pollMs;
    const { claimed, contended } = await claimDue(pool, limits, timeoutMs + slackMs, options.worker?.());
    lanes.enter(
      claimed.map((delivery) => delivery.destination),
      limits,
    );
    for (const delivery of claimed) begin(delivery);
    if (contended) return contendedMs;
    return Math.max(0, Math.min(pollMs, Math.ceil(await nextDueInMs(pool))));
  }

  function begin(delivery: ClaimedDelivery): void {
    const work = attempt(delivery)
      .catch((error) => {
        if (!cut.signal.aborted)
          logger.error(
            { err: error, delivery_id: toWireId("delivery", delivery.id) },
            "a delivery stays claimed and comes again",
          );
        return null;
      })
      .then((failed) => {
        underWay.delete(work);
        if (lanes.leave(delivery.destination, failed)) bell.ring();
      });
    underWay.add(work);
  }

  /** Tries once. Returns whether the receiver failed; null when nothing was learnt about it. */
  async function attempt(delivery: ClaimedDelivery): Promise<boolean | null> {
    const whole = await build(delivery);
    const isLarge =
      typeof whole === "string" && Buffer.byteLength(whole) > (delivery.thinOverBytes ?? Number.POSITIVE_INFINITY);
    const body = isLarge ? (thinBody(whole, options.publicUrl) ?? whole) : whole;
    const outcome =
      typeof body === "string"
        ? await send(egress, delivery, {
            body,
            thin: () => thinBody(body, options.publicUrl),
            timeoutMs,
            signal: cut.signal,
          })
        : unsent(delivery, body);
    const status = await write(outcome);
    if (status === null) {
      logger.debug(
        { delivery_id: toWireId("delivery", delivery.id), attempt: delivery.attempt },
        "an outcome came too late and was dropped",
      );
      return null;
    }
    report(delivery, outcome, status);
    if (typeof body !== "string") return null;
    if (outcome.result === "delivered") return false;
    // Should the process die right here, the next try to this endpoint fails again.
    const reason = outcome.result === "gone" ? await disableGone(pool, delivery) : await noteFailure(pool, delivery);
    if (reason !== null) {
      logger.warn(
        {
          webhook_id: delivery.endpointId && toWireId("endpoint", delivery.endpointId),
          tenant: delivery.tenant,
          reason,
        },
        "endpoint disabled",
      );
      // The tenant's other endpoints are owed the news.
      bell.ring();
    }
    return true;
  }

  /** The body, or why there is none. Throws when Postgres is away for long: the delivery stays claimed and comes again. */
  async function build(delivery: ClaimedDelivery): Promise<string | { result: "retry" | "failed"; error: string }> {
    try {
      const signal = AbortSignal.any([cut.signal, AbortSignal.timeout(buildMs)]);
      const source = { db: pool, blobs, publicUrl: options.publicUrl, approveOwn: options.approveOwn };
      const body = await throughOutages(() => messageBody(source, delivery), signal);
      return body ? JSON.stringify(body) : { result: "failed", error: "what this message is about no longer exists" };
    } catch (error) {
      if (faultOf(error) === "unavailable") throw error;
      logger.error({ err: error, delivery_id: toWireId("delivery", delivery.id) }, "a message could not be built");
      return { result: "retry", error: "the message could not be built (internal error)" };
    }
  }

  function report(delivery: ClaimedDelivery, outcome: Attempt, status: DeliveryStatus): void {
    metrics?.delivered(outcome.durationMs, metricNames[status]);
    const { statusCode, error, durationMs } = outcome;
    const line = {
      delivery_id: toWireId("delivery", delivery.id),
      ...(delivery.runId && { task_id: toWireId("run", delivery.runId) }),
      tenant: delivery.tenant,
      attempt: delivery.attempt,
      status_code: statusCode,
      error,
      duration_ms: durationMs,
    };
    if (status === "failed" || status === "disabled") logger.warn(line, `delivery ${status}`);
    else logger.debug(line, status === "delivered" ? "delivered" : "delivery will be tried again");
  }

  async function drain(): Promise<void> {
    await running;
    await Promise.all(underWay);
  }

  return {
    start() {
      if (running || closing) return;
      unsubscribe = options.onRing?.(() => bell.ring()) ?? unsubscribe;
      running = run();
    },
    nudge: () => bell.ring(),
    release(workers) {
      // Should it fail, their claims run out.
      releaseClaims(pool, workers).then(
        (freed) => freed > 0 && bell.ring(),
        (error) => logger.debug({ err: error }, "claims of dead workers were not released"),
      );
    },
    async close(graceMs = defaultTimeoutMs) {
      closing = true;
      unsubscribe();
      bell.ring();
      const over = new AbortController();
      const patience = pause(graceMs, undefined, { signal: over.signal })
        .then(() => cut.abort(new Error("stopping")))
        .then(() => pause(cutMs, undefined, { signal: over.signal }));
      await Promise.race([drain(), patience]);
      over.abort();
      await patience.catch(() => {});
    },
  };
}
