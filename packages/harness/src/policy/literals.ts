/**
 * Finds many exact texts in one pass, however many there are: Aho and Corasick, "Efficient string matching" (1975), on UTF-16 code
 * units.
 */
import { mergeSpans, type Span } from "./screen.ts";

/** A search for all of `literals` at once; what overlaps or touches is one span. Time: the text's length, plus the matches. */
export function literalSearch(literals: readonly string[]): (text: string) => Span[] {
  const edges = new Map<number, number>();
  const step = (state: number, unit: number) => edges.get(state * 65536 + unit);
  /** For each state: the longest literal that ends there, 0 for none; and where to go on when no edge fits. */
  const ends = [0];
  const fallback = [0];
  /** The edges, nearest to the root first: what a state falls back to is settled before the state. */
  const byDepth: { parent: number; unit: number }[][] = [];

  for (const literal of literals) {
    let state = 0;
    for (let at = 0; at < literal.length; at++) {
      const unit = literal.charCodeAt(at);
      let next = step(state, unit);
      if (next === undefined) {
        next = ends.push(0) - 1;
        fallback.push(0);
        edges.set(state * 65536 + unit, next);
        if (byDepth.length === at) byDepth.push([]);
        byDepth[at]!.push({ parent: state, unit });
      }
      state = next;
    }
    ends[state] = Math.max(ends[state]!, literal.length);
  }

  const follow = (from: number, unit: number) => {
    let state = from;
    let next = step(state, unit);
    while (next === undefined && state !== 0) {
      state = fallback[state]!;
      next = step(state, unit);
    }
    return next ?? 0;
  };
  for (const { parent, unit } of byDepth.slice(1).flat()) {
    const state = step(parent, unit)!;
    const shorter = follow(fallback[parent]!, unit);
    fallback[state] = shorter;
    ends[state] = Math.max(ends[state]!, ends[shorter]!);
  }

  return (text) => {
    const spans: Span[] = [];
    let state = 0;
    for (let at = 0; at < text.length; at++) {
      state = follow(state, text.charCodeAt(at));
      if (ends[state] !== 0) spans.push([at + 1 - ends[state]!, at + 1]);
    }
    return mergeSpans(spans);
  };
}
