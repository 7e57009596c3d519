/**
 * A process of Drover under a small supervisor: started anew whenever it ends, its output in a file, and every life and pause of it written
 * down, so that what it sent can be judged by what had been done to it.
 */
import { type ChildProcess, fork } from "node:child_process";
import { EventEmitter, once } from "node:events";
import { createWriteStream } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";

/** One process from its start to its end. */
export interface Life {
  /** `worker1.3`: the third life of worker1. */
  name: string;
  pid: number;
  startedAt: number;
  /** ms since 1970; null while it lives. */
  endedAt: number | null;
  code: number | null;
  signal: NodeJS.Signals | null;
  /** Of SIGSTOP, ms since 1970. */
  pauses: { from: number; to: number }[];
}

export interface SupervisedOptions {
  name: string;
  entry: URL;
  /** Folder of its output. */
  folder: string;
  env(life: string): Record<string, string>;
  /** Another life began or ended. */
  onLife?(life: Life): void;
}

/** Between a life and the next, ms: a process that cannot start is not to keep the machine busy. */
const restartMs = 300;
const killAfterMs = 40_000;

export class Supervised {
  readonly lives: Life[] = [];
  readonly #options: SupervisedOptions;
  readonly #changes = new EventEmitter().setMaxListeners(0);
  readonly #closing = new AbortController();
  #child: ChildProcess | undefined;
  #ready = false;
  #running: Promise<void>;

  constructor(options: SupervisedOptions) {
    this.#options = options;
    this.#running = this.#run();
  }

  get name(): string {
    return this.#options.name;
  }

  /** Resolves when the process of now says that it is ready, or `signal` aborts. */
  async ready(signal?: AbortSignal): Promise<void> {
    while (!this.#ready && !signal?.aborted)
      await once(this.#changes, "change", signal ? { signal } : {}).catch(() => {});
  }

  /** Resolves with the life of now once it is over. It starts anew by itself. */
  async kill(signal: "SIGKILL" | "SIGTERM"): Promise<void> {
    const life = this.lives.at(-1);
    if (!life || life.endedAt !== null) return;
    this.#ready = false;
    this.#child?.kill(signal);
    while (life.endedAt === null) await once(this.#changes, "change");
  }

  /** SIGSTOP until the promise resolves. */
  async stop(until: Promise<unknown>): Promise<void> {
    const life = this.lives.at(-1);
    const child = this.#child;
    if (!life || life.endedAt !== null) return;
    const pause = { from: Date.now(), to: Number.POSITIVE_INFINITY };
    life.pauses.push(pause);
    child?.kill("SIGSTOP");
    await until;
    pause.to = Date.now();
    child?.kill("SIGCONT");
  }

  /** SIGTERM, and no other life after this one. Resolves with it; SIGKILL ends what does not end by itself. */
  async close(): Promise<Life | undefined> {
    this.#closing.abort();
    const life = this.lives.at(-1);
    this.#child?.kill("SIGCONT");
    this.#child?.kill("SIGTERM");
    const timer = setTimeout(() => this.#child?.kill("SIGKILL"), killAfterMs);
    await this.#running;
    clearTimeout(timer);
    return life;
  }

  async #run(): Promise<void> {
    const { name, folder, entry, env, onLife } = this.#options;
    const output = createWriteStream(`${folder}/${name}.log`, { flags: "a" });
    const { signal } = this.#closing;
    while (!signal.aborted) {
      const lifeName = `${name}.${this.lives.length + 1}`;
      const child = fork(entry, {
        env: { PATH: process.env.PATH, ...env(lifeName) },
        stdio: ["ignore", "pipe", "pipe", "ipc"],
        execArgv: [],
      });
      alive.add(child);
      this.#child = child;
      const life: Life = {
        name: lifeName,
        pid: child.pid!,
        startedAt: Date.now(),
        endedAt: null,
        code: null,
        signal: null,
        pauses: [],
      };
      this.lives.push(life);
      onLife?.(life);
      for (const stream of [child.stdout!, child.stderr!]) stream.on("data", (chunk) => output.write(chunk));
      child.on("message", (message: { ready?: boolean }) => {
        this.#ready = message.ready === true;
        this.#changes.emit("change");
      });
      const [code, by] = (await once(child, "exit")) as [number | null, NodeJS.Signals | null];
      alive.delete(child);
      Object.assign(life, { endedAt: Date.now(), code, signal: by });
      this.#ready = false;
      this.#changes.emit("change");
      onLife?.(life);
      await delay(restartMs, undefined, { signal }).catch(() => {});
    }
    output.end();
    await once(output, "close");
  }
}

/** Should this process end before it could stop them. */
const alive = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of alive) child.kill("SIGKILL");
});
