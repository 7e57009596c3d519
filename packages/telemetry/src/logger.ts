/**
 * Logs: pino, one JSON line each, with secrets scrubbed from the finished line. Path redaction alone misses nested keys and
 * free text, so the last step replaces known token shapes and every secret this process was told of (`addSecret`).
 */
import { type DestinationStream, destination, type Logger, pino } from "pino";
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

/** A logger for one process. `to` defaults to standard output, written asynchronously. */
export function createLogger(options: { name: string; level?: string; to?: DestinationStream }): Logger {
  const to = options.to ?? destination({ sync: false, minLength: 0 });
  return pino(
    {
      name: options.name,
      level: options.level ?? "info",
      timestamp: pino.stdTimeFunctions.isoTime,
      base: { name: options.name, pid: process.pid },
      serializers: { err: plainError },
    },
    { write: (line: string) => to.write(scrub(line)) },
  );
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
