/**
 * Log lines of the supervisor and its children: as they are for machines, or one readable line each for people. (pino-pretty
 * spreads errors over ten lines and brings thirteen packages for the rest.)
 */
import { oneLine, paint, printable } from "../text.ts";

export interface LogLines {
  /** A line as a process wrote it: pino's JSON, or anything else. `name` says whose it is. */
  write(name: string, line: string): void;
  /** A line of the supervisor's own. `fields` are for machines only. */
  say(message: string, fields?: Record<string, unknown>, level?: Level): void;
}

type Level = "info" | "warn" | "error";
const levels = { info: 30, warn: 40, error: 50 };
/** What stands in every line, or is shown in a place of its own. */
const known = new Set(["level", "time", "name", "pid", "hostname", "msg", "err"]);

export function logLines(options: { json: boolean; write(text: string): void }): LogLines {
  const { write } = options;
  const machine = (name: string, level: number, msg: string, fields?: Record<string, unknown>) =>
    write(`${JSON.stringify({ level, time: new Date().toISOString(), name, ...fields, msg })}\n`);
  if (options.json) {
    return {
      write: (name, line) => (recordOf(line) ? write(`${line}\n`) : machine(name, levels.warn, line)),
      say: (message, fields, level = "info") => machine("drover", levels[level], message, fields),
    };
  }
  return {
    write: (name, line) => write(`${readable(name, line)}\n`),
    say: (message, _fields, level = "info") => write(`${toned(levels[level], message)}\n`),
  };
}

/** `12:30:01 worker  message  key=value …`, warnings and errors coloured, an error's stack only from level error on. */
export function readable(name: string, line: string): string {
  const record = recordOf(line);
  const level = typeof record?.level === "number" ? record.level : levels.info;
  const time = new Date(String(record?.time ?? "") || Date.now());
  const clock = Number.isNaN(time.getTime()) ? "--:--:--" : time.toTimeString().slice(0, 8);
  const head = `${paint("dim", clock)} ${paint("dim", name.padEnd(8))}`;
  if (!record) return `${head} ${printable(line)}`;
  const fields = Object.entries(record)
    .filter(([key]) => !known.has(key))
    .map(([key, value]) => `${key}=${oneLine(value, 200)}`);
  const { message, stack } = (record.err ?? {}) as { message?: string; stack?: string };
  if (message && !String(record.msg).includes(message)) fields.push(`error=${oneLine(message, 300)}`);
  const text = `${toned(level, printable(String(record.msg ?? "")))} ${paint("dim", fields.join(" "))}`.trimEnd();
  const frames = level >= levels.error && stack ? printable(stack).split("\n").slice(1) : [];
  return [`${head} ${text}`, ...frames.map((frame) => paint("dim", frame))].join("\n");
}

const toned = (level: number, text: string): string =>
  level >= levels.error ? paint("red", text) : level >= levels.warn ? paint("yellow", text) : text;

function recordOf(line: string): Record<string, unknown> | undefined {
  if (!line.startsWith("{")) return undefined;
  try {
    return JSON.parse(line) as Record<string, unknown>;
  } catch {
    return undefined;
  }
}
