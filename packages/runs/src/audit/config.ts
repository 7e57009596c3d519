import { readSigningKey } from "@drover/harness";
import { z } from "zod";
import type { SigningOptions } from "./checkpoints.ts";

/** Who vouches for the audit trail, and how often. */
export const auditConfig = z.object({
  DROVER_AUDIT_KEY: z
    .string()
    .superRefine((text, context) => {
      try {
        readSigningKey(text);
      } catch (error) {
        context.addIssue((error as Error).message);
      }
    })
    .optional()
    .describe("ed25519 private key that signs checkpoints of the audit trail; `drover audit keygen` makes one"),
  DROVER_AUDIT_CHECKPOINT_ENTRIES: z.coerce
    .number()
    .int()
    .min(1)
    .default(1000)
    .describe("with a key: a checkpoint after so many entries of a tenant"),
  DROVER_AUDIT_CHECKPOINT_SECONDS: z.coerce
    .number()
    .min(0.1)
    .max(86_400)
    .default(60)
    .describe("with a key: no entry stays without a checkpoint for longer"),
});
export type AuditConfig = z.infer<typeof auditConfig>;

/** What the sequencer signs with; undefined: there is no key. */
export function signingOf(config: AuditConfig): SigningOptions | undefined {
  if (config.DROVER_AUDIT_KEY === undefined) return undefined;
  return {
    key: readSigningKey(config.DROVER_AUDIT_KEY),
    everyEntries: config.DROVER_AUDIT_CHECKPOINT_ENTRIES,
    withinMs: config.DROVER_AUDIT_CHECKPOINT_SECONDS * 1000,
  };
}
