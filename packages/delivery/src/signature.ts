/**
 * Standard Webhooks: https://www.standardwebhooks.com. Symmetric: `whsec_` + base64 of 24 to 64 bytes, signatures `v1`. Asymmetric (ed25519): the private
 * key `whsk_` + base64 of its seed, which nobody is shown, the public one `whpk_` + base64 of 32 bytes, signatures `v1a`.
 */
import { createHmac, createPrivateKey, createPublicKey, type KeyObject, randomBytes, sign } from "node:crypto";

/** How messages to an endpoint are signed. */
export type SignatureKind = "hmac" | "ed25519";

const sharedPrefix = "whsec_";
export const privatePrefix = "whsk_";
const publicPrefix = "whpk_";

/** A new secret of 32 random bytes. */
export function newWebhookSecret(kind: SignatureKind = "hmac"): string {
  return (kind === "hmac" ? sharedPrefix : privatePrefix) + randomBytes(32).toString("base64");
}

/** Whether `text` is a secret that every Standard Webhooks library accepts. */
export function isWebhookSecret(text: string): boolean {
  if (!text.startsWith(sharedPrefix)) return false;
  const key = keyOf(text);
  return key.length >= 24 && key.length <= 64 && sharedPrefix + key.toString("base64") === text;
}

/** What a receiver verifies with: the shared secret itself, or the public key of a private one. */
export function verifiedWith(secret: string): string {
  if (!secret.startsWith(privatePrefix)) return secret;
  const spki = createPublicKey(privateKeyOf(secret)).export({ format: "der", type: "spki" });
  return publicPrefix + spki.subarray(-32).toString("base64");
}

/**
 * The three headers of one request: `id` is the same for every try, the time is this try's. With two secrets (one is being
 * rotated out) there are two signatures, and a receiver that knows either accepts.
 */
export function signedHeaders(
  message: { id: string; body: string },
  secrets: readonly string[],
  now: number = Date.now(),
): Record<"webhook-id" | "webhook-timestamp" | "webhook-signature", string> {
  const timestamp = String(Math.floor(now / 1000));
  const content = `${message.id}.${timestamp}.${message.body}`;
  const signatures = secrets.map((secret) =>
    secret.startsWith(privatePrefix)
      ? `v1a,${sign(null, Buffer.from(content), privateKeyOf(secret)).toString("base64")}`
      : `v1,${createHmac("sha256", keyOf(secret)).update(content).digest("base64")}`,
  );
  return { "webhook-id": message.id, "webhook-timestamp": timestamp, "webhook-signature": signatures.join(" ") };
}

const keyOf = (secret: string): Buffer => Buffer.from(secret.slice(secret.indexOf("_") + 1), "base64");

/** What stands before the seed in an ed25519 key's PKCS #8 (RFC 8410, section 7). */
const pkcs8 = Buffer.from("302e020100300506032b657004220420", "hex");

const privateKeyOf = (secret: string): KeyObject =>
  createPrivateKey({ key: Buffer.concat([pkcs8, keyOf(secret)]), format: "der", type: "pkcs8" });
