/** What clients were promised: each accepted submission is one run, each owed message arrived everywhere, under one id. */
import { toWireId } from "@drover/protocol";
import type { Pool } from "@drover/storage";
import type { Evidence, Violation } from "./evidence.ts";
import { type ReceiverKind, receiverKinds } from "./receivers.ts";

export function* checkSubmissions({ runs, asked, books }: Evidence): Generator<Violation> {
  const rule = "an accepted submission is one run, whatever was sent twice";
  const byLabel = Map.groupBy(runs, ({ label }) => label);
  const ids = new Set(
    runs.flatMap(({ id, batch_id }) => [toWireId("run", id), ...(batch_id ? [toWireId("batch", batch_id)] : [])]),
  );
  for (const [label, made] of byLabel)
    if (made.length > 1) yield { rule, run: made[1]!.id, text: `${label} was made ${made.length} times` };
  for (const { submission, accepted } of books.promised) {
    const { label, keyed, items } = submission;
    if (accepted.size > 1) yield { rule, text: `${label} was accepted as ${[...accepted].join(" and ")}` };
    for (const id of accepted)
      if (!ids.has(id)) yield { rule, text: `${label} was accepted as ${id}, which does not exist` };
    if (accepted.size > 0 || keyed)
      for (const item of items)
        if (!byLabel.has(item.label)) yield { rule, text: `${item.label} of ${label} has no run` };
  }
  for (const text of books.wrong) yield { rule: "no client gets a wrong answer", text };
  for (const label of byLabel.keys()) if (!asked.has(label)) yield { rule, text: `nobody submitted ${label}` };
}

export interface Deliveries {
  violations: Violation[];
  accepted: number;
  refused: number;
  /** Accepted once more than was needed. */
  duplicates: number;
}

export async function checkDeliveries(pool: Pool, { runs, asked, receivers, books }: Evidence): Promise<Deliveries> {
  const violations: Violation[] = [];
  const fail = (text: string, run?: string) =>
    violations.push({ rule: "every owed message arrives, under one id", text, ...(run !== undefined && { run }) });
  for (const text of receivers.wrong) violations.push({ rule: "every webhook is signed", text });

  const { rows: messages } = await pool.query<{ id: string; type: string; fanned_out: boolean }>(
    "SELECT id, type, fanned_out FROM messages ORDER BY id",
  );
  const { rows: open } = await pool.query<{ status: string; url: string; n: number }>(
    "SELECT status, url, count(*) AS n FROM deliveries WHERE status <> 'delivered' GROUP BY 1, 2",
  );
  for (const { status, url, n } of open) fail(`${n} deliveries to ${url} are ${status}`);
  const acceptedBy = (kind: ReceiverKind) => receivers.arrivals[kind].filter(({ accepted }) => accepted);
  for (const kind of ["steady", "slow", "failing"] as const) {
    const ids = new Set(acceptedBy(kind).map(({ id }) => id));
    for (const { id, type, fanned_out } of messages) {
      if (!fanned_out) fail(`the message ${id} (${type}) was not sent on`);
      if (!ids.has(toWireId("event", id))) fail(`the ${kind} endpoint never accepted the message ${id} (${type})`);
    }
  }

  // By what was asked for and how it ended, whatever the outbox says.
  const bySubject = new Map(
    receiverKinds.map((kind) => [
      kind,
      Map.groupBy(receivers.arrivals[kind], ({ subject, type }) => `${subject} ${type}`),
    ]),
  );
  const owed = (kind: ReceiverKind, subject: string, type: string, run?: string) => {
    const arrivals = bySubject.get(kind)?.get(`${subject} ${type}`) ?? [];
    if (!arrivals.some(({ accepted }) => accepted)) fail(`${kind}: no ${type} of ${subject} was accepted`, run);
    const ids = new Set(arrivals.map(({ id }) => id));
    if (ids.size > 1) fail(`${kind}: ${type} of ${subject} came under ${ids.size} ids`, run);
  };
  for (const run of runs) {
    const wanted = asked.get(run.label)?.promised.submission.callback ?? false;
    for (const kind of receiverKinds)
      if (kind !== "callback" || wanted) owed(kind, toWireId("run", run.id), `query.${run.status}`, run.id);
  }
  for (const { submission, accepted } of books.promised)
    for (const id of submission.items.length > 1 ? accepted : [])
      for (const kind of receiverKinds)
        if (kind !== "callback" || submission.callback) owed(kind, id, "batch.completed");

  const all = receiverKinds.flatMap((kind) => receivers.arrivals[kind].map((arrival) => ({ ...arrival, kind })));
  const accepted = all.filter((arrival) => arrival.accepted);
  const once = new Set(accepted.map(({ kind, id }) => `${kind} ${id}`));
  return {
    violations,
    accepted: accepted.length,
    refused: all.length - accepted.length,
    duplicates: accepted.length - once.size,
  };
}
