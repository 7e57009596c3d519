/** The log as the library sees it: a port with an in-memory implementation. The durable one is `@drover/runs`. */
import { uuidv7 } from "@drover/protocol";
import type { LogEvent, NewEvent } from "./events.ts";

export interface RunLog {
  /** The run's id (UUID): its task id and its workspace. Without it a run that goes on from this log gets new ones. */
  readonly runId?: string;
  /** All events so far, in order; empty for a new run. */
  read(): Promise<LogEvent[]>;
  /** Appends one event; durable, as far as this log is, once it resolves. */
  append(event: NewEvent): Promise<LogEvent>;
}

/** A log that lives as long as the process. */
export function memoryLog(): RunLog {
  const events: LogEvent[] = [];
  return {
    runId: uuidv7(),
    read: async () => [...events],
    append: async (event) => {
      const logged: LogEvent = { ...event, seq: events.length + 1, at: new Date().toISOString() };
      events.push(logged);
      return logged;
    },
  };
}
