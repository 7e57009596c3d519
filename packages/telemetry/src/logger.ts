/**
 * Logs: pino, one JSON line each, with secrets scrubbed from the finished line. Path redaction alone misses nested keys and
 * free text, so the last step replaces known token shapes and every secret this process was told of (`addSecret`).
 * On a terminal the lines are for people. A flood of one warning is a few lines and a count.
 */
import { type DestinationStream, destination, type Logger, type LoggerOptions, pino } from "pino";
import { readableLine } from "./readable.ts";
import { secretShapes } from "./secret-shapes.ts";
import { asThrown } from "./thrown.ts";

export type { Logger };

const secrets = new Set<string>();

/** Never print this value again, in any log line of this process. Values under 6 characters are ignored. */
export function addSecret(value: string | undefined): void {
  if (value && value.length >= 6) secrets.add(value);
}

const { tokens, bearer, urlPassword } = secretShapes("doubtful");
/** Keys and tokens, links to approvals, bearer tokens, passwords inside URLs. */
const shapes: [RegExp, string][] = [
  [new RegExp(`\\b(?:${tokens})`, "g"), "[secret]"],
  [/(\/approvals\/link\/)[A-Za-z0-9_-]{16,}/g, "$1[secret]"],
  [bearer, "$1[secret]"],
  [urlPassword, "$1[secret]"],
];

/** `text` with every known secret and every secret-shaped piece replaced. */
export function scrub(text: string): string {
  let out = text;
  for (const secret of secrets) if (out.includes(secret)) out = out.replaceAll(secret, "[secret]");
  for (const [shape, replacement] of shapes) out = out.replace(shape, replacement);
  return out;
}

/**
 * A logger for one process. `to` defaults to standard output: JSON, written asynchronously; on a terminal one readable line each. Of a warning
 * or error that comes again and again the first lines are written, and every 10 s how many more there were (`repeated`): see `everyLine`.
 */
export function createLogger(options: { name: string; level?: string; to?: DestinationStream }): Logger {
  const to = options.to ?? (process.stdout.isTTY ? terminal(options.name) : destination({ sync: false, minLength: 0 }));
  return pino(
    {
      name: options.name,
      level: options.level ?? "info",
      timestamp: pino.stdTimeFunctions.isoTime,
      base: { name: options.name, pid: process.pid },
      serializers: { err: plainError },
      hooks: { logMethod: floodGate() },
    },
    { write: (line: string) => to.write(scrub(line)) },
  );
}

const terminal = (name: string): DestinationStream => ({
  write: (line) => void process.stdout.write(`${readableLine(name, line.trimEnd())}\n`),
});

const ungated = new WeakSet<object>();

/** The same logger, whose every line is written, however many there are: for what happens once to a thing that has a name, as a run's end. */
export function everyLine(logger: Logger): Logger {
  const child = logger.child({});
  ungated.add(child);
  return child;
}

const flood = { windowMs: 10_000, most: 20, mostMessages: 1000 };

/** Counts lines of a level and text within windows; forgets a text when its window has ended. */
function floodGate(): NonNullable<LoggerOptions["hooks"]>["logMethod"] {
  const seen = new Map<string, { told: number; dropped: number }>();
  return function (args, method, level) {
    const [first, second] = args as unknown[];
    const text = typeof first === "string" ? first : second;
    if (level < 40 || level >= 60 || typeof text !== "string" || ungated.has(this)) return method.apply(this, args);
    const key = `${level} ${text}`;
    const count = seen.get(key) ?? { told: 0, dropped: 0 };
    if (count.told === 0 && seen.size < flood.mostMessages) {
      seen.set(key, count);
      setTimeout(() => {
        seen.delete(key);
        if (count.dropped > 0) method.call(this, { repeated: count.dropped, within_ms: flood.windowMs }, text);
      }, flood.windowMs).unref();
    }
    if (count.told >= flood.most) {
      count.dropped++;
      return;
    }
    count.told++;
    method.apply(this, args);
  };
}

/** An error may be its own cause. */
const mostCauses = 5;

/** What of an error is worth a line. Drivers hang whole connections, credentials among them, on their errors. */
function plainError(thrown: unknown, depth = 0): unknown {
  const error = asThrown(thrown);
  if (!(error instanceof Error)) return error;
  const { name, message, stack, cause } = error;
  const { code } = error as { code?: unknown };
  return {
    type: name,
    message,
    ...((typeof code === "string" || typeof code === "number") && { code }),
    stack,
    ...(cause !== undefined && depth < mostCauses && { cause: plainError(cause, depth + 1) }),
  };
}
