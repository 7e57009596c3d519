/**
 * Signed links for people without a key: whoever holds one may decide the question it names, until that expires. A question is decided
 * once, and so is its link good for one decision. Only the tenant's `link_secret` can make one, and the same one every time.
 */
import { createHmac, timingSafeEqual } from "node:crypto";
import { fromWireId, toWireId } from "@drover/protocol";
import type { Queryable } from "@drover/storage";
import { z } from "zod";
import { type ApprovalRecord, readApproval } from "./approvals.ts";

/** Where people reach this service, and whether they may decide about what is their own. */
export const linksConfig = z.object({
  DROVER_APPROVE_OWN: z
    .enum(["true", "false"], { error: "must be true or false" })
    .default("true")
    .transform((text) => text === "true")
    .describe("whether a key may decide about runs that it submitted itself"),
  DROVER_PUBLIC_URL: z
    .url({ protocol: /^https?$/, error: "must be an http:// or https:// URL" })
    .transform((url) => url.replace(/\/+$/, ""))
    .optional()
    .describe(
      "http(s) URL of this service as people reach it: what links to approvals begin with (`dev`: its own address)",
    ),
});
export type LinksConfig = z.infer<typeof linksConfig>;

/** Path of the page that a link opens, without its token. */
const linkPath = "/approvals/link/";
const idBytes = 16;

type Asked = Pick<ApprovalRecord, "id" | "expiresAt">;

/** 16 bytes that name the question, 32 that sign it and its expiry: 64 characters of base64url. */
function tokenOf(secret: string, { id, expiresAt }: Asked): string {
  const named = Buffer.from(id.replaceAll("-", ""), "hex");
  const signed = createHmac("sha256", secret).update(`approval ${id} ${expiresAt.getTime()}`).digest();
  return Buffer.concat([named, signed]).toString("base64url");
}

/** Makes links to questions of one tenant. @throws Error when there is no such tenant */
export async function linkMaker(db: Queryable, tenant: string, publicUrl: string): Promise<(asked: Asked) => string> {
  const { rows } = await db.query<{ link_secret: string }>("SELECT link_secret FROM tenants WHERE id = $1", [tenant]);
  const { link_secret: secret } = rows[0] ?? {};
  if (secret === undefined) throw new Error(`there is no tenant ${tenant}`);
  return (asked) => publicUrl + linkPath + tokenOf(secret, asked);
}

export interface LinkedApproval {
  approval: ApprovalRecord;
  /** The database's clock, to tell how long there is to decide. */
  now: Date;
}

/** The question a token opens, decided or not; null when it opens none, or its time is up. */
export async function readLinked(db: Queryable, token: string): Promise<LinkedApproval | null> {
  if (!/^[A-Za-z0-9_-]{64}$/.test(token)) return null;
  const id = fromWireId("approval", toWireId("approval", Buffer.from(token, "base64url").toString("hex", 0, idBytes)))!;
  // Like a key, a token says by itself whose it is: nothing of the row is used before its signature holds.
  const { rows } = await db.query<{ tenant: string; link_secret: string; expires_at: Date; now: Date }>(
    `SELECT a.tenant, t.link_secret, a.expires_at, now() AS now
     FROM approvals a JOIN tenants t ON t.id = a.tenant WHERE a.id = $1 AND a.expires_at > now()`,
    [id],
  );
  const row = rows[0];
  if (!row) return null;
  const { tenant, link_secret, expires_at: expiresAt, now } = row;
  if (!timingSafeEqual(Buffer.from(tokenOf(link_secret, { id, expiresAt })), Buffer.from(token))) return null;
  const approval = await readApproval(db, tenant, id);
  return approval && { approval, now };
}
