/** The runs that actors fight over, and what the actors were told: a database of its own, emptied before every case, whose triggers keep each change of a run. */
import { type ApprovalRecord, setBudget } from "@drover/runs";
import type { Pool } from "@drover/storage";
import type fc from "fast-check";
import { createBench, input, submission } from "../bench.ts";

export type Bench = Awaited<ReturnType<typeof createBench>>;

/** Parameters of a property: few runs, or many with DROVER_CHAOS=full. FC_SEED and FC_PATH (and FC_COMMANDS, for a replayPath) from a failure's report play that case alone. */
export function cases<T>(few: number, many: number): fc.Parameters<T> {
  const { DROVER_CHAOS, FC_SEED, FC_PATH } = process.env;
  return {
    numRuns: DROVER_CHAOS === "full" ? many : few,
    ...(DROVER_CHAOS !== "full" && { interruptAfterTimeLimit: 20_000 }),
    ...(FC_SEED && { seed: Number(FC_SEED) }),
    ...(FC_PATH && { path: FC_PATH, endOnFailure: true }),
  };
}

/** How long such a property may take, ms, shrinking included. */
export const patience = 3_600_000;

/** What an actor was told: `yes` stands in the log once, `no` never, `unknown` (the answer was lost) at most once. */
export interface Told {
  runId: string;
  /** Its event: by id, or by a text in its data that no other event has. */
  eventId?: string;
  mark?: string;
  answer: "yes" | "no" | "unknown";
  /** It was written as the owner of this epoch. */
  epoch?: number;
}

export interface World {
  bench: Bench;
  batchId: string;
  runs: string[];
  /** Rows of `workers`, one for each worker there is. */
  workers: string[];
  told: Told[];
  /** Statuses that cancels answered with. */
  cancels: { runId: string; status: string }[];
  decisions: { asked: ApprovalRecord; by: string }[];
  /** A text that nobody else has. */
  mark(): string;
}

const tables = [
  "budget_reservations",
  "budget_accounts",
  "budgets",
  "approvals",
  "messages",
  "messages_unnumbered",
  "runs",
  "run_events",
  "batches",
  "workers",
];

/** A bench whose runs' every change is kept in `run_moves`, by triggers. */
export async function createMachineBench(): Promise<Bench> {
  const bench = await createBench();
  await bench.pool.query(`
    CREATE TABLE run_moves (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, run_id uuid, was jsonb, now jsonb);
    CREATE FUNCTION keep_move() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN
        INSERT INTO run_moves (run_id, was, now) VALUES (NEW.id, CASE TG_OP WHEN 'UPDATE' THEN to_jsonb(OLD) END, to_jsonb(NEW));
        RETURN NULL;
      END $$;
    CREATE TRIGGER runs_keep_moves AFTER INSERT OR UPDATE ON runs FOR EACH ROW EXECUTE FUNCTION keep_move()`);
  return bench;
}

/** Empties the database. */
const clear = (pool: Pool) => pool.query([...tables, "run_moves"].map((table) => `DELETE FROM ${table}`).join(";"));

/** A world of one batch with `runs` queued runs, `workers` live workers, and a tenant with a cap of the day. */
export async function createWorld(bench: Bench, size: { runs: number; workers: number }): Promise<World> {
  await clear(bench.pool);
  let marks = 0;
  const capped = submission({ input: input({ max_cost_usd: 1, action_budget: 10 }) });
  const { id: batchId } = await bench.submitter.submitBatch({
    tenant: "default",
    items: Array.from({ length: size.runs }, () => capped),
    callbackUrl: null,
    callbackEvents: null,
    metadata: {},
  });
  const { rows } = await bench.pool.query<{ id: string }>("SELECT id FROM runs ORDER BY batch_index");
  await setBudget(bench.pool, "default", { day: 1e12 }, "key_admin");
  const workers = [];
  for (let worker = 0; worker < size.workers; worker++) workers.push(await bench.addWorker(3_600_000));
  return {
    bench,
    batchId,
    runs: rows.map(({ id }) => id),
    workers,
    told: [],
    cancels: [],
    decisions: [],
    mark: () => `mark-${++marks}.`,
  };
}
