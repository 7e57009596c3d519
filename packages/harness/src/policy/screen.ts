/**
 * What the finding policies share: a `Finder` says where in a text something stands; `screen` asks the finders about every text of
 * a value and makes the verdict, with a reason that names kinds and numbers and never what was found.
 */
import { mapTexts } from "./json-texts.ts";
import type { Verdict } from "./policy.ts";

/** From the first character to the one behind the last. */
export type Span = [start: number, end: number];

/**
 * `find` returns spans in order, none overlapping, and must not find anything in a mark: so that redacting ends, and twice changes
 * nothing.
 */
export interface Finder {
  /** What it finds, for the reason: one, and more than one. */
  one: string;
  many: string;
  /** What a redaction leaves in its place. */
  mark: string;
  find(text: string): Span[];
}

/** Each finder sees what the ones before it left, and all of them look again at a text that was changed: a mark may have freed its neighbour. */
export function screen(
  value: unknown,
  finders: readonly Finder[],
  action: Exclude<Verdict["action"], "allow">,
): Verdict {
  const found = finders.map(() => 0);
  const redacted = mapTexts(value, (text) => {
    let left = text;
    for (let before: string | undefined; left !== before; ) {
      before = left;
      for (const [index, finder] of finders.entries()) {
        const spans = finder.find(left);
        if (spans.length === 0) continue;
        found[index]! += spans.length;
        left = replaceSpans(left, spans, finder.mark);
      }
    }
    return left;
  });
  const parts = finders.flatMap(({ one, many }, index) => count(found[index]!, one, many));
  if (parts.length === 0) return { action: "allow" };
  const reason = parts.join(", ");
  return action === "redact" ? { action, value: redacted, reason } : { action, reason };
}

/** `["2 cards"]`, `["1 card"]`, or nothing. */
export function count(number: number, one: string, many: string): string[] {
  return number === 0 ? [] : [`${number} ${number === 1 ? one : many}`];
}

function replaceSpans(text: string, spans: readonly Span[], mark: string): string {
  let out = "";
  let end = 0;
  for (const [from, to] of spans) {
    out += text.slice(end, from) + mark;
    end = to;
  }
  return out + text.slice(end);
}

/**
 * Where `pattern` (with the flag `g`) matches and `accept` agrees. A first capture group is context that stays: the span begins
 * behind it.
 */
export function spansOf(pattern: RegExp, text: string, accept: (found: string) => boolean = () => true): Span[] {
  const spans: Span[] = [];
  pattern.lastIndex = 0;
  for (let match = pattern.exec(text); match !== null; match = pattern.exec(text)) {
    const start = match.index + (match[1]?.length ?? 0);
    const end = match.index + match[0].length;
    if (accept(text.slice(start, end))) spans.push([start, end]);
  }
  return spans;
}

/** Spans of several searches of one text, as one list in order; what overlaps or touches becomes one. */
export function mergeSpans(spans: Span[]): Span[] {
  const merged: Span[] = [];
  for (const [start, end] of spans.sort((a, b) => a[0] - b[0])) {
    const last = merged.at(-1);
    if (last !== undefined && start <= last[1]) last[1] = Math.max(last[1], end);
    else merged.push([start, end]);
  }
  return merged;
}
