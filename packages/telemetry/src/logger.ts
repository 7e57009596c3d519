/**
 * Logs: pino, one JSON line each, with secrets scrubbed from the finished line. Path redaction alone misses nested keys and
 * free text, so the last step replaces known token shapes and every secret this process was told of (`addSecret`).
 */
import { type DestinationStream, destination, type Logger, pino } from "pino";

export type { Logger };

const secrets = new Set<string>();

/** Never print this value again, in any log line of this process. Values under 6 characters are ignored. */
export function addSecret(value: string | undefined): void {
  if (value && value.length >= 6) secrets.add(value);
}

/** Shapes of secrets: provider keys, webhook secrets, our own keys, links to approvals, bearer tokens, passwords inside URLs. */
const shapes: [RegExp, string][] = [
  [/\b(sk-[A-Za-z0-9_-]{16,}|AIza[A-Za-z0-9_-]{20,}|whsec_[A-Za-z0-9+/=]{16,}|drv_[A-Za-z0-9_-]{16,})/g, "[secret]"],
  [/(\/approvals\/link\/)[A-Za-z0-9_-]{16,}/g, "$1[secret]"],
  [/\b(bearer\s+)[A-Za-z0-9._~+/=-]{12,}/gi, "$1[secret]"],
  [/([a-z][a-z0-9+.-]*:\/\/[^\s:/@"]*:)[^\s@/"]+@/gi, "$1[secret]@"],
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

/** What of an error is worth a line. Drivers hang whole connections, credentials among them, on their errors. */
function plainError(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const { name, message, stack, cause } = error;
  const { code } = error as { code?: unknown };
  return {
    type: name,
    message,
    ...((typeof code === "string" || typeof code === "number") && { code }),
    stack,
    ...(cause !== undefined && { cause: plainError(cause) }),
  };
}
