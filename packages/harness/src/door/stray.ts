/**
 * Errors of users' code that nobody catches: a promise that nobody awaits, a timer, an emitter without a listener. They come out of any call, but in its async
 * context, which says whose they are: that call fails, if it is still under way, and nobody else notices anything. Who runs the process asks here.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { messageOf } from "@drover/telemetry";

/** A call whose code is running, or has left something running. */
export interface StrayOwner {
  runId: string;
  /** A tool's name, or a model's id. */
  what: string;
  /** Ends the call with this; false: it is over already. */
  fail(error: unknown): boolean;
}

const calls = new AsyncLocalStorage<StrayOwner>();

/** Whose code it is that has just thrown; undefined: nobody's that is known. To be asked inside of `uncaughtException` and `unhandledRejection`. */
export const strayOwner = (): StrayOwner | undefined => calls.getStore();

export interface Stray {
  /** Runs `work` as this call's code. */
  run<T>(work: () => T): T;
  /** Rejects with what it, or anything that it has started, throws where nobody catches it. */
  failed: Promise<never>;
  /** The call is over: what comes now fails nothing. */
  close(): void;
}

/** For one call. Whoever waits for the call waits for `failed` as well, and closes it in the end. */
export function openStray(of: Pick<StrayOwner, "runId" | "what">): Stray {
  const { promise, reject } = Promise.withResolvers<never>();
  promise.catch(() => {});
  let isOver = false;
  const owner: StrayOwner = {
    ...of,
    fail(error) {
      if (isOver) return false;
      reject(new Error(`${of.what} left an error that nobody caught: ${messageOf(error)}`));
      return true;
    },
  };
  return {
    run: (work) => calls.run(owner, work),
    failed: promise,
    close() {
      isOver = true;
    },
  };
}
