/** Which runs this worker holds, under which epoch, and what the database says of it. */
import { RunControl, type StopCause } from "@drover/harness/worker";
import type { Held, Lost } from "../liveness/beat.ts";
import type { ClaimedRun } from "../moves/claim.ts";

interface Owned {
  run: ClaimedRun;
  control: RunControl;
}

export class Ownership {
  readonly #owned = new Map<string, Owned>();
  /** "<run id> <epoch>" of what the database says is ours and nobody here carries, and when that was first noticed. */
  readonly #strays = new Map<string, number>();
  readonly #strayAfterMs: number;
  #draining = false;

  /** `strayAfterMs`: for so long a claim's answer may still be on its way. */
  constructor(strayAfterMs: number) {
    this.#strayAfterMs = strayAfterMs;
  }

  /** Runs held right now. */
  get size(): number {
    return this.#owned.size;
  }

  has(runId: string): boolean {
    return this.#owned.has(runId);
  }

  /** The clock of a run that is ours from now on; null when this ownership is held already. An older one of the run is told that it is lost. */
  take(run: ClaimedRun): RunControl | null {
    const other = this.#owned.get(run.id);
    if (other && other.run.epoch >= run.epoch) return null;
    other?.control.stop("lost");
    const control = new RunControl({
      softMs: run.softInMs,
      hardMs: run.hardInMs,
      ...(run.deadlineInMs !== null && { deadlineMs: run.deadlineInMs }),
    });
    this.#owned.set(run.id, { run, control });
    if (this.#draining) control.drain();
    return control;
  }

  release(run: ClaimedRun, control: RunControl): void {
    control.close();
    if (this.#owned.get(run.id)?.control === control) this.#owned.delete(run.id);
  }

  /** Hands every run over at its next step boundary. */
  drain(): void {
    this.#draining = true;
    for (const { control } of this.#owned.values()) control.drain();
  }

  stopAll(cause: StopCause): void {
    for (const { control } of this.#owned.values()) control.stop(cause);
  }

  cancel(runIds: string[]): void {
    for (const id of runIds) this.#owned.get(id)?.control.stop("cancelled");
  }

  /** What is held, for the next heartbeat to ask about. */
  held(): Held {
    const owned = [...this.#owned.values()];
    return { runs: owned.map(({ run }) => run.id), epochs: owned.map(({ run }) => run.epoch) };
  }

  /** These are not ours any more: the database said so after we had them. */
  lose(lost: Lost[]): void {
    for (const { runId, epoch } of lost) {
      const owned = this.#owned.get(runId);
      if (owned?.run.epoch === epoch) owned.control.stop("lost");
    }
  }

  /**
   * All that the database says is ours, as "<run id> <epoch>": what nobody here carries, and did not at an earlier look so long ago, are claims
   * whose answer was lost. Give them back.
   */
  findStrays(all: readonly string[]): Lost[] {
    const known = new Set(all);
    for (const key of this.#strays.keys()) if (!known.has(key)) this.#strays.delete(key);
    const now = performance.now();
    const found: Lost[] = [];
    for (const key of all) {
      const [runId, epoch] = [key.slice(0, 36), Number(key.slice(37))];
      const noticedAt = this.#strays.get(key);
      if (this.#owned.get(runId)?.run.epoch === epoch) this.#strays.delete(key);
      else if (noticedAt === undefined) this.#strays.set(key, now);
      else if (now - noticedAt > this.#strayAfterMs) {
        this.#strays.set(key, now);
        found.push({ runId, epoch });
      }
    }
    return found;
  }

  /** The last look found something that may be a stray. */
  get suspicious(): boolean {
    return this.#strays.size > 0;
  }
}
