/** What a heartbeat, an idle look and each duty of the rescuer read while a snapshot is held over a million ended runs: pages of 8 KiB, by EXPLAIN. */
import { uuidv7 } from "@drover/protocol";
import { sayAlive } from "../packages/runs/src/liveness/beat.ts";
import { claimNext } from "../packages/runs/src/moves/claim.ts";
import { findOverdue } from "../packages/runs/src/moves/rescue.ts";
import { wakeDue } from "../packages/runs/src/moves/wake.ts";
import { endMany, looks, overdue } from "../test/runs/looks.ts";
import { countingPages } from "../test/support/pages.ts";
import type { Stack } from "./stack.ts";

/** Heartbeats of an hour. */
const beats = 3600;
/** Since the last look, ms. */
const lately = 2000;

/** `before`: what one statement read before it had a bound. */
export interface SnapshotPages {
  pages: Record<string, number>;
  before: number;
}

export async function snapshotPages(stack: Stack, runs: number): Promise<SnapshotPages> {
  const { pool } = stack;
  const old = await pool.connect();
  await old.query("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM runs");
  try {
    const worker = uuidv7();
    await pool.query("INSERT INTO workers (id, host, pid, slots, lease_ms) VALUES ($1, 'bench', 1, 10, 36000000)", [
      worker,
    ]);
    await endMany(pool, worker, runs, 5000);
    await endMany(pool, worker, 1);
    const [id] = (await pool.query<{ id: string }>("SELECT id FROM runs ORDER BY id DESC LIMIT 1")).rows.map(
      (row) => row.id,
    );
    await pool.query("UPDATE runs SET status = 'queued', finished_at = NULL WHERE id = $1", [id]);
    const [own] = (await claimNext(pool, worker, { most: 1, only: [id!] })).runs;
    const held = { runs: [own!.id], epochs: [own!.epoch] };
    let { place } = (await sayAlive(pool, worker, held, null))!;
    for (let beat = 0; beat < beats; beat++) ({ place } = (await sayAlive(pool, worker, held, place))!);
    await new Promise((resolve) => setTimeout(resolve, lately));
    const counting = countingPages(pool);
    const pages: Record<string, number> = {};
    for (const [name, look] of Object.entries(looks(worker, held, place, lately))) {
      await look(counting.pool);
      pages[name] = counting.read().pages;
    }
    await wakeDue(counting.pool, 1000);
    await findOverdue(counting.pool, overdue);
    return { pages, before: counting.read().pages };
  } finally {
    await old.query("ROLLBACK");
    old.release();
  }
}
