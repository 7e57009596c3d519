/** Pieces that many wire schemas share: ids, times, money, tokens, pages. */
import { z } from "zod";
import { type IdKind, idPrefixes, toWireId } from "./ids.ts";

/** An id as it stands in an answer. Requests take any string: what is no id of the kind answers like a missing resource. */
export function wireId(kind: IdKind) {
  const example = toWireId(kind, "01936f3e-7c5a-7d41-8a3e-5b0f9c2d1e4a");
  return z.string().meta({ pattern: `^${idPrefixes[kind]}[0-9a-f]{32}$`, examples: [example] });
}

export const timestamp = z.string().meta({ format: "date-time", examples: ["2026-11-21T09:30:00.000Z"] });

/** A time as clients write it: ISO 8601 with seconds and an offset or `Z`. */
export const timeInput = z.iso.datetime({
  offset: true,
  error: "must be an ISO 8601 time such as 2026-11-21T09:30:00Z",
});

export const costUsd = z.number().nullable().describe("USD; null: a step's price is not known");

export const tokensUsed = z
  .object({ input: z.int(), output: z.int(), cached: z.int().describe("part of `input`"), total: z.int() })
  .meta({ id: "TokensUsed", examples: [{ input: 1840, output: 212, cached: 1024, total: 2052 }] });

/** Text that Postgres keeps as it is: filters and indexes must find it again. */
export const plainText = (most: number) =>
  z
    .string()
    .max(most)
    .refine((text) => text.isWellFormed() && !text.includes("\0"), "must not contain NUL or half a surrogate pair");

const maxDepth = 100;

/** JSON of any kind, but not so deep that it overflows the stack of whoever writes it. */
export const shallow = <T extends z.ZodType>(schema: T) =>
  schema.refine((value) => isShallow(value, maxDepth), `must not be nested more than ${maxDepth} levels deep`);

function isShallow(value: unknown, depth: number): boolean {
  if (value === null || typeof value !== "object") return true;
  if (depth === 0) return false;
  for (const part of Object.values(value)) if (!isShallow(part, depth - 1)) return false;
  return true;
}

const metadataEntries = 16;
export const metadataKey = plainText(64).min(1);
export const metadataValue = plainText(512);
export const metadataInput = z
  .record(metadataKey, metadataValue)
  .refine((pairs) => Object.keys(pairs).length <= metadataEntries, `must have at most ${metadataEntries} entries`)
  .describe("Up to 16 strings: keys of up to 64 characters, values of up to 512. Returned everywhere, searchable.")
  .meta({ maxProperties: metadataEntries, examples: [{ project: "apollo" }] });

export const metadata = z.record(z.string(), z.string());

export const pageQuery = {
  limit: z.coerce.number().int().min(1).max(200).optional().describe("entries of a page (default 50)"),
  cursor: z.string().max(200).optional().describe("`next_cursor` of the page before"),
};
export const defaultPageSize = 50;

export const nextCursor = z.string().nullable().describe("ask for the next page with it; null: there is none yet");

export function page<T extends z.ZodType>(entry: T) {
  return z.object({ data: z.array(entry), next_cursor: nextCursor });
}
