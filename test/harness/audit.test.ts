/** The chain of the audit trail: whatever single change is made to it is named at its place, and checkpoints see the rest. */
import { createHash, generateKeyPairSync } from "node:crypto";
import {
  type AuditEntry,
  type BadEntry,
  type ChainedEntry,
  chainHash,
  isSigned,
  keyId,
  memoryAudit,
  newSigningKey,
  noHash,
  publicKeyOf,
  readPublicKey,
  readSigningKey,
  signCheckpoint,
  verifyChain,
} from "@drover/harness";
import { canonicalJson, uuidv7 } from "@drover/protocol";
import fc from "fast-check";
import { describe, expect, test } from "vitest";

const odd = [
  "日本 \u0000 \ud83d\ude00 é",
  1e21,
  -0,
  5e-324,
  0.1 + 0.2,
  { "10": 1, "9": 2, b: 3, a: 4, "": 5, __proto__x: 6, "\u{1f600}": 7, "\uffff": 8 },
  [[], {}, null, true],
];

async function trail(entries: Partial<AuditEntry>[], tenant = "acme"): Promise<ChainedEntry[]> {
  const audit = memoryAudit({ tenant });
  for (const entry of entries)
    await audit.record({ actor: "worker", action: "tool.called", data: {}, ...entry }, uuidv7());
  return audit.entries().map((entry) => structuredClone(entry));
}

const trails = fc
  .array(fc.record({ action: fc.constantFrom("a", "b"), data: fc.dictionary(fc.string(), fc.jsonValue()) }), {
    minLength: 2,
    maxLength: 12,
  })
  .map((entries) => entries.map((entry) => ({ ...entry, data: entry.data as Record<string, unknown> })));

async function badOf(entries: ChainedEntry[], options?: Parameters<typeof verifyChain>[1]): Promise<BadEntry | null> {
  const chains = await verifyChain(entries, options);
  expect(chains.length).toBeLessThanOrEqual(1);
  return chains[0]?.bad ?? null;
}

const renumbered = (entries: ChainedEntry[]) => entries.map((entry, index) => ({ ...entry, seq: index + 1 }));
/** Chains anew from place `from`, as somebody who knows the rules and can write everything would. */
function rehashed(entries: ChainedEntry[], from = 1): ChainedEntry[] {
  let last: Uint8Array = noHash;
  return entries.map((entry) => {
    const hash = entry.seq < from ? entry.hash : chainHash(last, entry).toString("hex");
    last = Buffer.from(hash, "hex");
    return { ...entry, hash };
  });
}
const stranger = (seq: number): ChainedEntry => ({
  tenant: "acme",
  seq,
  id: uuidv7(),
  at: "2026-11-21T09:30:00.000Z",
  actor: "nobody",
  action: "nothing",
  run_id: null,
  data: {},
  hash: "ab".repeat(32),
});

describe("the chain", () => {
  test("is the documented bytes, so that anybody can compute it", () => {
    const entry = {
      ...stranger(1),
      id: "01936f3e-7c5a-7d41-8a3e-5b0f9c2d1e4a",
      run_id: "run_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
      data: { z: [1e21, -0], a: "é" },
    };
    const text =
      '{"action":"nothing","actor":"nobody","at":"2026-11-21T09:30:00.000Z","data":{"a":"é","z":[1e+21,0]},' +
      '"id":"01936f3e-7c5a-7d41-8a3e-5b0f9c2d1e4a","run_id":"run_01936f3e7c5a7d418a3e5b0f9c2d1e4a","seq":1,"tenant":"acme"}';
    const bytes = Buffer.concat([Buffer.alloc(32), Buffer.from(text, "utf8")]);
    expect(chainHash(noHash, entry)).toEqual(createHash("sha256").update(bytes).digest());
    // Computed once and written down: a change of the form would make every old trail unverifiable.
    expect(chainHash(noHash, entry).toString("hex")).toBe(
      "689d2b950f0b557bb8995a052fac07ed0e2edb4c971114fba08115dc244496e6",
    );
  });

  test("its JSON has one form for a value, whatever the order of members, and reads back as the same value", () => {
    expect(canonicalJson({ b: 1, "10": 2, "9": 3, a: { d: null, c: [] } })).toBe(
      '{"10":2,"9":3,"a":{"c":[],"d":null},"b":1}',
    );
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        const text = canonicalJson(value);
        expect(canonicalJson(JSON.parse(text))).toBe(text);
        expect(JSON.parse(text)).toEqual(JSON.parse(JSON.stringify(value)));
      }),
    );
  });

  test("takes JSON of any depth", () => {
    const deep = JSON.parse(`${"[".repeat(100_000)}1${"]".repeat(100_000)}`);
    expect(canonicalJson(deep)).toHaveLength(200_001);
  });

  test("of a library's trail verifies, in memory and through an export, odd contents included", async () => {
    const entries = await trail([...odd.map((data) => ({ data: { data } })), {}]);
    expect(entries.map(({ seq }) => seq)).toEqual(entries.map((_, index) => index + 1));
    const exported = entries.map((entry) => JSON.parse(canonicalJson(entry)));
    for (const given of [entries, exported])
      expect(await verifyChain(given)).toEqual([
        {
          tenant: "acme",
          entries: entries.length,
          cut: 0,
          head: { seq: entries.length, hash: entries.at(-1)!.hash },
          checkpoints: 0,
          bad: null,
        },
      ]);
  });

  test("of a library keeps what was said, whatever becomes of the object that said it", async () => {
    const audit = memoryAudit();
    const data = { amount: { usd: 1 } };
    await audit.record({ actor: "me", action: "budget.raised", data }, null);
    data.amount.usd = 1000;
    const [entry] = audit.entries();
    expect(entry!.data).toEqual({ amount: { usd: 1 } });
    expect(() => Object.assign(entry!.data, { amount: 0 })).toThrow();
    (audit.entries() as ChainedEntry[]).pop();
    expect(await badOf([...audit.entries()])).toBeNull();
    expect(audit.entries()).toHaveLength(1);
  });
});

describe("a single change to a trail is named at the first bad place", () => {
  const places = fc.tuple(trails, fc.nat(), fc.nat());
  const check = (what: (entries: ChainedEntry[], at: number, other: number) => Promise<void>) =>
    fc.assert(
      fc.asyncProperty(places, async ([made, one, two]) => {
        const entries = await trail(made);
        expect(await badOf(entries)).toBeNull();
        await what(entries, one % entries.length, two % entries.length);
      }),
      { numRuns: 60 },
    );

  test("an edit, of any field", () =>
    check(async (entries, at, other) => {
      const edits: Partial<ChainedEntry>[] = [
        { actor: "somebody else" },
        { action: "c" },
        { at: "2020-01-01T00:00:00.000Z" },
        { id: uuidv7() },
        { run_id: null },
        { data: { ...entries[at]!.data, added: 1 } },
        { hash: "00".repeat(32) },
      ];
      const edited = entries.with(at, { ...entries[at]!, ...edits[other % edits.length] });
      const bad = await badOf(edited);
      expect(bad).toMatchObject({ seq: at + 1, id: edited[at]!.id });
      // Of the last one nothing follows that tells more.
      expect(bad!.problem).toBe(at + 1 < entries.length ? "edited" : "altered");
    }));

  test("an edit of its place or its tenant", () =>
    check(async (entries, at) => {
      const moved = entries.with(at, { ...entries[at]!, seq: 500 });
      expect(await badOf(moved)).toMatchObject({ seq: at + 1, id: entries[at]!.id, problem: "edited" });
      const given = await verifyChain(entries.with(at, { ...entries[at]!, tenant: "other" }));
      expect(given.find(({ tenant }) => tenant === "other")!.bad).not.toBeNull();
      if (at + 1 < entries.length)
        expect(given.find(({ tenant }) => tenant === "acme")!.bad).toMatchObject({ seq: at + 1, problem: "missing" });
    }));

  test("an edit that comes with its own new hash shows where the next one no longer follows", () =>
    check(async (entries, at) => {
      if (at + 1 === entries.length) return;
      const edited = entries.with(at, { ...entries[at]!, actor: "somebody else" });
      const bad = await badOf(rehashed(edited, at + 1).map((entry, index) => (index > at ? entries[index]! : entry)));
      expect(bad).toMatchObject({ seq: at + 2, id: entries[at + 1]!.id });
      expect(bad!.message).toContain("before");
    }));

  test("a deletion, with a gap or closed by new numbers", () =>
    check(async (entries, at) => {
      if (at + 1 === entries.length) return;
      const left = entries.toSpliced(at, 1);
      expect(await badOf(left)).toMatchObject({ seq: at + 1, id: null, problem: "missing" });
      const closed = await badOf(renumbered(left));
      expect(closed).toMatchObject({ seq: at + 1 });
      // Three entries must be left to tell: the one before, and two that were renumbered.
      if (at + 2 < entries.length) expect(closed).toMatchObject({ id: null, problem: "missing" });
    }));

  test("a deletion of many says which", async () => {
    const entries = await trail([{}, {}, {}, {}, {}]);
    const bad = await badOf(entries.toSpliced(1, 3));
    expect(bad).toMatchObject({ seq: 2, problem: "missing", message: "is missing, and those after it up to 4" });
  });

  test("an insertion, with any hash, well chained or not, with new numbers or without", () =>
    check(async (entries, at) => {
      const put = stranger(at + 1);
      const previous = at === 0 ? noHash : Buffer.from(entries[at - 1]!.hash, "hex");
      const chained = { ...put, hash: chainHash(previous, put).toString("hex") };
      for (const one of [put, chained]) {
        const expected = { seq: at + 1, id: one.id, problem: "inserted" };
        expect(await badOf(entries.toSpliced(at, 0, one))).toMatchObject(expected);
        expect(await badOf(renumbered(entries.toSpliced(at, 0, one)))).toMatchObject(expected);
        if (at + 1 < entries.length) expect(await badOf(entries.toSpliced(at + 1, 0, one))).toMatchObject(expected);
      }
    }));

  test("a swap: of rows, of rows with their numbers kept in order, of contents alone", () =>
    check(async (entries, one, two) => {
      const [low, high] = [Math.min(one, two), Math.max(one, two)];
      if (low === high) return;
      const [a, b] = [entries[low]!, entries[high]!];
      const rows = entries.with(low, b).with(high, a);
      const contents = rows.map((entry, index) => ({ ...entry, seq: index + 1, hash: entries[index]!.hash }));
      for (const swapped of [rows, renumbered(rows), contents])
        expect(await badOf(swapped)).toMatchObject({ seq: low + 1, id: b.id, problem: "moved" });
    }));

  test("a repetition", () =>
    check(async (entries, at) => {
      expect(await badOf([...entries, entries[at]!])).toMatchObject({ seq: at + 1, problem: "inserted" });
    }));
});

describe("checkpoints", () => {
  const pair = generateKeyPairSync("ed25519");
  const publicKeys = [pair.publicKey];
  const signed = (entry: ChainedEntry, key = pair.privateKey) =>
    signCheckpoint({ tenant: entry.tenant, seq: entry.seq, hash: entry.hash, at: "2026-11-21T09:31:00.000Z" }, key);

  test("agree with the trail they were made of", async () => {
    const entries = await trail([{}, {}, {}]);
    const [chain] = await verifyChain(entries, {
      checkpoints: [entries[0]!, entries[2]!].map((e) => signed(e)),
      publicKeys,
    });
    expect(chain).toMatchObject({ checkpoints: 2, bad: null });
  });

  test("see a cut tail, of one entry or of all", () =>
    fc.assert(
      fc.asyncProperty(trails, fc.nat(), async (made, one) => {
        const entries = await trail(made);
        const left = one % entries.length;
        const cut = entries.slice(0, left);
        expect(await badOf(cut)).toBeNull();
        expect(await badOf(cut, { checkpoints: [signed(entries.at(-1)!)], publicKeys })).toMatchObject({
          tenant: "acme",
          seq: left + 1,
          problem: "cut",
        });
      }),
      { numRuns: 40 },
    ));

  test("see a trail that was hashed anew, which by itself looks good", async () => {
    const entries = await trail([{}, {}, {}, {}]);
    const edited = rehashed(entries.with(1, { ...entries[1]!, actor: "somebody else" }), 2);
    expect(await badOf(edited)).toBeNull();
    const checkpoints = [entries[0]!, entries[2]!].map((entry) => signed(entry));
    expect(await badOf(edited, { checkpoints, publicKeys })).toMatchObject({ seq: 3, problem: "rewritten" });
  });

  test("settle an edit of the last entry", async () => {
    const entries = await trail([{}, {}]);
    const edited = entries.with(1, { ...entries[1]!, actor: "somebody else" });
    expect(await badOf(edited, { checkpoints: [signed(entries[1]!)] })).toMatchObject({ seq: 2, problem: "edited" });
  });

  test("forged ones are refused: another key, a changed field, no signature", async () => {
    const entries = await trail([{}, {}, {}]);
    const real = signed(entries[1]!);
    const other = generateKeyPairSync("ed25519").privateKey;
    const forgeries = [
      signed(entries[1]!, other),
      { ...signed(entries[1]!, other), key_id: real.key_id },
      { ...real, at: "2026-11-21T09:32:00.000Z" },
      { ...real, signature: "" },
      { ...real, signature: Buffer.alloc(64).toString("base64") },
    ];
    for (const forged of forgeries) {
      expect(isSigned(forged, publicKeys)).toBe(false);
      expect(await badOf(entries, { checkpoints: [forged], publicKeys })).toMatchObject({ seq: 2, problem: "forged" });
    }
    expect(await badOf(entries, { checkpoints: [{ ...real, hash: entries[0]!.hash }], publicKeys })).toMatchObject({
      problem: "forged",
    });
    expect(isSigned(real, [publicKeyOf(other), pair.publicKey])).toBe(true);
  });

  test("keys are read as PEM, base64 of PEM, base64 of DER; nothing else, and an error repeats nothing of it", () => {
    const { privateKey, publicKey, keyId: id } = newSigningKey();
    const key = readSigningKey(privateKey);
    const pem = key.export({ type: "pkcs8", format: "pem" }).toString();
    for (const text of [pem, Buffer.from(pem).toString("base64"), `${privateKey}\n`])
      expect(keyId(readSigningKey(text))).toBe(id);
    for (const text of [publicKey, Buffer.from(publicKey).toString("base64")])
      expect(keyId(readPublicKey(text))).toBe(id);
    const rsa = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey.export({ type: "pkcs8", format: "pem" });
    for (const wrong of ["", "hunter2hunter2", publicKey, rsa.toString()]) {
      expect(() => readSigningKey(wrong)).toThrow(/^must be an ed25519 private key: [^\n]{1,60}$/);
    }
    expect(() => readPublicKey("hunter2")).toThrow("must be an ed25519 public key");
  });
});

test("many tenants' trails in one stream are verified each for itself, and told sorted", async () => {
  const [a, b] = [await trail([{}, {}, {}], "a"), await trail([{}, {}, {}], "b")];
  async function* mixed() {
    for (let index = 2; index >= 0; index--) yield* [b[2 - index]!, a[2 - index]!];
  }
  expect((await verifyChain(mixed())).map(({ tenant, bad }) => [tenant, bad])).toEqual([
    ["a", null],
    ["b", null],
  ]);
  // An entry of one is nothing to the other.
  const [first, second] = await verifyChain([...a, b[0]!, { ...a[1]!, tenant: "b" }]);
  expect(first!.bad).toBeNull();
  expect(second!.bad).toMatchObject({ seq: 2, tenant: "b" });
});

test("a trail that another source knows to be longer is not whole", async () => {
  const entries = await trail([{}, {}]);
  expect(await badOf(entries, { lastSeqs: new Map([["acme", 2]]) })).toBeNull();
  expect(await badOf(entries, { lastSeqs: new Map([["acme", 3]]) })).toMatchObject({ seq: 3, problem: "missing" });
});
