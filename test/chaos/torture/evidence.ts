/** Everything the checks judge by: what the database says in the end, what the world outside wrote down, and what was done to whom. */
import type { LogEvent, NewEvent } from "@drover/harness";
import { readLogs } from "@drover/runs";
import { type Pool, postgresBlobs } from "@drover/storage";
import type { ClientBooks, Promised } from "./clients.ts";
import type { Broken } from "./faults.ts";
import type { Ledger } from "./ledger.ts";
import type { Receivers } from "./receivers.ts";
import type { Scenario } from "./scenario.ts";
import type { Life } from "./supervised.ts";

export interface RunRow {
  id: string;
  status: string;
  stop_reason: string | null;
  epoch: number;
  last_seq: number;
  label: string;
  batch_id: string | null;
  cost_nanos: number;
  log: LogEvent[];
}

export interface WorkerRow {
  id: string;
  pid: number;
  cause: string | null;
  dead_at: Date | null;
  heartbeat_at: Date;
}

export interface Evidence {
  runs: RunRow[];
  /** Workers that were declared dead, by id. */
  lost: Map<string, WorkerRow>;
  /** What was asked for under each run's label. */
  asked: Map<string, { scenario: Scenario; promised: Promised }>;
  books: ClientBooks;
  ledger: Pick<Ledger, "modelRequests" | "toolRequests" | "effects">;
  receivers: Pick<Receivers, "arrivals" | "wrong">;
  lives: Life[];
  broken: Broken[];
}

export interface Violation {
  rule: string;
  /** Whose log shows it. */
  run?: string;
  text: string;
}

const page = 200;

export async function readRuns(pool: Pool): Promise<RunRow[]> {
  const { rows } = await pool.query<Omit<RunRow, "log">>(
    "SELECT id, status, stop_reason, epoch, last_seq, metadata->>'label' AS label, batch_id, cost_nanos FROM runs ORDER BY id",
  );
  const runs: RunRow[] = [];
  for (let at = 0; at < rows.length; at += page) {
    const some = rows.slice(at, at + page);
    const logs = await readLogs(pool, postgresBlobs(pool), { tenant: "default", runIds: some.map(({ id }) => id) });
    runs.push(...some.map((row) => ({ ...row, log: logs.get(row.id) ?? [] })));
  }
  return runs;
}

export async function readLost(pool: Pool): Promise<Map<string, WorkerRow>> {
  const { rows } = await pool.query<WorkerRow>(
    "SELECT id, pid, cause, dead_at, heartbeat_at FROM workers WHERE dead_at IS NOT NULL",
  );
  return new Map(rows.map((row) => [row.id, row]));
}

export const atMs = (event: LogEvent): number => Date.parse(event.at);

/** The events of one type, with their data. */
export function eventsOf<T extends NewEvent["type"]>(log: LogEvent[], type: T): Extract<LogEvent, { type: T }>[] {
  return log.filter((event): event is Extract<LogEvent, { type: T }> => event.type === type);
}

/** A process that sleeps between its last look at the fence and its request sends that request when it wakes. */
const wakingMs = 2000;
export function sentByPaused(lives: readonly Life[], sender: string, at: number): boolean {
  const life = lives.find(({ name }) => name === sender);
  return life?.pauses.some(({ from, to }) => at >= from && at <= to + wakingMs) ?? false;
}
