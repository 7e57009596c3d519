/** The audit trail as those see it who may read it: exactly what is hashed and exported, so that it can be verified anywhere. */
import { z } from "zod";
import { page, timestamp, wireId } from "./fields.ts";

export const auditEntry = z
  .object({
    tenant: z.string(),
    seq: z.int().describe("its place, from 1 without a gap"),
    id: z.string().meta({ format: "uuid" }),
    at: timestamp,
    actor: z.string().describe("who did it: an API key (`key_…`), `worker`, `link`, `cli`, `system`"),
    action: z.string(),
    run_id: wireId("run").nullable().describe("`task_id` of the query it is about"),
    data: z.record(z.string(), z.unknown()).describe("hashes of arguments and results, never their contents"),
    hash: z
      .string()
      .regex(/^[0-9a-f]{64}$/)
      .describe("SHA-256 over the hash before and this entry; see docs/audit.md"),
  })
  .meta({
    id: "AuditEntry",
    examples: [
      {
        tenant: "default",
        seq: 17,
        id: "01936f3e-7c5a-7d41-8a3e-5b0f9c2d1e4a",
        at: "2026-11-21T09:30:00.000Z",
        actor: "worker",
        action: "tool.called",
        run_id: "run_01936f3e7c5a7d418a3e5b0f9c2d1e4a",
        data: { tool: "http_get", input: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" },
        hash: "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
      },
    ],
  });

/** A signed checkpoint, as `drover audit checkpoints --json` prints it. */
export const auditCheckpoint = z.object({
  tenant: z.string(),
  seq: z.int().min(1),
  hash: z.string().regex(/^[0-9a-f]{64}$/),
  at: z.string(),
  key_id: z.string(),
  signature: z.string(),
});

export const auditPage = page(auditEntry).meta({ id: "AuditPage" });
