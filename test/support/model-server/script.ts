/**
 * The words of a model script: what a test may make the server answer (`ScriptEntry`), what it sees of a request
 * (`ModelServerCall`), and the gate with which a test lets a stream's chunks through one by one.
 */

export type WireName = "anthropic" | "openai" | "google" | "openai-compatible";

interface ScriptedToolCall {
  id?: string;
  name: string;
  /** Sent as JSON. */
  input?: unknown;
  /** Sent as it stands, for arguments that are no JSON (Google's wire has no such thing). */
  rawInput?: string;
}

/** Tokens as a provider reports them; `input` includes `cached` and `cacheWrite`. */
export interface ScriptedUsage {
  input: number;
  output: number;
  cached?: number;
  cacheWrite?: number;
}

/** A streamed answer. Chunk numbers below count text chunks. */
export interface ScriptedReply {
  /** A string is cut into words; an array is sent chunk by chunk. */
  text?: string | string[];
  /** Thinking that comes before the text, with a signature where the wire has one. */
  reasoning?: string;
  toolCalls?: ScriptedToolCall[];
  /** `null`: the provider reports no usage at all. Default: 10 in, 5 out. */
  usage?: ScriptedUsage | null;
  /** What the wire calls its own reason; default: end or tool use. */
  finishReason?: string;
  /** Destroys the connection after so many text chunks. */
  cutAfter?: number;
  /** Ends the HTTP answer in good order after so many text chunks, without the wire's closing events. */
  endAfter?: number;
  /** Sends nothing more after so many text chunks, and stays open until the client goes. */
  stallAfter?: number;
  /** An error event of the wire after so many text chunks; `stay` leaves the connection open after it. */
  errorAfter?: { chunks: number; type: string; message: string; code?: number; stay?: boolean };
  /** Every text chunk waits here first. */
  gate?: Gate;
}

/** An HTTP error, in the wire's own body unless `body` is given. */
interface ScriptedError {
  status: number;
  headers?: Record<string, string>;
  message?: string;
  body?: string;
}

/** `connection: "reset"` destroys the socket before any answer; `"hang"` never answers. */
interface ScriptedConnection {
  connection: "reset" | "hang";
}

export type ScriptAnswer = string | ScriptedReply | ScriptedError | ScriptedConnection;
export type ScriptFunction = (call: ModelServerCall) => ScriptAnswer | Promise<ScriptAnswer>;
export type ScriptEntry = ScriptAnswer | ScriptFunction;

export interface ServedMessage {
  role: "user" | "assistant";
  text: string;
  toolCalls: { id: string; name: string; input: unknown }[];
  toolResults: { id: string; content: string }[];
}

/** One request as the server understood it, the same for every wire. */
export interface ModelServerCall {
  /** 0 for the server's first call. */
  index: number;
  wire: WireName;
  model: string;
  system: string;
  /** Names of the offered tools, in order. */
  tools: string[];
  messages: ServedMessage[];
  /** The last text a user wrote. */
  query: string;
  /** Tool results that came after `query`. */
  results: { id: string; content: string }[];
  /** Replies of the model that came after `query`: 0 on the first turn. Stateless, so a resumed run gets the same. */
  turn: number;
  headers: Record<string, string | string[] | undefined>;
  /** The JSON body as it came. */
  body: Record<string, unknown>;
  /** The bytes of the body, to compare prompts. */
  rawBody: string;
  /** Resolves when the answer's connection is done; `true` when the client went away first. */
  closed: Promise<boolean>;
}

/** Holds a stream's text chunks back until the test lets them go. One gate may serve many streams. */
export class Gate {
  #credits = 0;
  #open = false;
  #queue: (() => void)[] = [];
  #watchers: { count: number; resolve: () => void }[] = [];

  /** Streams that wait at the gate now. */
  get waiting(): number {
    return this.#queue.length;
  }

  /** Lets the next `count` chunks through, whether they have arrived or not. */
  pass(count = 1): void {
    this.#credits += count;
    this.#release();
  }

  /** Lets everything through from now on. */
  open(): void {
    this.#open = true;
    this.#release();
  }

  /** Resolves when `count` streams wait at the gate. */
  async arrived(count = 1): Promise<void> {
    if (this.#queue.length >= count) return;
    await new Promise<void>((resolve) => this.#watchers.push({ count, resolve }));
  }

  /** The server's side: resolves when the chunk may go, or when `left` does (the client went away). */
  async wait(left: Promise<unknown>): Promise<void> {
    if (this.#open) return;
    if (this.#credits > 0) {
      this.#credits--;
      return;
    }
    await new Promise<void>((resolve) => {
      this.#queue.push(resolve);
      void left.then(() => {
        this.#queue = this.#queue.filter((entry) => entry !== resolve);
        resolve();
      });
      this.#watchers = this.#watchers.filter((watcher) => {
        if (this.#queue.length < watcher.count) return true;
        watcher.resolve();
        return false;
      });
    });
  }

  #release(): void {
    while (this.#queue.length > 0 && (this.#open || this.#credits > 0)) {
      if (!this.#open) this.#credits--;
      this.#queue.shift()?.();
    }
  }
}
