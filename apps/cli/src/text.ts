/** Words and numbers for people: colours where the terminal has them, durations, money, one-line JSON. */
import { styleText } from "node:util";

type Format = Parameters<typeof styleText>[0];

/** Styled; plain where the stream is no terminal or NO_COLOR is set. */
export const paint = (format: Format, text: string, stream: NodeJS.WriteStream = process.stdout): string =>
  styleText(format, text, { stream });

export function duration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes} min ${Math.round((ms % 60_000) / 1000)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const money = (usd: number | null): string =>
  usd === null ? "cost unknown" : `$${usd === 0 || usd >= 0.01 ? usd.toFixed(2) : usd.toPrecision(2)}`;

/** A value on one line, cut to `most` characters. Line breaks and control characters are shown, never sent to the terminal. */
export function oneLine(value: unknown, most = 100): string {
  const text = typeof value === "string" ? value : (JSON.stringify(value) ?? "");
  const flat = printable(text.replace(/\s*\n\s*/g, " ⏎ "));
  return flat.length > most ? `${flat.slice(0, most - 1)}…` : flat;
}

/** Without what would move the cursor or change the terminal: text of a model is not ours. */
export const printable = (text: string): string =>
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is taken out.
  text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, "");

/** What somebody decides about: what would be invisible, or would turn the text around, is shown as its code. */
export const legible = (text: string): string =>
  text.replace(
    /(?![\n\t])[\p{C}\p{Zl}\p{Zp}\u115f\u1160\u3164\uffa0]/gu,
    (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`,
  );

/** Rows with their columns aligned; the last column keeps its length. */
export function table(rows: string[][]): string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    row
      .map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column]!)))
      .join("  ")
      .trimEnd(),
  );
}
