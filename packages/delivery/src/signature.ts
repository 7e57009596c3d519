/** Standard Webhooks, symmetric: https://www.standardwebhooks.com. Secrets are `whsec_` + base64 of 24 to 64 bytes. */
import { createHmac, randomBytes } from "node:crypto";

const prefix = "whsec_";

/** A new secret of 32 random bytes. */
export function newWebhookSecret(): string {
  return prefix + randomBytes(32).toString("base64");
}

/** Whether `text` is a secret that every Standard Webhooks library accepts. */
export function isWebhookSecret(text: string): boolean {
  if (!text.startsWith(prefix)) return false;
  const key = keyOf(text);
  return key.length >= 24 && key.length <= 64 && prefix + key.toString("base64") === text;
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
  const signatures = secrets.map((secret) => {
    const hmac = createHmac("sha256", keyOf(secret)).update(`${message.id}.${timestamp}.${message.body}`);
    return `v1,${hmac.digest("base64")}`;
  });
  return { "webhook-id": message.id, "webhook-timestamp": timestamp, "webhook-signature": signatures.join(" ") };
}

function keyOf(secret: string): Buffer {
  return Buffer.from(secret.slice(prefix.length), "base64");
}
