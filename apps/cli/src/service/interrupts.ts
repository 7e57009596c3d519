/**
 * How a person or a parent process ends a command: Ctrl-C, SIGTERM, a closed terminal, or an npm that is gone. The first asks to
 * stop, the second insists.
 */

export interface Interrupts {
  /** Aborted by the first. */
  readonly asked: AbortSignal;
  /** Aborted by the second. */
  readonly insisted: AbortSignal;
  /** Gives the signals their usual effect back. */
  release(): void;
}

const signals = ["SIGINT", "SIGTERM", "SIGHUP"] as const;
/** npm passes on a Ctrl-C that the terminal has sent already: within so long, ms, two are one. */
const sameMs = 400;

export function watchInterrupts(): Interrupts {
  const asked = new AbortController();
  const insisted = new AbortController();
  let first: number | undefined;
  const onSignal = () => {
    if (first === undefined) {
      first = performance.now();
      asked.abort(new Error("interrupted"));
    } else if (performance.now() - first > sameMs) insisted.abort(new Error("interrupted twice"));
  };
  for (const signal of signals) process.on(signal, onSignal);
  // `npm start` ended by SIGTERM takes its shell along and leaves us behind.
  const parent = process.ppid;
  const look = process.env.npm_lifecycle_event
    ? setInterval(() => process.ppid !== parent && onSignal(), 500).unref()
    : undefined;
  // A closed terminal or pipe: nobody reads any more, which is no reason to leave work half done.
  for (const stream of [process.stdout, process.stderr]) stream.on("error", () => undefined);
  return {
    asked: asked.signal,
    insisted: insisted.signal,
    release: () => {
      clearInterval(look);
      for (const signal of signals) process.off(signal, onSignal);
    },
  };
}
