/**
 * Ids: UUIDv7 (RFC 9562) inside, a prefix and 32 hex digits on the wire. Their first 48 bits are the milliseconds of their
 * making, so ids sort by time and `run_events` is partitioned by them.
 */
import { randomFillSync } from "node:crypto";

export const idPrefixes = {
  run: "run_",
  batch: "bat_",
  event: "evt_",
  delivery: "dlv_",
  approval: "apr_",
  session: "ses_",
  schedule: "sch_",
  endpoint: "whk_",
  key: "key_",
} as const;
export type IdKind = keyof typeof idPrefixes;

const pool = new Uint8Array(16 * 256);
let poolOffset = pool.length;
let lastMs = 0;
let counter = 0;

/**
 * A new UUIDv7 in its 36-character form. Ids of one process are strictly increasing (12-bit counter in `rand_a`,
 * RFC 9562 section 6.2 method 1; when it overflows, the millisecond is borrowed from the future).
 */
export function uuidv7(now: number = Date.now()): string {
  if (now > lastMs) {
    lastMs = now;
    counter = 0;
  } else if (++counter > 0xfff) {
    lastMs++;
    counter = 0;
  }
  if (poolOffset >= pool.length) {
    randomFillSync(pool);
    poolOffset = 0;
  }
  const random = Buffer.from(pool.buffer, pool.byteOffset + poolOffset, 8);
  poolOffset += 16;
  const time = lastMs.toString(16).padStart(12, "0");
  const variant = ((random[0]! & 0x3f) | 0x80).toString(16);
  const tail = variant + random.toString("hex", 1, 8);
  return `${time.slice(0, 8)}-${time.slice(8)}-7${counter.toString(16).padStart(3, "0")}-${tail.slice(0, 4)}-${tail.slice(4)}`;
}

/** `run` + uuid -> `run_<32 hex>`. */
export function toWireId(kind: IdKind, uuid: string): string {
  return idPrefixes[kind] + uuid.replaceAll("-", "");
}

/** The uuid of a wire id, or null when it is not one of that kind (which a route answers like a missing resource). */
export function fromWireId(kind: IdKind, id: string): string | null {
  const prefix = idPrefixes[kind];
  if (!id.startsWith(prefix)) return null;
  const hex = id.slice(prefix.length);
  if (!/^[0-9a-f]{32}$/.test(hex)) return null;
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
