/**
 * Finders of personal data in text. Each takes what cannot well be anything else, by checksum, validity or grouping, and leaves
 * bare numbers alone. A match is refused only for a neighbouring letter, digit, dash or dot, which no other finder takes away alone:
 * so redacting twice changes nothing.
 */
import { isIPv4, isIPv6 } from "node:net";
import { ibanLength, isCard, isIban, isSsn } from "./checksums.ts";
import { type Finder, mergeSpans, type Span, spansOf } from "./screen.ts";
import { tokenFinders } from "./tokens.ts";

export const personalKinds = ["api_key", "email", "iban", "card", "ssn", "ip", "phone"] as const;
type PersonalKind = (typeof personalKinds)[number];

/** In the order in which they are asked: a later one never sees what an earlier one found. */
export const personalData: Record<PersonalKind, Finder[]> = {
  api_key: tokenFinders("[api_key]"),
  email: [{ one: "e-mail address", many: "e-mail addresses", mark: "[email]", find: findEmails }],
  iban: [{ one: "IBAN", many: "IBANs", mark: "[iban]", find: findIbans }],
  card: [{ one: "card number", many: "card numbers", mark: "[card]", find: findCards }],
  ssn: [{ one: "social security number", many: "social security numbers", mark: "[ssn]", find: findSsns }],
  ip: [{ one: "IP address", many: "IP addresses", mark: "[ip]", find: findAddresses }],
  phone: [{ one: "phone number", many: "phone numbers", mark: "[phone]", find: findPhones }],
};

/**
 * A local part is tried only from its first character, so a long run without `@` is read once. Several without anything between them
 * are one. `git@host` is an account of a machine, `logo@2x.png` a file.
 */
const email =
  /(?<![\p{L}\p{N}._%+-])(?!git@)(?:[\p{L}\p{N}._%+-]+@(?:[\p{L}\p{N}][\p{L}\p{N}-]{0,62}\.){1,20}(?!(?:png|jpe?g|gif|svg|webp|avif)(?![\p{L}\p{N}]))(?:xn--[a-z0-9-]{2,59}|\p{L}{2,63}))+/giu;

function findEmails(text: string): Span[] {
  return text.includes("@") ? spansOf(email, text) : [];
}

const ibanBegins = /(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}/g;
/** For each country, as many characters as come behind the first four, at most one separator before each. */
const ibanEnds = new Map(
  [...ibanLength].map(([country, length]) => [
    country,
    new RegExp(`(?:[ \\u00a0\\u202f-]?[A-Za-z0-9]){${length - 4}}(?![A-Za-z0-9])`, "y"),
  ]),
);

function findIbans(text: string): Span[] {
  const spans: Span[] = [];
  if (text.length < 15) return spans;
  ibanBegins.lastIndex = 0;
  for (let begin = ibanBegins.exec(text); begin !== null; begin = ibanBegins.exec(text)) {
    const rest = ibanEnds.get(begin[0].slice(0, 2).toUpperCase());
    if (rest === undefined) continue;
    rest.lastIndex = ibanBegins.lastIndex;
    const end = rest.exec(text)?.[0];
    if (end === undefined || !isIban((begin[0] + end).replace(/[^A-Za-z0-9]/g, "").toUpperCase())) continue;
    ibanBegins.lastIndex += end.length;
    spans.push([begin.index, ibanBegins.lastIndex]);
  }
  return spans;
}

/**
 * Groups of digits with one separator between them. A card is one group, groups of one size (the last may be shorter), or 4-6-4 and
 * 4-6-5, so that an expiry date behind the number does not hide it. The longest that fits from each group on is taken.
 */
function findCards(text: string): Span[] {
  const spans: Span[] = [];
  if (text.length < 13) return spans;
  const groups = spansOf(/[0-9]+/g, text);
  for (let first = 0; first < groups.length; first++) {
    const [start] = groups[first]!;
    if ("017".includes(text[start]!) || /[A-Za-z.]/.test(text[start - 1] ?? "")) continue;
    let last = -1;
    let digits = "";
    const sizes: number[] = [];
    for (let next = first; next < groups.length; next++) {
      const [from, to] = groups[next]!;
      const adjoining =
        next === first || (from === groups[next - 1]![1] + 1 && " \u00a0\u202f-".includes(text[from - 1]!));
      if (!adjoining || digits.length + to - from > 19) break;
      digits += text.slice(from, to);
      sizes.push(to - from);
      if (digits.length >= 13 && isGrouped(sizes) && isCard(digits) && !/[A-Za-z]/.test(text[to] ?? "")) last = next;
    }
    if (last < 0) continue;
    spans.push([start, groups[last]![1]]);
    first = last;
  }
  return spans;
}

function isGrouped(sizes: number[]): boolean {
  if (sizes.length === 3 && sizes[0] === 4 && sizes[1] === 6) return sizes[2] === 4 || sizes[2] === 5;
  return sizes.every((size, at) => size === sizes[0] || (at === sizes.length - 1 && size < sizes[0]!));
}

/** Too short, or nothing but digits: no number that is known by its separators. */
const isPlain = (text: string) => text.length < 7 || /^[0-9]*$/.test(text);

const ssn = /(?<![A-Za-z0-9-])[0-9]{3}(?:-[0-9]{2}-| [0-9]{2} )[0-9]{4}(?![A-Za-z0-9-])/g;
/** Nine bare digits only behind their name. */
const namedSsn =
  /(\b(?:ssn|social security(?: number| no\.?)?)["']?[ \t]{0,2}(?:is\b|[:=#])?[ \t"']{0,3})[0-9]{9}(?![A-Za-z0-9])/gi;

function findSsns(text: string): Span[] {
  if (isPlain(text)) return [];
  return mergeSpans([
    ...spansOf(ssn, text, (found) => isSsn(found.replace(/[ -]/g, ""))),
    ...spansOf(namedSsn, text, isSsn),
  ]);
}

const ipv4 = /(?<![A-Za-z0-9._-]|[Vv]ersion )[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![A-Za-z0-9_-]|\.[0-9])/g;
/** The whole run of what may stand in an address; what part of it is one is looked at afterwards. */
const ipv6 = /(?<![A-Za-z0-9_:.\]-])[0-9A-Fa-f:.]{2,60}(?:%[A-Za-z0-9]{1,16})?/g;

function findAddresses(text: string): Span[] {
  return mergeSpans([
    ...(text.includes(".") ? spansOf(ipv4, text, isIPv4) : []),
    ...(text.includes(":") ? findIPv6(text) : []),
  ]);
}

/**
 * `::` and `abc::def` are valid too, but in a program they are something else: a digit is asked for. A colon or full stop behind is
 * punctuation, unless a mark follows: that was part of the run.
 */
function findIPv6(text: string): Span[] {
  return spansOf(ipv6, text).flatMap(([start, end]): Span[] => {
    const address = text.slice(start, end).replace(/(?<!:)[:.]$/, "");
    const behind = text.slice(start + address.length, start + address.length + 2);
    const valid = /[0-9]/.test(address) && isIPv6(address) && !/^[A-Za-z0-9_]|^[:.]?\[/.test(behind);
    return valid ? [[start, start + address.length]] : [];
  });
}

/** E.164: a plus and at most 15 digits; North American ones by their grouping, so that a number behind them stays. */
const international =
  /\+(?:1[ .-]?(?:\([2-9][0-9]{2}\)|[2-9][0-9]{2})[ .-]?[0-9]{3}[ .-]?[0-9]{4}|[1-9](?:[ ()./-]{0,2}[0-9]){7,14})(?![A-Za-z0-9])/g;
const exitCode = /(?<![A-Za-z0-9.-])00[1-9][0-9]{0,2}(?:[ ./-][0-9]{2,9}){2,5}(?![A-Za-z0-9])/g;
/** 3-3-4, the area code from 200 on. */
const northAmerican =
  /(?:(?<![A-Za-z0-9.-])(?:1[ .-])?[2-9][0-9]{2}[ .-]|\([2-9][0-9]{2}\)[ .-]?)[0-9]{3}[ .-][0-9]{4}(?![A-Za-z0-9])/g;
/** 2-2-2-2-2 with one separator, as in France. */
const pairs = /(?<![A-Za-z0-9.-])0[1-9](?:(?: [0-9]{2}){4}|(?:\.[0-9]{2}){4}|(?:-[0-9]{2}){4})(?![A-Za-z0-9])/g;
/** A trunk zero, an area code, and one or two groups: 030 1234567, 0171/1234567, 020 7946 0958, (02) 9876 5432, 03-1234-5678. */
const trunk =
  /(?:(?<![A-Za-z0-9.-])0[1-9][0-9]{1,4}[ /-](?:[0-9]{3,4}[ -][0-9]{3,4}|[0-9]{5,8})|(?<![A-Za-z0-9.-])0[1-9][ -][0-9]{4}[ -][0-9]{4}|\(0[1-9][0-9]{0,3}\) ?[0-9]{3,4}(?:[ -]?[0-9]{3,4}){1,2})(?![A-Za-z0-9])/g;
/** Bare digits only behind a word for it. */
const named =
  /(\b(?:telephone|phone|tel|mobile|fax|whatsapp)(?:[ _-]?(?:number|no|nr))?\.?["']?[ \t]{0,2}(?:is\b|[:=#])?[ \t"']{0,3})[0-9]{7,15}(?![A-Za-z0-9])/gi;

function findPhones(text: string): Span[] {
  if (isPlain(text)) return [];
  const digits = (least: number, most: number) => (found: string) => {
    const number = found.replace(/[^0-9]/g, "").length;
    return number >= least && number <= most;
  };
  return mergeSpans([
    ...spansOf(international, text),
    ...spansOf(exitCode, text, digits(11, 17)),
    ...spansOf(northAmerican, text),
    ...spansOf(pairs, text),
    ...spansOf(trunk, text, digits(9, 12)),
    ...spansOf(named, text),
  ]);
}
