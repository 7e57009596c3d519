/** Where what a tool returned is kept when it is more than the model is shown. The worker keeps it in the blob store. */
import { createHash } from "node:crypto";

export interface Artifacts {
  /** Keeps a text, and resolves with its id once it is kept. Keeping the same text again is harmless. */
  put(text: string): Promise<string>;
}

/** Artifacts in this process's memory, for as long as it is there. Ids are SHA-256 of the text, as in the worker. */
export function memoryArtifacts(): Artifacts & { get(id: string): string | undefined } {
  const kept = new Map<string, string>();
  return {
    async put(text) {
      const id = createHash("sha256").update(text).digest("hex");
      kept.set(id, text);
      return id;
    },
    get: (id) => kept.get(id),
  };
}
