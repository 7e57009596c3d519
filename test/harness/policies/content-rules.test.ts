/** Rules of an installation's own: what they match, where, what they leave, and which ones are refused. */
import { applyPolicies, type PolicyContext } from "@drover/harness";
import { describe, expect, it } from "vitest";
import { type ContentRule, contentRules } from "../../../packages/harness/src/policy/index.ts";
import { context, judge, redacted } from "./hostile.ts";

const rule = (more: Partial<ContentRule>): ContentRule => ({ name: "r", pattern: "x", action: "flag", ...more });
const one = (more: Partial<ContentRule>) => contentRules([rule(more)])[0]!;

describe("refuses", () => {
  it.each<[string, Partial<ContentRule>[], string]>([
    ["an open parenthesis", [{ pattern: "(a" }], 'rule "r": pattern does not compile: missing closing ): `(a`'],
    [
      "a look-ahead",
      [{ pattern: "a(?=b)" }],
      'rule "r": pattern does not compile: invalid or unsupported Perl syntax: `(?=`',
    ],
    ["a back reference", [{ pattern: "(a)\\1" }], "RE2 syntax has no look-around and no back references"],
    [
      "a pattern that is too large",
      [{ pattern: "(a{1,100}b){1,9}" }],
      "steps, at most 250; make its repetitions shorter",
    ],
    ["a pattern for nothing", [{ pattern: "a*" }], 'rule "r": pattern matches the empty text'],
    ["no pattern", [{ pattern: "" }], "0.pattern: must not be empty"],
    ["a replacement that it finds", [{ pattern: "r", action: "redact" }], 'rule "r": pattern matches what replaces it'],
    ["a flag that there is not", [{ flags: "g" }], "0.flags: must be of i"],
    ["no action", [{ action: undefined as never }], "0.action"],
    ["a wrong name", [{ name: "My rule" }], "0.name: must be lower-case"],
    ["the same name twice", [{}, {}], 'rule "r": another rule has that name'],
    ["no tools", [{ tools: [] }], "0.tools: must name at least one tool"],
    ["an unknown field", [{ tool: "x" } as never], "tool"],
  ])("%s", (_, rules, problem) => {
    expect(() => contentRules(rules.map(rule))).toThrow(problem);
  });

  it("all that is wrong at once", () => {
    const make = () => contentRules([rule({ name: "a", pattern: "(" }), rule({ name: "b", pattern: "x*" })]);
    expect(make).toThrow(/rule "a".*\n.*rule "b"/);
  });
});

describe("matches", () => {
  it.each<[string, Partial<ContentRule>, unknown, boolean]>([
    ["another case without i", { pattern: "secret" }, "SECRET", false],
    ["another case with i", { pattern: "secret", flags: "i" }, "SECRET", true],
    ["^ inside a text without m", { pattern: "^b" }, "a\nb", false],
    ["^ inside a text with m", { pattern: "^b", flags: "m" }, "a\nb", true],
    ["a newline without s", { pattern: "a.b" }, "a\nb", false],
    ["a newline with s", { pattern: "a.b", flags: "s" }, "a\nb", true],
    ["several flags", { pattern: "^A.b", flags: "ims" }, "x\na\nb", true],
    ["JavaScript's way of writing", { pattern: "(?<n>\\u0061)\\/" }, "a/", true],
    ["letters beyond ASCII", { pattern: "\\p{L}{5}" }, "größe", true],
    ["a key", { pattern: "^pass$" }, [{ pass: 1 }], true],
    ["a number", { pattern: "^12345$" }, [[12345]], true],
    ["over two texts", { pattern: "a.*b", flags: "s" }, ["a", "b"], false],
  ])("%s", (_, more, value, matches) => {
    expect(judge(one(more), value).action).toBe(matches ? "flag" : "allow");
  });
});

it("redacts to its name, or to what it was given, as it stands", () => {
  const value = { a: "acme-12 and acme-345", "acme-6": 1 };
  expect(redacted(one({ pattern: "acme-[0-9]+", action: "redact" }), value)).toEqual({ a: "[r] and [r]", "[r]": 1 });
  const replacement = "$1 \\1 $&";
  expect(redacted(one({ pattern: "(acme)-[0-9]+", action: "redact", replacement }), "acme-1!")).toBe(`${replacement}!`);
  expect(redacted(one({ pattern: "acme-[0-9]+", action: "redact", replacement: "" }), "<acme-1>")).toBe("<>");
});

it("says how many, and never what", () => {
  expect(judge(one({ pattern: "b+", action: "redact" }), ["abbab", "b"])).toMatchObject({ reason: "3 matches" });
  expect(judge(one({ pattern: "b+" }), ["abbab", "b"])).toEqual({ action: "flag", reason: "2 texts that match" });
  expect(judge(one({ pattern: "b+", action: "block" }), "b")).toEqual({
    action: "block",
    reason: "1 text that matches",
  });
});

describe("is asked", () => {
  const tool = (name: string): PolicyContext["tool"] => ({
    name,
    permission: "read",
    external: false,
    untrusted: false,
    private: false,
  });
  const at = (more: Partial<ContentRule>, place: Partial<PolicyContext>) =>
    applyPolicies(contentRules([rule(more)]), "x", { ...context, ...place }).action;

  it.each<[Partial<ContentRule>, Partial<PolicyContext>, string]>([
    [{}, { stage: "input" }, "flag"],
    [{}, { stage: "arguments", tool: tool("mail") }, "flag"],
    [{}, { stage: "output" }, "flag"],
    [{ stages: ["output"] }, { stage: "input" }, "allow"],
    [{ stages: ["output"] }, { stage: "output" }, "flag"],
    [{ tools: ["mail"] }, { stage: "arguments", tool: tool("mail") }, "flag"],
    [{ tools: ["mail"] }, { stage: "result", tool: tool("mail") }, "flag"],
    [{ tools: ["mail"] }, { stage: "arguments", tool: tool("files") }, "allow"],
    [{ tools: ["mail"] }, { stage: "input" }, "allow"],
    [{ tools: ["mail"], stages: ["input"] }, { stage: "input" }, "allow"],
    [{ tools: ["mail"], stages: ["result"] }, { stage: "arguments", tool: tool("mail") }, "allow"],
  ])("%j at %j: %s", (more, place, action) => {
    expect(at(more, place)).toBe(action);
  });
});

it("lets the redaction of one rule stand when another asks", () => {
  const rules = contentRules([
    { name: "hide", pattern: "acme", action: "redact" },
    { name: "ask", pattern: "wire", action: "ask" },
  ]);
  expect(applyPolicies(rules, "wire it to acme", context)).toEqual({
    action: "ask",
    value: "wire it to [hide]",
    findings: [
      { policy: "hide", action: "redact", reason: "1 match" },
      { policy: "ask", action: "ask", reason: "1 text that matches" },
    ],
  });
});
