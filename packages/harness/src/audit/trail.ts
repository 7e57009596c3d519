/**
 * The audit trail as the door writes it, and the chain that makes it tamper-evident: every entry has a place, and its hash covers the
 * entry before it. What the trail says of arguments and results are their hashes, never their contents.
 */
import { createHash } from "node:crypto";
import { canonicalJson, hashJson, toWireId, uuidv7 } from "@drover/protocol";

/** What is written down, by whoever does it, together with what it tells about. */
export interface AuditEntry {
  /** Who did it: an API key's id (`key_…`), `worker`, `link`, `system`, or the name a library user gave. */
  actor: string;
  /** What was done, such as `tool.called` or `approval.approved`. */
  action: string;
  data: Record<string, unknown>;
}

/** An entry at its place, as it is hashed and exported. */
export interface PlacedEntry extends AuditEntry {
  tenant: string;
  /** 1 for the tenant's first entry, and no gap after it. */
  seq: number;
  /** UUID. */
  id: string;
  /** When it was written: ISO 8601, UTC, milliseconds. */
  at: string;
  /** `run_…`, or null when it is about no run. */
  run_id: string | null;
}

export interface ChainedEntry extends PlacedEntry {
  /** `chainHash` of the entry before and this one, in hex. */
  hash: string;
}

/** SHA-256 of the canonical JSON, in hex: how contents are named in the trail. */
export const contentHash = (content: unknown): string => hashJson(content ?? null).toString("hex");

/** What stands in for the hash before a tenant's first entry: 32 zero bytes. */
export const noHash: Buffer = Buffer.alloc(32);

/**
 * SHA-256 over 32 bytes, the hash of the entry before (32 zero bytes for `seq` 1), followed by the UTF-8 bytes of `canonicalJson` of the
 * object with exactly these members: `action`, `actor`, `at`, `data`, `id`, `run_id`, `seq`, `tenant`. Returns 32 bytes.
 */
export function chainHash(previous: Uint8Array, entry: PlacedEntry): Buffer {
  const { action, actor, at, data, id, run_id, seq, tenant } = entry;
  const text = canonicalJson({ action, actor, at, data, id, run_id, seq, tenant });
  return createHash("sha256").update(previous).update(text, "utf8").digest();
}

/** Where the library's entries go. The durable trail is `@drover/runs`. */
export interface AuditSink {
  /** Adds an entry, about the run of this UUID or about none. Written, as far as this trail is, once it resolves. */
  record(entry: AuditEntry, runId: string | null): Promise<void>;
}

export interface MemoryAudit extends AuditSink {
  /** All so far, in order; `verifyChain` takes them. */
  entries(): readonly ChainedEntry[];
}

/** A trail that lives as long as the process: append-only, each entry chained as it comes. */
export function memoryAudit(options: { tenant?: string } = {}): MemoryAudit {
  const entries: ChainedEntry[] = [];
  let last = noHash;
  return {
    async record({ actor, action, data }, runId) {
      const placed: PlacedEntry = {
        tenant: options.tenant ?? "default",
        seq: entries.length + 1,
        id: uuidv7(),
        at: new Date().toISOString(),
        actor,
        action,
        run_id: runId === null ? null : toWireId("run", runId),
        // As it reads back from JSON, and the caller's object may change later.
        data: JSON.parse(JSON.stringify(data)),
      };
      last = chainHash(last, placed);
      entries.push(frozen({ ...placed, hash: last.toString("hex") }));
    },
    entries: () => [...entries],
  };
}

function frozen<T>(value: T): T {
  if (typeof value === "object" && value !== null) for (const part of Object.values(Object.freeze(value))) frozen(part);
  return value;
}
