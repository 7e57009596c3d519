/** How fast audit entries get their place: writers commit as fast as they can, a worker process chains what they commit. */
import { recordAudit } from "@drover/runs";
import { openPool, transaction } from "@drover/storage";
import { createLogger } from "@drover/telemetry";
import { percentiles } from "./load.ts";
import { count, type Stack, startWorker, until } from "./stack.ts";

const writers = 8;
/** Entries of one transaction, as one batched append of runs has them. */
const together = 20;
const tenants = 20;
const data = { tool: "http_get", call: "call_0123456789", input: "ab".repeat(32), output: "cd".repeat(32), ms: 12 };

export interface AuditRates {
  writtenPerSecond: number;
  chainedPerSecond: number;
  /** Of one entry on an idle system, from its commit until it is seen in the chain, ms. */
  idle: { p50: number; p99: number };
}

export async function auditRates(stack: Stack, entries: number): Promise<AuditRates> {
  const pool = openPool({
    url: stack.databaseUrl,
    logger: createLogger({ name: "bench", level: "fatal" }),
    max: writers,
  });
  const worker = await startWorker(stack, "redis", {});
  const write = (size: number) =>
    transaction(pool, (tx) =>
      recordAudit(
        tx,
        Array.from({ length: size }, (_, index) => ({
          tenant: `tenant-${index % tenants}`,
          actor: "worker",
          action: "tool.called",
          runId: null,
          data,
        })),
      ),
    );
  const chained = () => count(pool, "SELECT count(*) FROM audit_unchained").then((left) => left === 0);
  await write(1);
  await until(chained);

  const waits: number[] = [];
  for (let index = 0; index < 100; index++) {
    await write(1);
    const at = performance.now();
    await until(chained, 1);
    waits.push(performance.now() - at);
  }

  let left = entries;
  const startedAt = performance.now();
  await Promise.all(
    Array.from({ length: writers }, async () => {
      for (left -= together; left >= 0; left -= together) await write(together);
    }),
  );
  const written = performance.now();
  await until(chained, 5);
  const ended = performance.now();
  await worker.stop();
  await pool.end();
  return {
    writtenPerSecond: (entries / (written - startedAt)) * 1000,
    chainedPerSecond: (entries / (ended - startedAt)) * 1000,
    idle: percentiles(waits),
  };
}
