/**
 * How the demo model understands a query: a few rules, each for one of the built-in tools. Pure, and linear in the query's
 * length. What stands around a "then" is done one after the other, everything else at once.
 */

export interface PlannedCall {
  tool: string;
  input: Record<string, unknown>;
  /** The call in the words of an answer. */
  label: string;
}

interface Found extends PlannedCall {
  at: number;
}

type Rule = (text: string) => { found: Found[]; rest: string };

const mostCalls = 20;
const path = String.raw`[\w][\w./-]*`;

/** Turns a query into stages: the calls of one stage go out together, a stage starts when the one before has its results. */
export function plan(query: string): PlannedCall[][] {
  let rest = query;
  const found: Found[] = [];
  for (const rule of [urls, waits, lists, reads, arithmetic]) {
    const matched = rule(rest);
    found.push(...matched.found);
    rest = matched.rest;
  }
  const breaks = [...query.matchAll(/\b(?:then|afterwards|after that|finally)\b/gi)].map((match) => match.index);
  const stages = new Map<number, PlannedCall[]>();
  found.sort((a, b) => a.at - b.at);
  for (const { at, ...call } of found.slice(0, mostCalls)) {
    const stage = breaks.filter((index) => index < at).length;
    stages.set(stage, [...(stages.get(stage) ?? []), call]);
  }
  return [...stages.values()];
}

/** A rule by pattern; what it matched is blanked out, so that no later rule sees it again. */
function byPattern(pattern: RegExp, calls: (match: RegExpExecArray) => PlannedCall[]): Rule {
  return (text) => {
    const rest: string[] = [];
    let end = 0;
    const found: Found[] = [];
    for (const match of text.matchAll(pattern)) {
      const made = found.length < mostCalls ? calls(match) : [];
      if (made.length === 0) continue;
      found.push(...made.map((call, n) => ({ ...call, at: match.index + n / mostCalls })));
      rest.push(text.slice(end, match.index), "\0".repeat(match[0].length));
      end = match.index + match[0].length;
    }
    rest.push(text.slice(end));
    return { found, rest: rest.join("") };
  };
}

/** Without these characters at its end. A pattern for it would look again from each of them. */
function trimmedEnd(text: string, characters: string): string {
  let end = text.length;
  while (end > 0 && characters.includes(text[end - 1]!)) end--;
  return text.slice(0, end);
}

const urls = byPattern(/https?:\/\/[^\s<>"'`]+/gi, ([match]) => {
  const url = trimmedEnd(match, ".,;:!?)]}");
  return [{ tool: "http_get", input: { url }, label: `get ${url}` }];
});

const waits = byPattern(
  /\b(?:wait|sleep|pause)\s+(?:for\s+)?(\d+(?:\.\d+)?)\s*(ms|milliseconds?|minutes?|min|m|seconds?|secs?|s)?\b/gi,
  ([, amount = "0", unit = "s"]) => {
    const factor = /^m(s|illi)/i.test(unit) ? 0.001 : /^m/i.test(unit) ? 60 : 1;
    const seconds = Number(amount) * factor;
    return [{ tool: "wait", input: { seconds }, label: `wait ${seconds} s` }];
  },
);

const lists = byPattern(
  new RegExp(
    String.raw`\b(?:list|which|what|show)\s+(?:me\s+)?(?:all\s+)?(?:the\s+|my\s+)?(?:files|folders?|directory|workspace)\b` +
      String.raw`(?:\s+(?:are\s+)?(?:in|of|under)\s+(?:the\s+)?(?:folder\s+|directory\s+)?["'\`]?(${path}))?`,
    "gi",
  ),
  ([, folder]) => {
    const where = folder && !/^(?:workspace|there|here|the)$/i.test(folder) ? trimmedEnd(folder, "./") : undefined;
    const label = where ? `list files in ${where}` : "list files";
    return [{ tool: "file_list", input: where ? { path: where } : {}, label }];
  },
);

const reads = byPattern(
  new RegExp(
    String.raw`\b(?:read|open|show|print|summari[sz]e)\s+(?:me\s+)?(?:the\s+|my\s+)?(file\s+|files\s+)?["'\`]?${path}["'\`]?` +
      String.raw`(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+|\s*&\s*)["'\`]?[\w][\w/-]*\.${path}["'\`]?)*`,
    "gi",
  ),
  ([match, named]) =>
    [...match.matchAll(new RegExp(path, "g"))]
      .map(([name]) => trimmedEnd(name, "."))
      .slice(1)
      .filter((name) => /[./]/.test(name) || (named && !/^(?:me|the|my|and|files?)$/i.test(name)))
      .map((name) => ({ tool: "file_read", input: { path: name }, label: `read ${name}` })),
);

const operators: [RegExp, string][] = [
  [/^(?:plus|\+)$/i, "+"],
  [/^(?:minus|-|\u2212)$/i, "-"],
  [/^(?:times|multiplied by|x|\*|\u00d7|\u00b7)$/i, "*"],
  [/^(?:divided by|\/|\u00f7)$/i, "/"],
  [/^(?:to the power of|\^|\*\*)$/i, "^"],
  [/^(?:% of|percent of)$/i, "/100*"],
];

/** Runs of numbers, operators (as signs or words) and parentheses, with at least two numbers in them. */
const arithmetic: Rule = (text) => {
  const found: Found[] = [];
  const token =
    /(?<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)|(?<operator>plus\b|minus\b|times\b|multiplied by\b|divided by\b|to the power of\b|percent of\b|% of\b|x(?=\s*[\d(])|\*\*|[-+*/^\u2212\u00d7\u00b7\u00f7])|(?<paren>[()])|(?<space>\s+)|[^\s]/gi;
  let run: { at: number; pieces: string[]; end: number } | undefined;
  const close = () => {
    const expression = run && expressionOf(run.pieces);
    if (run && expression && !partOfAWord(text, run.at, run.end)) {
      found.push({ at: run.at, tool: "calculate", input: { expression }, label: expression });
    }
    run = undefined;
  };
  for (const { 0: match, index, groups = {} } of text.matchAll(token)) {
    if (groups.space) continue;
    const operator = groups.operator && operators.find(([pattern]) => pattern.test(match))?.[1];
    const piece = groups.number?.replaceAll(",", "") ?? operator ?? groups.paren;
    if (piece === undefined) {
      close();
      continue;
    }
    run ??= { at: index, pieces: [], end: index };
    run.pieces.push(piece);
    run.end = index + match.length;
  }
  close();
  return { found, rest: text };
};

/** The run without what dangles at its ends; undefined when it is no calculation (one number, a date, bad parentheses). */
function expressionOf(all: string[]): string | undefined {
  let first = 0;
  let end = all.length;
  while (first < end && !/[\d(-]/.test(all[first]!)) first++;
  while (first < end && !/[\d)]$/.test(all[end - 1]!)) end--;
  const count = (paren: string) => all.slice(first, end).filter((piece) => piece === paren).length;
  for (let spare = count("(") - count(")"); spare > 0 && all[first] === "("; spare--) first++;
  for (let spare = count(")") - count("("); spare > 0 && all[end - 1] === ")"; spare--) end--;
  const pieces = all.slice(first, end);
  const expression = pieces.join(" ").replaceAll("( ", "(").replaceAll(" )", ")");
  if (count("(") !== count(")") || /^\d{4} - \d{2} - \d{2}$/.test(expression)) return undefined;
  const numbers = pieces.filter((piece) => /^\d/.test(piece)).length;
  return numbers >= 2 && numbers - 1 <= pieces.filter((piece) => /^[-+*/^]/.test(piece)).length
    ? expression
    : undefined;
}

/** `v1.2-3`, `2024-report.txt`: a letter, or a dot with one, touches the run. */
function partOfAWord(text: string, start: number, end: number): boolean {
  return (
    /[\w./\\:@#-]$/.test(text.slice(Math.max(0, start - 1), start)) ||
    /^(?:\w|[-./\\]\w)/.test(text.slice(end, end + 2))
  );
}
