/**
 * Gives committed audit entries their place and chains them. It runs in every worker process; one of them leads, the one whose session
 * holds the advisory lock, and works over that same session: without the lock there is no connection to write over. A batch is placed,
 * chained and taken out of the inbox by one statement, so a crash anywhere leaves all of it or nothing.
 */
import { setTimeout as delay } from "node:timers/promises";
import { chainHash, noHash } from "@drover/harness";
import { openPool, type Pool, type Queryable, type Transaction } from "@drover/storage";
import type { Logger } from "@drover/telemetry";
import { CheckpointWriter, type Head, type SigningOptions } from "./checkpoints.ts";
import { type EntryRow, entryColumns, placeEntry } from "./read.ts";

export interface SequencerOptions {
  /** To look whether anybody leads. */
  pool: Pool;
  /** Must not be a transaction pooler: the lock belongs to the session. */
  directUrl: string;
  logger: Logger;
  /** Signs checkpoints when given. */
  signing?: SigningOptions;
}

export interface Sequencer {
  /** Waits for the pass under way. */
  close(): Promise<void>;
}

/** The leader's pause between two looks at the inbox: an entry has its place within 100 ms after its commit. */
const idleMs = 50;
/** How often the others look, and so about how long nobody leads after a leader's death. */
const standbyMs = 1000;
const batchEntries = 1000;
/**
 * Most looks begin with the entries of the last seconds; a full one, once in so many ms or a tenth of the time, finds those of longer
 * transactions. What was taken out of the inbox stays in its index as long as the oldest snapshot (a backup's) needs it, and every
 * full look reads it again.
 */
const recentSeconds = 10;
const fullLookMs = 500;
/** A leader that is silent for so long, stopped or cut off, is ended by the server, which frees the lock. */
const silentMs = 10_000;
const firstId = "00000000-0000-0000-0000-000000000000";

export function startSequencer(options: SequencerOptions): Sequencer {
  const { pool, logger } = options;
  const stopping = new AbortController();
  const pause = (ms: number) => delay(ms, undefined, { signal: stopping.signal }).catch(() => {});
  const direct = openPool({
    url: options.directUrl,
    logger,
    max: 1,
    answerTimeoutMs: silentMs,
    applicationName: "drover-audit",
  });
  let failing = false;

  async function run(): Promise<void> {
    while (!stopping.signal.aborted) {
      try {
        // An answer that comes late must not hold up the end.
        if (await unlessStopped(nobodyLeads(pool), stopping.signal)) await lead();
      } catch (error) {
        if (!failing) logger.warn({ err: error }, "audit entries cannot be chained for now");
        failing = true;
      }
      await pause(standbyMs * (0.8 + Math.random() * 0.4));
    }
    await direct.end();
  }

  /** Until it is stopped or something fails. Returns at once when another was quicker. */
  async function lead(): Promise<void> {
    const client = await direct.connect();
    // The next statement says it too; without a listener it would end the process.
    client.on("error", () => {});
    try {
      if (!(await takeLead(client))) return;
      const checkpoints = options.signing && (await CheckpointWriter.open(client, options.signing));
      let fullLookAt = 0;
      // A leader that is told to stop looks once more: nobody may come after it for a while.
      for (let last = false; ; last = stopping.signal.aborted) {
        const startedAt = performance.now();
        const isFull = startedAt >= fullLookAt;
        let after = isFull ? firstId : null;
        do after = await chainBatch(client, after, checkpoints);
        while (after !== null);
        if (isFull) fullLookAt = performance.now() + Math.max(fullLookMs, 10 * (performance.now() - startedAt));
        if (failing) logger.info("audit entries are chained again");
        failing = false;
        if (last) return;
        await pause(idleMs);
      }
    } finally {
      // Ends the session, and with it the lock.
      client.release(true);
    }
  }

  const running = run();
  return {
    async close() {
      stopping.abort();
      await running;
    },
  };
}

/** What the work comes to, or undefined as soon as the signal aborts. */
function unlessStopped<T>(work: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
  return new Promise((resolve, reject) => {
    const stop = () => resolve(undefined);
    signal.addEventListener("abort", stop);
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
  });
}

const lock = "hashtext('drover.audit')";

async function nobodyLeads(db: Queryable): Promise<boolean> {
  const { rows } = await db.query<{ free: boolean }>(`SELECT pg_try_advisory_xact_lock(${lock}) AS free`);
  return rows[0]!.free;
}

async function takeLead(client: Transaction): Promise<boolean> {
  // Rows by key, whatever the statistics say: those of an inbox that fills and empties are always wrong.
  await client.query(
    `SET idle_session_timeout = ${silentMs}; SET statement_timeout = ${silentMs}; SET enable_seqscan = off;
     SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off`,
  );
  const { rows } = await client.query<{ leads: boolean }>(`SELECT pg_try_advisory_lock(${lock}) AS leads`);
  return rows[0]!.leads;
}

type InboxRow = { entry_id: string; is_chained: boolean } & (EntryRow | { id: null });

/**
 * Chains the inbox's next entries after this id (null: those of the last seconds). Returns the last one's id, or null when there are
 * no more. An entry that is chained already only leaves the inbox; one that no longer exists stays there, for `verify` to find.
 */
async function chainBatch(
  client: Transaction,
  after: string | null,
  checkpoints: CheckpointWriter | undefined,
): Promise<string | null> {
  const { rows } = await client.query<InboxRow>({
    name: "audit-inbox",
    text: `SELECT u.entry_id, c.entry_id IS NOT NULL AS is_chained, ${entryColumns}
       FROM (SELECT entry_id FROM audit_unchained
             WHERE entry_id > coalesce($1::uuid, uuidv7_floor(now() - $2 * interval '1 second'))
             ORDER BY entry_id LIMIT $3) u
       LEFT JOIN audit_entries e ON e.id = u.entry_id
       LEFT JOIN audit_chain c ON c.entry_id = u.entry_id
       ORDER BY u.entry_id`,
    values: [after, recentSeconds, batchEntries],
  });
  const entries = rows.filter((row): row is InboxRow & EntryRow => row.id !== null && !row.is_chained);
  const done = rows.filter((row) => row.id !== null).map((row) => row.entry_id);
  if (done.length > 0) {
    const heads = await readHeads(client, [...new Set(entries.map((entry) => entry.tenant))]);
    const placed = entries.map((entry) => place(entry, heads));
    await client.query({
      name: "audit-chain",
      text: `WITH chained AS (
          INSERT INTO audit_chain (tenant, seq, entry_id, hash)
          SELECT * FROM unnest($1::text[], $2::bigint[], $3::uuid[], $4::bytea[])
        )
        DELETE FROM audit_unchained WHERE entry_id = ANY($5::uuid[])`,
      values: [
        placed.map((entry) => entry.tenant),
        placed.map((entry) => entry.seq),
        placed.map((entry) => entry.id),
        placed.map((entry) => entry.hash),
        done,
      ],
    });
    if (checkpoints) for (const [tenant, head] of heads) checkpoints.add({ tenant, ...head }, head.added);
  }
  await checkpoints?.write(client);
  return rows.length < batchEntries ? null : rows.at(-1)!.entry_id;
}

interface GrowingHead extends Omit<Head, "tenant"> {
  added: number;
}

/** Where each tenant's chain ends. Only the leader adds to it. */
async function readHeads(client: Transaction, tenants: string[]): Promise<Map<string, GrowingHead>> {
  const { rows } = await client.query<Head>({
    name: "audit-heads",
    text: `SELECT t.tenant, coalesce(c.seq, 0) AS seq, c.hash FROM unnest($1::text[]) AS t(tenant)
       LEFT JOIN LATERAL (SELECT seq, hash FROM audit_chain c WHERE c.tenant = t.tenant ORDER BY seq DESC LIMIT 1) c ON true`,
    values: [tenants],
  });
  return new Map(rows.map(({ tenant, seq, hash }) => [tenant, { seq, hash: hash ?? noHash, added: 0 }]));
}

/** The entry at the end of its tenant's chain, which it becomes. */
function place(entry: EntryRow, heads: Map<string, GrowingHead>): Head & { id: string } {
  const head = heads.get(entry.tenant)!;
  head.seq++;
  head.added++;
  head.hash = chainHash(head.hash, placeEntry(entry, head.seq));
  return { tenant: entry.tenant, id: entry.id, seq: head.seq, hash: head.hash };
}
