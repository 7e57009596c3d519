/** What holds for every built-in policy: any JSON gets a verdict, quickly; a redaction keeps the shape, and a second one changes nothing. */
import { ConfigError, type Policy, policyStages } from "@drover/harness";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { contentRules, pii, promptInjection, ruleOfTwo, secrets } from "../../../packages/harness/src/policy/index.ts";
import { bestOf, context, deep, hostileTexts, hostileValues, judge, redacted } from "./hostile.ts";

const known = ["hunter2hunter2", "Tr0ub4dor&3/x y", "aaaaaaaab", "97531864"];
const policies: Policy[] = [
  promptInjection(),
  pii(),
  secrets({ known }),
  secrets({
    name: "many-secrets",
    known: Array.from({ length: 2_000 }, (_, index) => `sk-known-${"a".repeat(20)}-${index}`),
  }),
  ...contentRules([
    { name: "codename", pattern: "project[ -]?(alpha|beta)", flags: "i", action: "redact" },
    { name: "six", pattern: "[0-9]{6,8}x", action: "redact" },
    { name: "greedy", pattern: "(a+)+$", action: "flag" },
  ]),
  ruleOfTwo(),
];

/** Pieces that together make personal data, secrets, and what is nearly one. */
const piece = fc.oneof(
  fc.constantFrom(
    ..."4111111111111111|4111 1111 1111 1111|5500-0000-0000-0004|DE89370400440532013000|DE89 3704 0044 0532 0130 00".split(
      "|",
    ),
    ..."123-45-6789|123 45 6789|SSN 123456789|+1 415 555 2671|(415) 555-2671|415-555-2671|+49 30 123456|0049 30 123456".split(
      "|",
    ),
    ..."06 12 34 56 78|030 12345678|phone: 4155552671|192.168.0.1|2001:db8::1|::ffff:10.0.0.1|fe80::1%eth0".split("|"),
    ..."a@b.com|john.doe+x@mail.example.org|git@github.com|https://u:pw@host.org|sk-abcdefghijklmnopqrstuv1".split("|"),
    ..."AKIAIOSFODNN7EXAMPLE|Bearer abcdefghijklmnop1|eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc|drv_abcdefghijklmnopqrstu".split(
      "|",
    ),
    "-----BEGIN PRIVATE KEY-----",
    "-----END PRIVATE KEY-----",
    "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
    ...["[email]", "[phone]", "[secret]", "[api_key]", "ssn", "phone", "Project Alpha", "1234567x", ...known],
    ...known.map((secret) => Buffer.from(`user:${secret}`).toString("base64")),
  ),
  fc.constantFrom(..." -._:,;/@+()[]\"'\n=0149aAxZé".split("")),
);
const text = fc.oneof(
  fc.array(piece, { maxLength: 9 }).map((pieces) => pieces.join("")),
  fc.string({ unit: "binary", maxLength: 12 }),
);
const { json } = fc.letrec<{ json: unknown }>((tie) => ({
  json: fc.oneof(
    { depthSize: "small" },
    text,
    fc.constantFrom(null, true, false, 4111111111111111, -4111111111111111, 0.4111111111111111, 97531864),
    fc.double(),
    fc.maxSafeInteger(),
    fc.array(tie("json"), { maxLength: 4 }),
    fc.array(fc.tuple(fc.oneof(text, fc.constant("__proto__")), tie("json")), { maxLength: 5 }).map(Object.fromEntries),
  ),
}));

/** The shape of a value: how many of what inside what. Numbers and strings count as one kind: a redacted number is a string. */
function shape(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(shape);
  if (value === null || typeof value !== "object") return typeof value === "number" ? "string" : typeof value;
  // In no order: keys that are numbers come first in JavaScript.
  return [
    Object.keys(value).length,
    Object.values(value)
      .map((child) => JSON.stringify(shape(child)))
      .sort(),
  ];
}

describe.each(policies)("$name", (policy) => {
  it("gives every JSON value a verdict, leaves it alone, keeps its shape and redacts once", () => {
    fc.assert(
      fc.property(json, (value) => {
        const before = structuredClone(value);
        const verdict = judge(policy, value);
        expect(value).toStrictEqual(before);
        expect(judge(policy, value)).toStrictEqual(verdict);
        if (verdict.action !== "redact") return;
        expect(shape(verdict.value)).toStrictEqual(shape(value));
        expect(judge(policy, verdict.value)).toStrictEqual({ action: "allow" });
      }),
      { numRuns: 1_000 },
    );
  });

  it.each(Object.keys(hostileValues))("takes less than 50 ms for 100 kB of %s", (name) => {
    const value = hostileValues[name];
    expect(bestOf(5, () => judge(policy, value), 50)).toBeLessThan(50);
  });

  it("has a name for the log and stages", () => {
    expect(policy.name).toMatch(/^[a-z][a-z0-9_-]*$/);
    expect(policy.stages.length).toBeGreaterThan(0);
    expect(policyStages).toEqual(expect.arrayContaining([...policy.stages]));
  });
});

const main = policies.filter(({ name }) => ["prompt-injection", "pii", "secrets", "codename"].includes(name));

describe.each(main)("$name, beyond 100 kB", (policy) => {
  it.each(Object.keys(hostileTexts))("takes less than 250 ms for 500 kB of %s", (name) => {
    const value = hostileTexts[name]!.repeat(5);
    expect(bestOf(5, () => judge(policy, value), 250)).toBeLessThan(250);
  });

  it("throws for nothing, at any depth and any length", () => {
    const long = ["a ", "a", "4", "\u200b", "AKIAIOSFODNN7EXAMPLE"].map((piece) =>
      piece.repeat(6_000_000 / piece.length),
    );
    long.push(...["sk-1", "eyJ", "Bearer 1", "-----BEGIN PRIVATE KEY-----"].map((begin) => begin + long[1]));
    for (const value of [deep(200_000), undefined, ...long]) expect(() => judge(policy, value)).not.toThrow();
  });
});

describe("options", () => {
  it.each([
    [() => promptInjection({ action: "redact" as never }), "promptInjection(options)", "action"],
    [() => promptInjection({ stages: [] }), "promptInjection(options)", "stages: must name at least one stage"],
    [() => promptInjection({ stages: ["inputs" as never] }), "promptInjection(options)", "stages.0"],
    [() => pii({ kinds: ["e-mail" as never] }), "pii(options)", "kinds.0"],
    [() => pii({ kinds: [] }), "pii(options)", "kinds: must name at least one kind"],
    [() => pii({ knds: ["email"] } as never), "pii(options)", "knds"],
    [() => pii({ name: "Pii" }), "pii(options)", "name: must be lower-case"],
    [() => secrets({ known: [1 as never] }), "secrets(options)", "known.0"],
    [() => secrets({ envNames: "KEY" as never }), "secrets(options)", "envNames: must be a RegExp"],
    [() => ruleOfTwo({ action: "flag" as never }), "ruleOfTwo(options)", "action"],
    [() => ruleOfTwo(7 as never), "ruleOfTwo(options)", "expected object"],
  ])("%s names what is wrong", (make, call, problem) => {
    expect(make).toThrow(ConfigError);
    expect(make).toThrow(`${call} is not valid`);
    expect(make).toThrow(problem);
  });

  it("gives each policy its defaults, and takes a name and stages of its own", () => {
    const stagesOf = (policy: Policy) => [policy.name, ...policy.stages];
    expect(stagesOf(promptInjection())).toEqual(["prompt-injection", "input", "result"]);
    expect(stagesOf(pii())).toEqual(["pii", "input", "result", "output"]);
    expect(stagesOf(secrets())).toEqual(["secrets", "input", "arguments", "result", "output"]);
    expect(stagesOf(ruleOfTwo())).toEqual(["rule-of-two", "arguments"]);
    expect(stagesOf(pii({ name: "mail", stages: ["output"] }))).toEqual(["mail", "output"]);
  });
});

describe("what it goes through", () => {
  const policy = pii();

  it("redacts in values and keys at any depth, and leaves the rest as it is", () => {
    const value = { "a@b.com": [{ to: "x a@b.com y", n: 1.5, none: null, yes: true }], list: [[["4111111111111111"]]] };
    expect(redacted(policy, value)).toStrictEqual({
      "[email]": [{ to: "x [email] y", n: 1.5, none: null, yes: true }],
      list: [[["[card]"]]],
    });
    let found: unknown = redacted(policy, deep(100, "a@b.com"));
    for (let level = 0; level < 100; level++) found = (found as unknown[])[0];
    expect(found).toBe("[email]");
  });

  it("numbers keys that become the same, and passes over one that is there", () => {
    expect(redacted(policy, { "a@b.com": 1, "[email] 2": 2, "c@d.com": 3, "[email]": 4, "e@f.com": 5 })).toStrictEqual({
      "[email] 3": 1,
      "[email] 2": 2,
      "[email] 4": 3,
      "[email]": 4,
      "[email] 5": 5,
    });
  });

  it("makes a number with a card in it the mark", () => {
    expect(redacted(policy, { card: 4111111111111111, at: 1763700000000, part: 0.4111111111111111 })).toStrictEqual({
      card: "[card]",
      at: 1763700000000,
      part: 0.4111111111111111,
    });
  });

  it("keeps a key called __proto__ a key", () => {
    const answer = redacted(policy, JSON.parse('{"__proto__": {"to": "a@b.com"}}'));
    expect(JSON.stringify(answer)).toBe('{"__proto__":{"to":"[email]"}}');
    expect(Object.getPrototypeOf(answer)).toBe(Object.prototype);
  });

  it("says kinds and numbers, and never what it found", () => {
    const verdict = policy.check(["a@b.com", "c@d.com", { "4111111111111111": "10.0.0.1" }], context);
    expect(verdict).toMatchObject({ reason: "2 e-mail addresses, 1 card number, 1 IP address" });
  });
});
