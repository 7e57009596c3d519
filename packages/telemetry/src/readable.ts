/**
 * Log lines for people: one readable line each. (pino-pretty spreads errors over ten lines and brings thirteen packages for the rest.)
 */
import { styleText } from "node:util";

export const logLevels = { info: 30, warn: 40, error: 50 };
/** What stands in every line, or is shown in a place of its own. */
const known = new Set(["level", "time", "name", "pid", "hostname", "msg", "err"]);

const paint = (format: Parameters<typeof styleText>[0], text: string): string =>
  styleText(format, text, { stream: process.stdout });

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

/** `12:30:01 worker  message  key=value …`, warnings and errors coloured, an error's stack only from level error on. */
export function readableLine(name: string, line: string): string {
  const record = logRecord(line);
  const level = typeof record?.level === "number" ? record.level : logLevels.info;
  const time = new Date(String(record?.time ?? "") || Date.now());
  const clock = Number.isNaN(time.getTime()) ? "--:--:--" : time.toTimeString().slice(0, 8);
  const head = `${paint("dim", clock)} ${paint("dim", name.padEnd(8))}`;
  if (!record) return `${head} ${printable(line)}`;
  const fields = Object.entries(record)
    .filter(([key]) => !known.has(key))
    .map(([key, value]) => `${key}=${oneLine(value, 200)}`);
  const { message, stack } = (record.err ?? {}) as { message?: string; stack?: string };
  if (message && !String(record.msg).includes(message)) fields.push(`error=${oneLine(message, 300)}`);
  const text = `${tonedLine(level, printable(String(record.msg ?? "")))} ${paint("dim", fields.join(" "))}`.trimEnd();
  const frames = level >= logLevels.error && stack ? printable(stack).split("\n").slice(1) : [];
  return [`${head} ${text}`, ...frames.map((frame) => paint("dim", frame))].join("\n");
}

/** In the colour of its level. */
export const tonedLine = (level: number, text: string): string =>
  level >= logLevels.error ? paint("red", text) : level >= logLevels.warn ? paint("yellow", text) : text;

/** A line as pino writes it, or undefined for anything else. */
export function logRecord(line: string): Record<string, unknown> | undefined {
  if (!line.startsWith("{")) return undefined;
  try {
    return JSON.parse(line) as Record<string, unknown>;
  } catch {
    return undefined;
  }
}
