/** What a tool returned, as text: what `JSON.stringify` writes, up to a bound, in bounded memory and with turns for others. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { firstBytes, shape, written } from "../../packages/harness/src/door/output.ts";
import { spawnNode } from "../support/process.ts";

/** What JSON makes of it, or the kind of error. */
function native(value: unknown): unknown {
  try {
    return JSON.stringify(value);
  } catch (error) {
    return (error as Error).name;
  }
}
function ours(value: unknown): unknown {
  try {
    return written(value).text;
  } catch (error) {
    return /circular|BigInt/.test((error as Error).message) ? "TypeError" : error;
  }
}

describe("the text of an output", () => {
  it("is JSON.stringify's, of whatever a program may hold", () => {
    const anything = fc.anything({
      withBigInt: true,
      withBoxedValues: true,
      withDate: true,
      withMap: true,
      withNullPrototype: true,
      withObjectString: true,
      withSet: true,
      withSparseArray: true,
      withTypedArray: true,
    });
    fc.assert(
      fc.property(fc.oneof(fc.array(anything), fc.dictionary(fc.string({ unit: "binary" }), anything)), (value) => {
        expect(ours(value)).toEqual(native(value));
      }),
      { numRuns: 500 },
    );
  });

  const circle: { self?: unknown } = {};
  circle.self = [circle];
  const twice = { a: 1 };
  it.each<[string, unknown]>([
    ["a circle", circle],
    ["the same thing twice", [twice, twice]],
    ["a buffer", { bytes: Buffer.from("ab"), more: [Buffer.alloc(0)] }],
    ["bytes", { bytes: new Uint8Array([1, 2]), floats: new Float64Array([0.5, Number.NaN]) }],
    ["a class with toJSON", [{ toJSON: (key: string) => `at ${key}` }, { a: { toJSON: () => undefined } }]],
    ["a long string", { a: `${"\u{1f600}".repeat(20_000)}\ud83d"\n` }],
    ["a long key", { [`${"k\u0001".repeat(20_000)}\ud83d`]: 1 }],
    ["functions and symbols", { f: () => 1, s: Symbol("x"), list: [() => 1, Symbol("x"), undefined] }],
  ])("is JSON.stringify's of %s", (_what, value) => {
    expect(ours(value)).toEqual(native(value));
  });

  it.each<[string, unknown]>([
    ["text", "é".repeat(600)],
    ["JSON", Array.from({ length: 600 }, (_, index) => `é${index}`)],
  ])("of more than the bound is its beginning: %s", (_what, value) => {
    const all = typeof value === "string" ? value : JSON.stringify(value);
    const { text, bytes, whole } = written(value, 1001);
    expect(all.startsWith(text)).toBe(true);
    expect([whole, bytes]).toEqual([false, Buffer.byteLength(text)]);
    expect(bytes).toBeGreaterThan(997);
    expect(bytes).toBeLessThanOrEqual(1001);
    expect(written(value, Buffer.byteLength(all))).toMatchObject({ whole: true, text: all });
  });

  it("is nested as deep as it is", async () => {
    let deep: unknown = 1;
    for (let level = 0; level < 200_000; level++) deep = [deep];
    expect((await shape({}, deep)).text).toBe(`${"[".repeat(200_000)}1${"]".repeat(200_000)}`);
  });

  it("its first bytes are whole characters", () => {
    for (const most of [0, 1, 2, 3, 4, 5, 6, 7]) {
      const start = firstBytes("aé\u{1f600}", most);
      expect("aé\u{1f600}".startsWith(start)).toBe(true);
      expect(Buffer.byteLength(start)).toBe([0, 1, 1, 3, 3, 3, 3, 7][most]);
    }
  });
});

// Some gigabytes are walked through, on a machine that may be busy.
it("hundreds of megabytes neither end a process with a small heap nor keep it busy", { timeout: 120_000 }, async () => {
  const process = spawnNode(new URL("./huge-output-process.ts", import.meta.url), {
    env: { NODE_OPTIONS: "--max-old-space-size=256" },
  });
  expect(await process.exited, process.output()).toMatchObject({ code: 0 });
  const told = process.lines.map((line) => JSON.parse(line));
  expect(told.map(({ what }) => what)).toEqual(["the same string", "buffer", "bytes", "holes", "a text"]);
  for (const { what, status, artifact, ticks } of told) {
    expect({ what, status, ...artifact }).toMatchObject({ what, status: "ok", cut: true, type: "text/plain" });
    expect(artifact.bytes, what).toBeGreaterThan(16 * 2 ** 20 - 8);
    expect(artifact.bytes, what).toBeLessThanOrEqual(16 * 2 ** 20);
    // A text is cut at once, JSON is written with pauses.
    if (what !== "a text") expect(ticks, what).toBeGreaterThan(2);
  }
});
