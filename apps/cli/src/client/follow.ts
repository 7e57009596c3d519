/**
 * Following a run to its end over SSE: every event once and in order, the text of the model between them. A cut connection is
 * taken up again where it was (`Last-Event-ID`), so a service that restarts is only a pause.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { LogEvent } from "@drover/harness";
import { type EventSourceMessage, EventSourceParserStream } from "eventsource-parser/stream";
import { CliError, exitCodes } from "../exit.ts";
import { type DroverClient, reasonOf } from "./http.ts";
import type { Piece } from "./reply-text.ts";

/** A piece of text as the model says it; best effort, the event at its end has it whole. */
export interface Delta extends Piece {
  epoch: number;
}
export type Followed = { event: LogEvent } | { delta: Delta };

/** The service says something every 15 s; silence for longer than this, ms, is a dead connection. */
const silentMs = 45_000;

const finalTypes = new Set(["run.completed", "run.partial", "run.failed", "run.cancelled"]);
export const isFinalEvent = (event: LogEvent): boolean => finalTypes.has(event.type);

/**
 * Yields what happens to the run after event `after`, until its last event.
 * @throws CliError when the service says no, or has not been reachable for `patienceMs`; the signal's reason when it aborts.
 */
export async function* followRun(
  client: DroverClient,
  id: string,
  options: { after?: number; signal: AbortSignal; onTrouble?(message: string): void; silentMs?: number },
): AsyncGenerator<Followed, void, void> {
  const { signal } = options;
  const patience = new Patience(signal, options.onTrouble);
  let last = options.after ?? 0;
  for (;;) {
    try {
      for await (const message of stream(client, id, last, { silentMs, ...options })) {
        patience.renew();
        if (message.event === "over") return;
        if (message.id === undefined) {
          if (message.event === "delta") yield { delta: JSON.parse(message.data) as Delta };
          continue;
        }
        const event = JSON.parse(message.data) as LogEvent;
        if (event.seq <= last) continue;
        last = event.seq;
        yield { event };
        if (isFinalEvent(event)) return;
      }
      await patience.wait(new CliError(exitCodes.unreachable, "the event stream ended before the run"));
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof CliError && error.exitCode !== exitCodes.unreachable) throw error;
      await patience.wait(error);
    }
  }
}

async function* stream(
  client: DroverClient,
  id: string,
  last: number,
  options: { signal: AbortSignal; silentMs: number },
): AsyncGenerator<Pick<EventSourceMessage, "id" | "event" | "data">, void, void> {
  const over = new AbortController();
  const response = await client.request(`/query/${encodeURIComponent(id)}/events`, {
    headers: { accept: "text/event-stream", ...(last > 0 && { "last-event-id": String(last) }) },
    signal: AbortSignal.any([options.signal, over.signal]),
    stream: true,
  });
  // 204: the run is final, and `last` was its last event.
  if (!response.body) return yield { id: undefined, event: "over", data: "" };
  const why = new Error(`no sign of life for ${options.silentMs / 1000} s`);
  const silence = setTimeout(() => over.abort(why), options.silentMs);
  const signsOfLife = new TransformStream<string, string>({
    transform(text, next) {
      silence.refresh();
      next.enqueue(text);
    },
  });
  try {
    const texts = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(signsOfLife);
    yield* texts.pipeThrough(new EventSourceParserStream());
  } finally {
    clearTimeout(silence);
    over.abort();
  }
}

/** How often, and how long, a service that was there is asked again. */
class Patience {
  static readonly patienceMs = 60_000;
  readonly #signal: AbortSignal;
  readonly #onTrouble: ((message: string) => void) | undefined;
  #since: number | undefined;
  #tries = 0;
  #reached = false;

  constructor(signal: AbortSignal, onTrouble?: (message: string) => void) {
    this.#signal = signal;
    this.#onTrouble = onTrouble;
  }

  /** The service answered. */
  renew(): void {
    this.#reached = true;
    this.#since = undefined;
    this.#tries = 0;
  }

  /** Pauses before the next try. @throws `error` when the service never answered, or not for a minute. */
  async wait(error: unknown): Promise<void> {
    this.#since ??= performance.now();
    if (!this.#reached || performance.now() - this.#since > Patience.patienceMs) throw error;
    if (this.#tries === 0) this.#onTrouble?.(`connection lost (${reasonOf(error)}), trying again`);
    await delay(Math.min(5000, 250 * 2 ** this.#tries++), undefined, { signal: this.#signal });
  }
}

/** Asks again while a service that was reached before cannot be, for at most a minute. @throws what else goes wrong, as it is */
export async function patiently<T>(
  signal: AbortSignal,
  onTrouble: (message: string) => void,
  ask: () => Promise<T>,
): Promise<T> {
  const patience = new Patience(signal, onTrouble);
  patience.renew();
  for (;;) {
    try {
      return await ask();
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof CliError && error.exitCode !== exitCodes.unreachable) throw error;
      await patience.wait(error);
    }
  }
}
