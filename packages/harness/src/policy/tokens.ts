/** Finding API keys, tokens and private keys that can be told from other text by how they begin or what stands before them. */
import { secretShapes } from "@drover/telemetry";
import { type Finder, mergeSpans, type Span, spansOf } from "./screen.ts";

const { tokens, bearer, urlPassword } = secretShapes("certain");
/** Several without anything between them are one, lest a second redaction find the second. */
const shaped = new RegExp(`(?<![A-Za-z0-9_-])(?:${tokens}){1,10000}`, "g");

const basic = /(authorization["']?[ \t]{0,2}[:=][ \t]{0,2}["']?basic[ \t]{1,4})[A-Za-z0-9+/]{4,65536}={0,2}/gi;
const awsSecret = /(secret_?(?:access_?)?key["']?[ \t]{0,2}[:=][ \t]{0,2}["']?)[A-Za-z0-9+/]{40,65536}/gi;
const hasDigit = (text: string) => /[0-9]/.test(text);

/** The finders of tokens and keys, each leaving `mark`. */
export function tokenFinders(mark: string): Finder[] {
  return [
    { one: "private key", many: "private keys", mark, find: findPrivateKeys },
    { one: "password in a URL", many: "passwords in URLs", mark, find: findUrlPasswords },
    { one: "API key or token", many: "API keys or tokens", mark, find: findTokens },
  ];
}

function findUrlPasswords(text: string): Span[] {
  return text.includes("://") ? spansOf(urlPassword, text) : [];
}

function findTokens(text: string): Span[] {
  if (text.length < 16 || !/[A-Za-z]/.test(text)) return [];
  return mergeSpans([
    ...spansOf(shaped, text),
    ...spansOf(bearer, text, hasDigit),
    ...spansOf(basic, text),
    ...spansOf(awsSecret, text),
  ]);
}

const keyBegins = /-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----/g;
const keyEnds = /-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----/g;
/** What follows a beginning without an end (text that was cut): lines of base64, also with `\n` written out. */
const cutBody = /(?:(?:\s|\\[nr]){0,8}[A-Za-z0-9+/=]{16,4096}){0,500}/y;

/** PEM (RFC 7468) and PGP. Every search goes on from where the last one ended, so many beginnings without an end cost nothing. */
function findPrivateKeys(text: string): Span[] {
  const spans: Span[] = [];
  if (!text.includes("PRIVATE KEY")) return spans;
  keyBegins.lastIndex = 0;
  let ended = true;
  for (let begin = keyBegins.exec(text); begin !== null; begin = keyBegins.exec(text)) {
    const body = begin.index + begin[0].length;
    keyEnds.lastIndex = body;
    const end: RegExpExecArray | null = ended ? keyEnds.exec(text) : null;
    ended = end !== null;
    cutBody.lastIndex = body;
    const close = end !== null ? end.index + end[0].length : body + (cutBody.exec(text)?.[0].length ?? 0);
    spans.push([begin.index, close]);
    keyBegins.lastIndex = close;
  }
  return spans;
}
