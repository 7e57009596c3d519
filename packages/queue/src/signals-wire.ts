/** What carries signals between processes, and how they are written on it. */

/** `live`: news and deltas. `interest`: who follows what. `bells`: rings. */
export type Channel = "live" | "interest" | "bells";

export type Part =
  | [kind: "news", runId: string]
  | [kind: "delta", runId: string, epoch: number, text: string, iteration?: number, offset?: number]
  | [kind: "ring", bell: string]
  | [kind: "follow", runId: string]
  /** Asks everybody to say what they follow. */
  | [kind: "who"]
  /** Says nothing: its sender waits for the echo. */
  | [kind: "beat"];

export interface WireEvents {
  /** Connected and subscribed; `again` when it was before. */
  connected(again: boolean): void;
  message(channel: Channel, origin: string, parts: Part[]): void;
}

export interface Wire {
  /** Largest message, in bytes of UTF-8. */
  readonly maxBytes: number;
  isConnected(): boolean;
  /** From now on, over all reconnections. */
  subscribe(channel: Channel): void;
  /** Sends the messages in order. Rejects, within seconds, when they cannot be sent. */
  publish(channel: Channel, messages: string[]): Promise<void>;
  /** Drop the connection and make a new one. */
  reset(): void;
  close(): Promise<void>;
}

interface Message {
  /** Origin: the sending process. */
  o: string;
  /** Number of the message: no two are the same text, which NOTIFY would send once. */
  n: number;
  p: Part[];
}

/** As few messages as `maxBytes` allows; long texts are cut into several deltas, between characters. */
export function packMessages(origin: string, number: () => number, parts: Part[], maxBytes: number): string[] {
  const messages: string[] = [];
  const frame = JSON.stringify({ o: origin, n: Number.MAX_SAFE_INTEGER, p: [] } satisfies Message).length;
  const room = maxBytes - frame;
  let current: Part[] = [];
  let size = 0;
  const close = () => {
    if (current.length > 0) messages.push(JSON.stringify({ o: origin, n: number(), p: current } satisfies Message));
    current = [];
    size = 0;
  };
  const add = (part: Part) => {
    const bytes = Buffer.byteLength(JSON.stringify(part)) + 1;
    if (bytes > room) {
      if (part[0] !== "delta") return;
      const [kind, runId, epoch, text, ...at] = part;
      let middle = text.length >> 1;
      if (middle === 0) return;
      const unit = text.charCodeAt(middle);
      // Not between the two halves of one character.
      if (unit >= 0xdc00 && unit <= 0xdfff && middle > 1) middle--;
      const [iteration, offset] = at;
      add([kind, runId, epoch, text.slice(0, middle), ...at]);
      add([
        kind,
        runId,
        epoch,
        text.slice(middle),
        ...(offset === undefined ? [] : [iteration, offset + middle]),
      ] as Part);
      return;
    }
    if (size + bytes > room) close();
    current.push(part);
    size += bytes;
  };
  for (const part of parts) add(part);
  close();
  return messages;
}

/** The reverse of `packMessages`, for one message; undefined for anything else that may come along the channel. */
export function unpackMessage(text: string): { origin: string; parts: Part[] } | undefined {
  try {
    const { o, p } = JSON.parse(text) as Message;
    return typeof o === "string" && Array.isArray(p) && p.every(Array.isArray) ? { origin: o, parts: p } : undefined;
  } catch {
    return undefined;
  }
}
