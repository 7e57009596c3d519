/** The audit trail as the door writes it. What it says of arguments and results are their hashes, never their contents. */
import { hashJson } from "@drover/protocol";

/** What is written down, by whoever does it, together with what it tells about. */
export interface AuditEntry {
  /** Who did it: an API key's id (`key_…`), `worker`, `link`, `system`, or the name a library user gave. */
  actor: string;
  /** What was done, such as `tool.called` or `approval.approved`. */
  action: string;
  data: Record<string, unknown>;
}

/** SHA-256 of the canonical JSON, in hex: how contents are named in the trail. */
export const contentHash = (content: unknown): string => hashJson(content ?? null).toString("hex");
