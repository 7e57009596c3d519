/** An owner of runs without a loop: it claims, asks people and parks as a worker does, one statement at a time, so that a test can get in between. */
import { fromWireId, toWireId, uuidv7 } from "@drover/protocol";
import { type ApprovalRecord, readApproval, type Submission } from "@drover/runs";
import { createLogWriter } from "../../packages/runs/src/log/append.ts";
import { readLog } from "../../packages/runs/src/log/events.ts";
import type { Moved } from "../../packages/runs/src/moves/moved.ts";
import { type Parking, parkRun } from "../../packages/runs/src/moves/park.ts";
import type { createBench } from "./bench.ts";

type Bench = Awaited<ReturnType<typeof createBench>>;

export async function createOwner(bench: Bench) {
  const { pool, blobs } = bench;
  const worker = await bench.addWorker(3_600_000);
  const append = createLogWriter(pool, blobs, new AbortController().signal);

  return {
    append,
    /** A run that this owner holds. */
    own: async (more: Partial<Submission> = {}) => bench.claim(worker, await bench.submit(more)),
    /** The run again, once it is queued. */
    claim: (id: string) => bench.claim(worker, id),
    /** Asks about a call; `expiresInMs` may be over already. */
    async ask(run: { id: string; epoch: number; tenant: string }, expiresInMs = 3_600_000): Promise<ApprovalRecord> {
      const id = uuidv7();
      const data = {
        approval_id: toWireId("approval", id),
        subject: "call" as const,
        iteration: 1,
        index: 0,
        tool_name: "send",
        input: {},
        reason: "it cannot be undone",
        hash: "00",
        expires_at: new Date(Date.now() + expiresInMs).toISOString(),
        on_expiry: "reject" as const,
      };
      await append({
        runId: run.id,
        epoch: run.epoch,
        tenant: run.tenant,
        event: { type: "approval.requested", data },
      });
      return (await readApproval(pool, run.tenant, fromWireId("approval", data.approval_id)!))!;
    },
    park: (run: { id: string; epoch: number }, more: Partial<Parking> = {}): Promise<Moved | null> =>
      parkRun(pool, {
        runId: run.id,
        epoch: run.epoch,
        eventId: uuidv7(),
        waitingFor: "approval",
        level: null,
        raises: 0,
        data: '{"waiting_for":"approval"}',
        cancelledData: '{"output":null,"stop_reason":null,"error":null}',
        ...more,
      }),
    types: async (id: string) => (await readLog(pool, blobs, { tenant: "default", runId: id })).map(({ type }) => type),
  };
}
