/** JSON that Postgres keeps: whatever a tool or a model wrote goes through a real `json` column and comes back. */
import { canonicalJson, hashJson } from "@drover/protocol";
import { openPool, type Pool, storableJson, storableText } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createDatabase, type TestDatabase } from "../support/database.ts";

let database: TestDatabase;
let pool: Pool;
beforeAll(async () => {
  database = await createDatabase();
  pool = openPool({ url: database.url, logger: createLogger({ name: "test", level: "silent" }) });
});
afterAll(async () => {
  await pool.end();
  await database.drop();
});

/** Stores texts as the log does, reads them back; the cast to `jsonb` refuses every escape Postgres cannot work with. */
async function throughPostgres(texts: string[]): Promise<unknown[]> {
  const { rows } = await pool.query<{ data: unknown }>(
    "SELECT j::json AS data, j::json::jsonb IS NOT NULL FROM unnest($1::text[]) WITH ORDINALITY AS t(j, n) ORDER BY n",
    [texts],
  );
  return rows.map((row) => row.data);
}

const nasty = ["\0", "\ud800", "\udfff", "\ud83d\ude00", "\\", "\\u0000", "\\ud800", '"', "\u2028", "u0000"];
const text = fc.string({
  unit: fc.oneof(
    fc.constantFrom(...nasty),
    fc.nat(0xffff).map((code) => String.fromCharCode(code)),
  ),
  maxLength: 8,
});
const { value: anyValue } = fc.letrec<{ value: unknown }>((tie) => ({
  value: fc.oneof(
    { depthSize: "small" },
    text,
    fc.double(),
    fc.constantFrom(null, true, false, Number.NaN, Number.POSITIVE_INFINITY, -0),
    fc.array(tie("value"), { maxLength: 4 }),
    fc.array(fc.tuple(text, tie("value")), { maxLength: 4 }).map((entries) => Object.fromEntries(entries)),
  ),
}));

/** What should come back, said in the slowest and plainest way; counts what was replaced. */
function expected(value: unknown, count: { replaced: number }): unknown {
  const clean = (dirty: string) => {
    let out = "";
    for (const character of dirty) {
      const bad = character === "\0" || /^[\ud800-\udfff]$/.test(character);
      if (bad) count.replaced++;
      out += bad ? "\ufffd" : character;
    }
    return out;
  };
  if (typeof value === "string") return clean(value);
  if (typeof value === "number" && !Number.isFinite(value)) {
    count.replaced++;
    return null;
  }
  if (Array.isArray(value)) return value.map((inner) => expected(inner, count));
  if (typeof value === "object" && value !== null)
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [clean(key), expected(inner, count)]));
  return value;
}

describe("storableJson", () => {
  it("comes back from Postgres with nothing changed but what cannot be stored, and says whether it changed anything", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(anyValue, { minLength: 1, maxLength: 20 }), async (values) => {
        const stored = values.map(storableJson);
        const back = await throughPostgres(stored.map(({ text }) => text));
        values.forEach((value, index) => {
          const count = { replaced: 0 };
          const wanted = expected(value, count);
          expect(JSON.stringify(back[index])).toBe(JSON.stringify(wanted));
          expect(stored[index]!.changed).toBe(count.replaced > 0);
        });
      }),
      { numRuns: 150 },
    );
  });

  it.each([
    ["NUL in a value", { a: "x\0y" }, { a: "x\ufffdy" }],
    ["NUL in a key only", { "x\0y": 1 }, { "x\ufffdy": 1 }],
    ["a lone surrogate in a key of a nested array", [[{ "\ud800": [] }]], [[{ "\ufffd": [] }]]],
    ["a lone low surrogate", ["\udc00\ud83d\ude00"], ["\ufffd\ud83d\ude00"]],
    ["NUL after a backslash", ["\\\0"], ["\\\ufffd"]],
    ["NaN and Infinity", [Number.NaN, -Number.POSITIVE_INFINITY, null], [null, null, null]],
  ])("replaces %s and says so", async (_what, value, wanted) => {
    const { text, changed } = storableJson(value);
    expect(await throughPostgres([text])).toEqual([wanted]);
    expect(changed).toBe(true);
  });

  it.each([
    ["a literal backslash-u sequence", ["\\u0000", "\\\\ud800"]],
    ["text that speaks of null", { a: "null", null: null }],
    ["an emoji", ["\ud83d\ude00"]],
    ["nothing", {}],
  ])("leaves %s alone", async (_what, value) => {
    const { text, changed } = storableJson(value);
    expect(text).toBe(JSON.stringify(value));
    expect(await throughPostgres([text])).toEqual([value]);
    expect(changed).toBe(false);
  });

  it("keeps keys in the order they were written", async () => {
    const { text } = storableJson({ zebra: 1, aard: { y: 1, x: 2 } });
    expect(JSON.stringify((await throughPostgres([text]))[0])).toBe('{"zebra":1,"aard":{"y":1,"x":2}}');
  });

  it("stores JSON that is nested deep, and refuses only what cannot be written at all", async () => {
    const nested = (levels: number) => {
      let value: unknown = "\0";
      for (let level = 0; level < levels; level++) value = [value];
      return value;
    };
    let [inner] = await throughPostgres([storableJson(nested(3000)).text]);
    for (let level = 0; level < 3000; level++) inner = (inner as unknown[])[0];
    expect(inner).toBe("\ufffd");
    expect(() => storableJson(nested(200_000))).toThrow(RangeError);
  });

  it("writes undefined as null", () => {
    expect(storableJson(undefined)).toEqual({ text: "null", changed: false });
  });
});

it("storableText gives text that a text column takes, and leaves all other text as it is", async () => {
  await fc.assert(
    fc.asyncProperty(text, async (dirty) => {
      const clean = storableText(dirty);
      const { rows } = await pool.query<{ clean: string }>("SELECT $1::text AS clean", [clean]);
      expect(rows[0]!.clean).toBe(clean);
      expect(clean).toHaveLength(dirty.length);
      if (!/\0/.test(dirty) && dirty.isWellFormed()) expect(clean).toBe(dirty);
    }),
    { numRuns: 200 },
  );
});

describe("canonicalJson", () => {
  /** The same value with the keys of every object in another order. */
  const shuffled = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(shuffled);
    if (typeof value !== "object" || value === null) return value;
    const entries = Object.entries(value).map(([key, inner]) => [key, shuffled(inner)] as const);
    return Object.fromEntries(entries.reverse());
  };

  it("is the same, and hashes the same, whatever the order of keys", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(canonicalJson(shuffled(value))).toBe(canonicalJson(value));
        expect(hashJson(shuffled(value)).equals(hashJson(value))).toBe(true);
        expect(JSON.parse(canonicalJson(value))).toEqual(JSON.parse(JSON.stringify(value)));
      }),
    );
  });

  it("takes what else a program holds for what JSON.stringify makes of it", () => {
    const value = {
      when: new Date(0),
      list: [undefined, () => 1, Number.NaN],
      gone: undefined,
      never: () => 1,
      b: 1,
      a: 2,
    };
    expect(canonicalJson(value)).toBe('{"a":2,"b":1,"list":[null,null,null],"when":"1970-01-01T00:00:00.000Z"}');
    expect(hashJson({ at: new Date(0) }).equals(hashJson({ at: new Date(1) }))).toBe(false);
  });

  it("tells different values apart, also by the order of an array", () => {
    const hashes = [{ a: 1 }, { a: "1" }, { a: [1, 2] }, { a: [2, 1] }, { b: 1 }, [], {}, null];
    expect(new Set(hashes.map((value) => hashJson(value).toString("hex"))).size).toBe(hashes.length);
    expect(hashJson({})).toHaveLength(32);
  });
});
