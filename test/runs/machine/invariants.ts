/** What holds of runs whatever happens: in every committed state, over every change, and between what actors were told and what the log says. */
import type { Pool } from "@drover/storage";
import { expect } from "vitest";
import { canMove, isFinal, type Status } from "../../../packages/runs/src/moves/state.ts";
import type { World } from "./world.ts";

const finals = "('completed', 'partial', 'failed', 'cancelled')";

/** One snapshot: what is wrong with which run. */
export async function expectSound(pool: Pool): Promise<void> {
  const { rows } = await pool.query<{ wrong: string }>(
    `SELECT r.id || ' (' || r.status || ') ' || v.what AS wrong
     FROM runs r CROSS JOIN LATERAL (
       SELECT count(*) AS events, max(seq) AS last, (array_agg(type ORDER BY seq DESC))[1] AS newest,
              count(*) FILTER (WHERE type IN ('run.completed', 'run.partial', 'run.failed', 'run.cancelled')) AS ends,
              count(*) FILTER (WHERE type = 'run.waiting') AS waits, max(seq) FILTER (WHERE type = 'run.waiting') AS waited,
              max(seq) FILTER (WHERE type = 'budget.raised') AS raised
       FROM run_events WHERE run_id = r.id) e
     CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE type = 'query.waiting') AS waits, count(*) FILTER (WHERE type <> 'query.waiting') AS ends,
              count(*) FILTER (WHERE type = 'query.' || r.status AND type <> 'query.waiting') AS right_ends
       FROM messages WHERE run_id = r.id) m
     CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM approvals WHERE run_id = r.id AND status = 'pending') AS open) a
     CROSS JOIN LATERAL (VALUES
       ('has a gap in its log', e.events <> e.last OR e.last <> r.last_seq),
       ('has more than one end in its log', e.ends > 1),
       ('and its log say different things', (r.status IN ${finals}) <> (e.ends = 1)),
       ('has an event after its end', r.status IN ${finals} AND e.newest <> 'run.' || r.status),
       ('owes not exactly one message of its end', m.ends <> e.ends OR m.right_ends <> e.ends),
       ('owes not one message for each wait', m.waits <> e.waits),
       ('waits although nothing is open', r.status = 'waiting' AND r.waiting_for = 'approval' AND NOT a.open),
       ('waits although its cap was raised', r.status = 'waiting' AND r.waiting_level = 'run' AND e.raised > e.waited),
       ('is final and still asks somebody', r.status IN ${finals} AND a.open)) AS v(what, wrong)
     WHERE v.wrong
     UNION ALL
     SELECT b.id || ' (batch) owes not exactly one message of its end' FROM batches b
     WHERE (b.status <> 'running') <> ((SELECT count(*) FROM messages m WHERE m.batch_id = b.id) = 1)
     UNION ALL
     SELECT b.id || ' (batch) is closed although a run is open' FROM batches b
     WHERE b.status <> 'running' AND EXISTS (SELECT FROM runs r WHERE r.batch_id = b.id AND r.status NOT IN ${finals})`,
  );
  if (rows.length > 0) throw new Error(rows.map(({ wrong }) => wrong).join("; "));
}

interface Row {
  status: Status;
  epoch: number;
  last_seq: number;
  wake: number;
  woken: boolean;
  cancel_requested_at: string | null;
}

/** Every change of every run since the world was made. Of a final run, only what the rescuer and a returning worker note about it changes. */
export async function expectAllowedMoves(pool: Pool): Promise<void> {
  const { rows } = await pool.query<{ run_id: string; was: Row | null; now: Row; same: boolean }>(
    `SELECT run_id, was, now, was - $1::text[] = now - $1::text[] AS same FROM run_moves ORDER BY n`,
    [["rollback", "crashes", "lost_worker"]],
  );
  for (const { run_id, was, now, same } of rows) {
    const about = `run ${run_id}, ${was?.status} -> ${now.status}, log ${was?.last_seq} -> ${now.last_seq}`;
    if (!was) {
      expect(now, about).toMatchObject({ status: "queued", epoch: 0, last_seq: 1 });
      continue;
    }
    expect(was.status === now.status || canMove(was.status, now.status), `a move of the table: ${about}`).toBe(true);
    expect(same || !isFinal(was.status), `a final run stays as it is: ${about}`).toBe(true);
    const claimed = was.status === "queued" && now.status === "running";
    expect(now.epoch - was.epoch, `claims raise the epoch, and nothing else: ${about}`).toBe(claimed ? 1 : 0);
    expect(now.last_seq, about).toBeGreaterThanOrEqual(was.last_seq);
    if (was.status !== now.status) expect(now.last_seq, `a move is an event: ${about}`).toBe(was.last_seq + 1);
    const due = now.status === "queued" && now.woken && (was.status !== "queued" || !was.woken);
    expect(now.wake - was.wake, `becoming due raises the wake: ${about}`).toBeGreaterThanOrEqual(due ? 1 : 0);
    if (was.cancel_requested_at === null) continue;
    expect(now.cancel_requested_at, `a cancel is not taken back: ${about}`).not.toBeNull();
    if (was.status !== now.status)
      expect(now.status, `what is to be cancelled goes nowhere else: ${about}`).toBe("cancelled");
  }
}

interface Event {
  run_id: string;
  seq: number;
  type: string;
  data: string;
  event_id: string;
}

const statusAfter: Record<string, Status> = {
  "run.queued": "queued",
  "run.started": "running",
  "run.retrying": "queued",
  "run.handed_over": "queued",
  "run.rescued": "queued",
  "run.resumed": "queued",
  "run.waiting": "waiting",
  "run.completed": "completed",
  "run.partial": "partial",
  "run.failed": "failed",
  "run.cancelled": "cancelled",
};

/** The log against the rows, and against what everybody was told. */
export async function expectTruth({ bench, told, cancels, decisions }: World): Promise<void> {
  const { rows: events } = await bench.pool.query<Event>(
    "SELECT run_id, seq, type, data::text, event_id FROM run_events ORDER BY run_id, seq",
  );
  const { rows: runs } = await bench.pool.query<{ id: string; status: Status; epoch: number }>(
    "SELECT id, status, epoch FROM runs",
  );
  const owners = new Map<Event, number | null>();
  for (const run of runs) {
    let status: Status | undefined;
    let owner: number | null = null;
    for (const event of events.filter(({ run_id }) => run_id === run.id)) {
      const after = statusAfter[event.type];
      if (status && after) expect(canMove(status, after), `run ${run.id}: ${status}, then ${event.type}`).toBe(true);
      owners.set(event, owner);
      status = after ?? status;
      if (after) owner = event.type === "run.started" ? (JSON.parse(event.data) as { epoch: number }).epoch : null;
    }
    expect(status, `what the log of run ${run.id} ends with`).toBe(run.status);
  }
  for (const one of told) {
    const found = events.filter(
      (event) =>
        event.run_id === one.runId && (one.eventId ? event.event_id === one.eventId : event.data.includes(one.mark!)),
    );
    const about = `${JSON.stringify(one)} against ${JSON.stringify(found)}`;
    if (one.answer === "unknown") expect(found.length, about).toBeLessThanOrEqual(1);
    else expect(found.length, about).toBe(one.answer === "yes" ? 1 : 0);
    for (const event of found)
      if (one.epoch !== undefined) expect(owners.get(event), `written by no owner: ${about}`).toBe(one.epoch);
  }
  const status = new Map(runs.map((run) => [run.id, run.status]));
  for (const { runId, status: answered } of cancels)
    expect(status.get(runId), `run ${runId}: the cancel answered ${answered}`).toBe(
      answered === "running" ? "cancelled" : answered,
    );
  const { rows: approvals } = await bench.pool.query<{ id: string; status: string; decided_by: string | null }>(
    "SELECT id, status, decided_by FROM approvals",
  );
  for (const { asked, by } of decisions)
    expect(approvals.find(({ id }) => id === asked.id)?.decided_by, `who decided approval ${asked.id}`).toBe(by);
  const decided = events
    .filter(({ type }) => type === "approval.decided")
    .map(({ data }) => (JSON.parse(data) as { approval_id: string }).approval_id);
  expect(new Set(decided).size, "decisions in the log, each once").toBe(decided.length);
}
