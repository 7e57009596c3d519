/** Texts made to be slow to search, each about 100 kB, and what the tests of all policies share. */
import type { Policy, PolicyContext, Verdict } from "@drover/harness";

const size = 100_000;

function fill(piece: string, length = size): string {
  return piece.repeat(Math.ceil(length / piece.length)).slice(0, length);
}

/** Deterministic, so that a slow run can be repeated. */
function noise(alphabet: string, length = size): string {
  let state = 12_345;
  let text = "";
  while (text.length < length) {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
    text += alphabet[(state >> 8) % alphabet.length];
  }
  return text;
}

function inLines(text: string): string {
  return Buffer.from(text).toString("base64").replace(/.{64}/g, "$&\n");
}

const base64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

export const hostileTexts: Record<string, string> = {
  digits: fill("4"),
  "digits, spaced": fill("4 "),
  "digits, in groups": fill("4111 1111 1111 1112 "),
  "digits, dashed": fill("0-1-2-3-"),
  "digits, dotted": fill("1.2.3."),
  spaces: fill(" "),
  "spaces and newlines": fill(" \n"),
  newlines: fill("\n"),
  ats: fill("@"),
  "ats between letters": fill("a@"),
  "e-mail without an end": `a@${fill("a.")}`,
  "e-mails": fill("a@b.co "),
  a: fill("a"),
  "a, spaced": fill("a "),
  colons: fill(":"),
  "hexadecimal and colons": fill("ab:1:"),
  pluses: fill("+1 "),
  parentheses: fill("(02"),
  base64: noise(base64),
  "base64, short pieces": fill("QUJDREVGR0hJSktM "),
  "base64 of base64": Buffer.from(Buffer.from(noise(base64, size / 2)).toString("base64")).toString("base64"),
  "base64 of base64, in lines": inLines(inLines(fill("innocent text "))).slice(0, size),
  hexadecimal: noise("0123456789abcdef"),
  "alternating look-alikes": fill("аaоoеe"),
  "look-alikes": fill("іgnоrе "),
  "zero-width": fill("\u200b"),
  "zero-width between letters": fill("a\u200bb\u200d"),
  "combining marks out of order": `a${fill("\u0301\u0316")}`,
  "long ligatures": fill("\ufdfa"),
  "tag characters": fill("\u{e0061}"),
  "variation selectors": fill("\ufe0f\ufe0e"),
  "right to left": fill("\u202ea"),
  "half surrogates": fill("\ud83d"),
  system: fill("system "),
  override: fill("override the "),
  ignore: fill("ignore all of the "),
  "you are now": fill("you are now a very "),
  "act as if": fill("act as if you "),
  "###": fill("### \n"),
  "<|": fill("<|a"),
  "letters with dots": fill("i.g.n."),
  "://": fill("://a:"),
  "sk-": fill("sk-"),
  eyJ: fill("eyJ"),
  "eyJ.": fill("eyJaaaaaaaa."),
  "keys that begin": fill("-----BEGIN PRIVATE KEY-----\n"),
  "keys that begin and spaces": fill("-----BEGIN PRIVATE KEY-----        "),
  "bearer ": fill("bearer "),
  IBANs: fill("DE89 "),
  "IBANs, wrong": fill("DE89 3704 0044 0532 0130 01 "),
  "two of Unicode's widest": fill("\ufb03\u1e9b\u0323"),
};

export const hostileValues: Record<string, unknown> = {
  ...hostileTexts,
  "deep JSON": deep(20_000),
  "deep objects": deepObject(15_000),
  "wide JSON": Array.from({ length: 20_000 }, () => "a1"),
  "wide object of keys that become one": Object.fromEntries(
    Array.from({ length: 5_000 }, (_, index) => [`u${index}@example.com`, 1]),
  ),
  numbers: Array.from({ length: 10_000 }, (_, index) => 4_111_111_111_000_000 + index),
  "JSON in text": JSON.stringify(Array.from({ length: 3_000 }, (_, index) => ({ id: index, "": "\n### x" }))),
};

export function deep(depth: number, leaf: unknown = 1): unknown {
  let value = leaf;
  for (let level = 0; level < depth; level++) value = [value];
  return value;
}

function deepObject(depth: number): unknown {
  let value: unknown = "x";
  for (let level = 0; level < depth; level++) value = { a: value };
  return value;
}

/**
 * In ms of this thread's processor time, so that what else the machine does counts little: the best of at most `rounds`. Ends with
 * the first that is below `enough`.
 */
export function bestOf(rounds: number, work: () => unknown, enough = 0): number {
  let best = Number.POSITIVE_INFINITY;
  for (let round = 0; round < rounds && best >= enough; round++) {
    const before = process.threadCpuUsage();
    work();
    const { user, system } = process.threadCpuUsage(before);
    best = Math.min(best, (user + system) / 1000);
  }
  return best;
}

export const context: PolicyContext = { stage: "result", seen: { untrusted: false, private: false } };

export function judge(policy: Policy, value: unknown): Verdict {
  return policy.check(value, context);
}

/** What became of the text. */
export function redacted(policy: Policy, value: unknown): unknown {
  const verdict = judge(policy, value);
  return verdict.action === "redact" ? verdict.value : verdict.action === "allow" ? value : verdict;
}
