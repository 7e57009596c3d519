/**
 * Signed checkpoints: "at this time this tenant's trail had so many entries, and the last one's hash was this". Kept where whoever can
 * rewrite the trail cannot reach, one makes every later change of what it covers visible, a cut tail too. Ed25519 (RFC 8032).
 */

import {
  createHash,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  sign,
  verify,
} from "node:crypto";
import { canonicalJson } from "@drover/protocol";

export interface CheckpointContent {
  tenant: string;
  /** Of the last entry it covers. */
  seq: number;
  /** Of that entry, in hex. */
  hash: string;
  /** When it was signed: ISO 8601, UTC, milliseconds. */
  at: string;
}

export interface Checkpoint extends CheckpointContent {
  /** `keyId` of the public key that verifies it. */
  key_id: string;
  /** 64 bytes in base64. */
  signature: string;
}

/** What is signed: the UTF-8 bytes of `drover-audit-checkpoint`, a line feed, and `canonicalJson` of `at`, `hash`, `key_id`, `seq`, `tenant`. */
function signedBytes({ at, hash, key_id, seq, tenant }: Omit<Checkpoint, "signature">): Buffer {
  return Buffer.from(`drover-audit-checkpoint\n${canonicalJson({ at, hash, key_id, seq, tenant })}`, "utf8");
}

export function signCheckpoint(content: CheckpointContent, privateKey: KeyObject): Checkpoint {
  const { tenant, seq, hash, at } = content;
  const unsigned = { tenant, seq, hash, at, key_id: keyId(privateKey) };
  return { ...unsigned, signature: sign(null, signedBytes(unsigned), privateKey).toString("base64") };
}

/** Whether one of the keys signed exactly this. */
export function isSigned(checkpoint: Checkpoint, publicKeys: readonly KeyObject[]): boolean {
  const signature = Buffer.from(checkpoint.signature, "base64");
  return publicKeys.some(
    (key) => keyId(key) === checkpoint.key_id && verify(null, signedBytes(checkpoint), key, signature),
  );
}

/** The first 16 hex digits of the SHA-256 of the public key (DER, SubjectPublicKeyInfo); of a private key: of its public one. */
export function keyId(key: KeyObject): string {
  const spki = publicKeyOf(key).export({ type: "spki", format: "der" });
  return createHash("sha256").update(spki).digest("hex").slice(0, 16);
}

export const publicKeyOf = (key: KeyObject): KeyObject => (key.type === "private" ? createPublicKey(key) : key);

/** A new pair: the private key as one line for the environment (base64 of PKCS#8 DER), the public key as PEM. */
export function newSigningKey(): { privateKey: string; publicKey: string; keyId: string } {
  const { privateKey, publicKey } = generateKeyPairSync("ed25519");
  return {
    privateKey: privateKey.export({ type: "pkcs8", format: "der" }).toString("base64"),
    publicKey: publicKey.export({ type: "spki", format: "pem" }).toString(),
    keyId: keyId(publicKey),
  };
}

/** A private key as PKCS#8 PEM, or base64 of that or of the DER. @throws Error that says what it must be, and nothing of the text */
export const readSigningKey = (text: string): KeyObject => readKey(text, "pkcs8", createPrivateKey);

/** A public key as SPKI PEM, or base64 of that or of the DER. @throws Error that says what it must be */
export const readPublicKey = (text: string): KeyObject => readKey(text, "spki", createPublicKey);

const forms = {
  pkcs8: "must be an ed25519 private key: PKCS#8 PEM, or base64 of it",
  spki: "must be an ed25519 public key: PEM, or base64 of it",
};

type Source = { key: Buffer; format: "der"; type: "pkcs8" | "spki" } | { key: Buffer; format: "pem" };

function readKey(
  text: string,
  type: "pkcs8" | "spki",
  read: (source: Source & { type: never }) => KeyObject,
): KeyObject {
  const isPem = (bytes: Buffer) => bytes.includes("-----BEGIN ");
  const given = Buffer.from(text.trim());
  const bytes = isPem(given) ? given : Buffer.from(text, "base64");
  let key: KeyObject | undefined;
  try {
    key = read((isPem(bytes) ? { key: bytes, format: "pem" } : { key: bytes, format: "der", type }) as never);
  } catch {
    // what OpenSSL says of it helps nobody
  }
  if (key?.asymmetricKeyType !== "ed25519") throw new Error(forms[type]);
  return key;
}
