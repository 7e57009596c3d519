/** Cursors: opaque to clients, and of one kind of list only. */
import { defaultPageSize } from "@drover/protocol";
import { invalid } from "./problems.ts";

type Position = {
  runs: string;
  events: number;
  items: number;
  audit: number;
  feed: number;
  approvals: string;
  endpoints: string;
  deliveries: string;
};
type Kind = keyof Position;

const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const count = /^(0|[1-9]\d{0,8})$/;
const numbered: ReadonlySet<Kind> = new Set<Kind>(["events", "items", "audit", "feed"]);

export function toCursor<K extends Kind>(kind: K, position: Position[K]): string {
  return Buffer.from(`${kind} ${position}`).toString("base64url");
}

/** @throws DroverError `invalid_input`, naming the parameter `path`, when it is not one that this list gave */
export function fromCursor<K extends Kind>(
  kind: K,
  cursor: string | undefined,
  path = "cursor",
): Position[K] | undefined {
  if (cursor === undefined) return undefined;
  const [name, position = ""] = Buffer.from(cursor, "base64url").toString("latin1").split(" ", 2);
  const isNumber = numbered.has(kind);
  if (name !== kind || !(isNumber ? count : uuid).test(position))
    throw invalid([{ path, message: "is not a next_cursor of this list" }]);
  return (isNumber ? Number(position) : position) as Position[K];
}

/**
 * One page of `read(limit + 1)`: the entry too many says that there is a next page. `cursorOf` gives the cursor after an entry.
 */
export async function readPage<T>(
  limit: number | undefined,
  read: (limit: number) => Promise<T[]>,
  cursorOf: (last: T) => string,
): Promise<{ entries: T[]; nextCursor: string | null }> {
  const size = limit ?? defaultPageSize;
  const found = await read(size + 1);
  const entries = found.slice(0, size);
  return { entries, nextCursor: found.length > size ? cursorOf(entries.at(-1)!) : null };
}
