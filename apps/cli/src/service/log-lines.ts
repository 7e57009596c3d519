/** Log lines of the supervisor and its children: as they are for machines, or one readable line each for people. */
import { logLevels, logRecord, readableLine, tonedLine } from "@drover/telemetry";

export interface LogLines {
  /** A line as a process wrote it: pino's JSON, or anything else. `name` says whose it is. */
  write(name: string, line: string): void;
  /** A line of the supervisor's own. `fields` are for machines only. */
  say(message: string, fields?: Record<string, unknown>, level?: Level): void;
}

type Level = "info" | "warn" | "error";

export function logLines(options: { json: boolean; write(text: string): void }): LogLines {
  const { write } = options;
  const machine = (name: string, level: number, msg: string, fields?: Record<string, unknown>) =>
    write(`${JSON.stringify({ level, time: new Date().toISOString(), name, ...fields, msg })}\n`);
  if (options.json) {
    return {
      write: (name, line) => (logRecord(line) ? write(`${line}\n`) : machine(name, logLevels.warn, line)),
      say: (message, fields, level = "info") => machine("drover", logLevels[level], message, fields),
    };
  }
  return {
    write: (name, line) => write(`${readableLine(name, line)}\n`),
    say: (message, _fields, level = "info") => write(`${tonedLine(logLevels[level], message)}\n`),
  };
}
