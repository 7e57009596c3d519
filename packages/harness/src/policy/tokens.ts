/**
 * The shapes of API keys, tokens and private keys that can be told from other text by how they begin or what stands before them.
 * Prefixes and lengths as published by their makers and collected by gitleaks (github.com/gitleaks/gitleaks, config/gitleaks.toml).
 */
import { type Finder, mergeSpans, type Span, spansOf } from "./screen.ts";

/**
 * Each is a fixed beginning and one run of characters, so matching one never goes back. Runs are bounded because V8 runs out of stack
 * for millions.
 */
const shapes = [
  "(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}", // AWS access key id
  "gh[pousr]_[A-Za-z0-9]{36,255}", // GitHub
  "github_pat_[A-Za-z0-9_]{22,255}",
  "gl(?:pat|ptt|dt|rt|cbt)-[A-Za-z0-9_.-]{20,65536}", // GitLab
  "xox[abeoprs]-[A-Za-z0-9-]{10,65536}", // Slack
  "xapp-[0-9]-[A-Za-z0-9-]{10,65536}",
  "(?:sk|rk)_(?:test|live|prod)_[A-Za-z0-9]{10,65536}", // Stripe
  "AIza[A-Za-z0-9_-]{35}", // Google
  "ya29\\.[A-Za-z0-9_-]{20,65536}",
  "GOCSPX-[A-Za-z0-9_-]{28}",
  // OpenAI, Anthropic and their like. Without a digit it is a word: `sk-fading-circle-animation`.
  "sk-(?=[A-Za-z_-]{0,60}[0-9])[A-Za-z0-9_-]{20,65536}",
  "drv_[A-Za-z0-9_-]{16,65536}", // Drover
  "whsec_[A-Za-z0-9+/]{16,65536}={0,2}", // Standard Webhooks
  "npm_[A-Za-z0-9]{36}",
  "hf_[A-Za-z]{34}", // Hugging Face
  "SG\\.[A-Za-z0-9_-]{16,65536}\\.[A-Za-z0-9_-]{16,65536}", // SendGrid
  "dop_v1_[a-f0-9]{64}", // DigitalOcean
  "pypi-[A-Za-z0-9_-]{50,65536}",
  "shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}", // Shopify
  "eyJ[A-Za-z0-9_-]{8,65536}\\.[A-Za-z0-9_-]{4,65536}\\.[A-Za-z0-9_-]{0,65536}(?:\\.[A-Za-z0-9_-]{1,65536}){0,2}", // JWT (RFC 7519), signed or encrypted
];
/** Several without anything between them are one, lest a second redaction find the second. */
const shaped = new RegExp(`(?<![A-Za-z0-9_-])(?:${shapes.join("|")}){1,10000}`, "g");

/** RFC 6750; without a digit it is prose: "the bearer authentication/authorization scheme". */
const bearer = /(bearer[ \t]{1,4})[A-Za-z0-9._~+/-]{16,65536}={0,2}/gi;
const basic = /(authorization["']?[ \t]{0,2}[:=][ \t]{0,2}["']?basic[ \t]{1,4})[A-Za-z0-9+/]{4,65536}={0,2}/gi;
const awsSecret = /(secret_?(?:access_?)?key["']?[ \t]{0,2}[:=][ \t]{0,2}["']?)[A-Za-z0-9+/]{40,65536}/gi;
/** RFC 3986 userinfo. Brackets cannot stand in it, so a mark is not found again. */
const urlPassword = /(:\/\/[^\s/?#:@"'<>[\]]{0,256}:)[^\s/?#@"'<>[\]]{1,256}(?=@)/g;

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
