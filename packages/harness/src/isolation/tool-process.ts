/** One child process as its parent sees it: started, asked one thing at a time, ended with all it started. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { fileURLToPath } from "node:url";
import { environmentOf } from "./environment.ts";
import { type LineSource, readLines, type ToolLine } from "./lines.ts";
import type { Answer, CallContext, Entry, ToChild, ToParent } from "./messages.ts";
import { endTree } from "./tree.ts";

/** What a process is started with: tools with the same needs share theirs. */
export interface Kind {
  module: string;
  maxMemoryMb: number;
  env: readonly string[];
}

interface Call {
  tool: string;
  entry: Entry;
  args: unknown[];
  context: CallContext;
  /** The tool's own time limit, ms. */
  timeoutMs: number;
}

/** The process ended before the call did: whether it took effect is not known. */
export class ProcessLost extends Error {}

interface ToolProcessOptions {
  /** For the import of its module, ms. */
  startTimeoutMs: number;
  /** From the abort of a call to the end of the process: for a tool that cleans up, ms. */
  graceMs: number;
  log?: ((line: ToolLine) => void) | undefined;
  /** Once, when no call can be given to it any more. */
  onEnd(): void;
}

const program = fileURLToPath(new URL("./child.ts", import.meta.url));
/** The process ends itself so long after the parent should have ended it, ms. */
const slackMs = 2000;

export class ToolProcess {
  readonly kind: Kind;
  /** Resolves when its module is imported. Rejects with why it cannot be. */
  readonly ready: Promise<void>;
  /** Resolves once it and what it started are gone. */
  readonly gone: Promise<void>;
  readonly #options: ToolProcessOptions;
  readonly #child: ChildProcess;
  readonly #marker = randomUUID();
  readonly #started = Promise.withResolvers<void>();
  readonly #gone = Promise.withResolvers<void>();
  readonly #calls: LineSource[] = [];
  #answer: PromiseWithResolvers<Answer> | undefined;
  #givenUp = false;
  #ended = false;

  constructor(kind: Kind, options: ToolProcessOptions) {
    this.kind = kind;
    this.#options = options;
    this.ready = this.#started.promise;
    this.gone = this.#gone.promise;
    this.ready.catch(() => {});
    const memory = String(kind.maxMemoryMb);
    const child = spawn(
      process.execPath,
      [`--max-old-space-size=${memory}`, program, kind.module, String(process.pid), memory],
      {
        // Leader of a group of its own.
        detached: true,
        serialization: "advanced",
        stdio: ["ignore", "pipe", "pipe", "ipc"],
        env: environmentOf(kind.env, this.#marker),
      },
    );
    this.#child = child;
    for (const stream of ["stdout", "stderr"] as const) {
      const pipe = child[stream];
      if (!pipe) continue;
      (pipe as unknown as { unref(): void }).unref();
      readLines(pipe, this.#calls, (text, of) => options.log?.({ pid: child.pid!, stream, text, ...of }));
    }
    const slow = setTimeout(
      () => this.end(new Error(`its module was not imported within ${options.startTimeoutMs / 1000} s`)),
      options.startTimeoutMs,
    );
    this.ready.then(
      () => clearTimeout(slow),
      () => clearTimeout(slow),
    );
    child.on("message", (message: ToParent) => this.#hear(message));
    // Most often it is ending by itself, and how tells why.
    child.on("disconnect", () => setTimeout(() => this.end(), options.graceMs));
    child.on("error", (error) => {
      this.end(error);
      if (child.pid === undefined) this.#gone.resolve();
    });
    child.on("exit", (code, signal) => this.#buried(code, signal));
  }

  /** Calls it was given so far. */
  get calls(): number {
    return this.#calls.length;
  }

  /** It can be given a call. */
  get isFree(): boolean {
    return !this.#ended && !this.#givenUp && !this.#answer;
  }

  /** Its call was aborted: it ends within the grace. */
  get isGivenUp(): boolean {
    return this.#givenUp;
  }

  /** An idle process does not keep its parent from ending. */
  set holdsParent(holds: boolean) {
    const { channel } = this.#child;
    if (holds) {
      this.#child.ref();
      channel?.ref();
    } else {
      this.#child.unref();
      channel?.unref();
    }
  }

  /**
   * One call. When `signal` aborts, it rejects at once with the signal's reason; the process is told, and ended after the grace.
   * @throws ProcessLost when the process ends meanwhile; Error for arguments that cannot be copied
   */
  async run(call: Call, signal: AbortSignal): Promise<Answer> {
    signal.throwIfAborted();
    const { tool, entry, args, context, timeoutMs } = call;
    const { graceMs } = this.#options;
    const answer = Promise.withResolvers<Answer>();
    const abort = () => {
      this.#givenUp = true;
      answer.reject(signal.reason);
      this.#send({ type: "abort", reason: String(signal.reason) });
      setTimeout(() => this.end(), graceMs);
    };
    this.#calls.push({ runId: context.runId, tool });
    this.#answer = answer;
    signal.addEventListener("abort", abort, { once: true });
    try {
      this.#send({ type: "call", tool, entry, args, context, limitMs: timeoutMs + graceMs + slackMs });
      return await answer.promise;
    } finally {
      signal.removeEventListener("abort", abort);
      this.#answer = undefined;
    }
  }

  /** Ends it with all it started. `why` is told to who waits for its start. */
  end(why?: Error): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#started.reject(why ?? new Error("its process ended while its module was imported"));
    this.#options.onEnd();
    if (this.#child.pid !== undefined) void endTree(this.#child.pid, this.#marker);
  }

  #send(message: ToChild): void {
    // Throws for what cannot be copied; a broken channel is noticed by its end.
    if (this.#child.connected) this.#child.send(message, () => {});
  }

  #hear(message: ToParent): void {
    if (message.type === "ready") this.#started.resolve();
    else if (message.type === "broken") this.end(new Error(message.message));
    else if (this.#givenUp) this.end();
    else this.#answer?.resolve(message);
  }

  async #buried(code: number | null, signal: string | null): Promise<void> {
    const how =
      code === null
        ? `was killed (${signal}), as when its memory runs out: it may take ${this.kind.maxMemoryMb} MiB`
        : `ended by itself (exit code ${code})`;
    this.end(new Error(`its process ${how}`));
    this.#answer?.reject(new ProcessLost(`The tool's process ${how}.`));
    // What it started may have outlived it.
    await endTree(this.#child.pid!, this.#marker);
    this.#child.stdout?.destroy();
    this.#child.stderr?.destroy();
    this.#gone.resolve();
  }
}
