/**
 * The audit trail as the door writes it, and the chain that makes it tamper-evident: every entry has a place, and its hash covers the
 * entry before it. What the trail says of arguments and results are their hashes, never their contents.
 */
import { createHash } from "node:crypto";
import { hashJson, toWireId, uuidv7 } from "@drover/protocol";

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
 * SHA-256 over 32 bytes, the hash of the entry before (32 zero bytes for `seq` 1), followed by the UTF-8 bytes of `auditJson` of the
 * object with exactly these members: `action`, `actor`, `at`, `data`, `id`, `run_id`, `seq`, `tenant`. Returns 32 bytes.
 */
export function chainHash(previous: Uint8Array, entry: PlacedEntry): Buffer {
  const { action, actor, at, data, id, run_id, seq, tenant } = entry;
  const text = auditJson({ action, actor, at, data, id, run_id, seq, tenant });
  return createHash("sha256").update(previous).update(text, "utf8").digest();
}

/**
 * The one text of a JSON value (RFC 8785): no white space, members sorted by their names' UTF-16 code units, strings and numbers as
 * ECMAScript's `JSON.stringify` writes them. Numbers are IEEE 754 doubles, so `1E21` is `1e+21` and `-0` is `0`. Takes what
 * `JSON.parse` gives, however deep; half a surrogate pair is written as its escape, such as `\ud800`.
 */
export function auditJson(value: unknown): string {
  // What is left to write, last first: pieces of text, and values in a box. A stack, as recursion would end at some depth.
  const left: (string | { value: unknown })[] = [{ value }];
  let text = "";
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    if (typeof next === "string") text += next;
    else if (Array.isArray(next.value)) {
      left.push("]");
      for (let at = next.value.length - 1; at >= 0; at--) left.push({ value: next.value[at] }, at > 0 ? "," : "");
      left.push("[");
    } else if (typeof next.value === "object" && next.value !== null) {
      const members = next.value as Record<string, unknown>;
      const names = Object.keys(members).sort();
      left.push("}");
      for (let at = names.length - 1; at >= 0; at--)
        left.push({ value: members[names[at]!] }, `${at > 0 ? "," : ""}${JSON.stringify(names[at])}:`);
      left.push("{");
    } else text += JSON.stringify(next.value);
  }
  return text;
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
