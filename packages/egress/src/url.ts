/** What can be said about a URL before any look-up: its syntax, its scheme, and addresses written in it. */
import { isIP } from "node:net";
import { type Cidr, permitted, toCidr } from "./addresses.ts";
import { EgressRefused } from "./errors.ts";

/**
 * Checks a URL as a client submits it. Returns what is wrong with it, fit for the client to read, or null. Null does not
 * mean that it will be reached: the addresses behind a name are checked at every connection.
 * @param allow CIDRs that may be reached although not public, as in `EgressOptions`.
 */
export function validateUrl(url: string, allow: readonly string[] = []): string | null {
  const checked = checkUrl(url, allow.map(toCidr));
  return typeof checked === "string" ? checked : null;
}

/** The URL, when a request may be tried. @throws EgressRefused */
export function requireUrl(url: string, allow: readonly Cidr[]): URL {
  const checked = checkUrl(url, allow);
  if (typeof checked !== "string") return checked;
  const host = URL.canParse(url) ? new URL(url).host : "";
  throw new EgressRefused(`${host || "the URL"} is refused: ${checked}`);
}

function checkUrl(text: string, allow: readonly Cidr[]): URL | string {
  // What `URL` mends in silence is a slip more often than it is meant.
  if (hasBlank(text)) return "must not contain blanks or control characters";
  if (!URL.canParse(text)) return "must be an absolute URL";
  const url = new URL(text);
  if (url.protocol !== "http:" && url.protocol !== "https:") return "must be an http or https URL";
  if (!/^https?:\/\/[^/\\?#]/i.test(text)) return "must name a host, as in https://example.com/path";
  if (url.hostname === "unix" || url.port === "0") return "must name a host and a port that can be reached";
  if (url.username !== "" || url.password !== "") return "must not contain a user name or a password";
  const host = bareHost(url.hostname);
  const isLocalName = /(^|\.)localhost\.?$/.test(host);
  const literals = isIP(host) ? [host] : isLocalName ? ["127.0.0.1", "::1"] : [];
  if (literals.length > 0 && !literals.some((address) => permitted(address, allow))) {
    return "must not point to a private or reserved address";
  }
  return url;
}

function hasBlank(text: string): boolean {
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code <= 0x20 || code === 0x7f || code === 0xa0) return true;
  }
  return !text.isWellFormed();
}

/** `[::1]` -> `::1`; every other spelling of an IP address was already made plain by `URL`. */
function bareHost(hostname: string): string {
  return hostname.startsWith("[") ? hostname.slice(1, -1) : hostname;
}
