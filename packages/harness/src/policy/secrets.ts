/**
 * The policy that keeps secrets from going on: into a tool, into what the model reads, into what it says. Those it was told of, and those it knows by
 * their shape. Arguments that a model wrote stand in the log as it wrote them; the tool gets the redacted ones.
 */
import { z } from "zod";
import { literalSearch } from "./literals.ts";
import { policyName, readOptions, stages } from "./options.ts";
import { definePolicy, type Policy, policyStages } from "./policy.ts";
import { screen } from "./screen.ts";
import { tokenFinders } from "./tokens.ts";

const mark = "[secret]";
/** Shorter ones would be found in the middle of anything. */
const shortest = 8;
const secretName = /(?:key|token|secret|password|passwd|passphrase|credential|dsn)s?(?:_(?:id|base64|b64|[0-9]+))?$/i;

const schema = z.strictObject({
  name: policyName.default("secrets"),
  known: z.array(z.string()).default([]),
  // `process.env` is no plain object.
  env: z
    .custom<Record<string, string | undefined>>((env) => typeof env === "object" && env !== null, "must be an object")
    .transform((env) => ({ ...env }))
    .pipe(z.record(z.string(), z.string().optional()))
    .default({}),
  envNames: z.instanceof(RegExp, { error: "must be a RegExp that is tried on the names of env" }).default(secretName),
  action: z.enum(["redact", "flag", "ask", "block"]).default("redact"),
  stages: stages.default([...policyStages]),
});

export type SecretsOptions = z.input<typeof schema>;

/**
 * Finds `known` secrets, those of `env` whose name `envNames` matches (default: names ending in KEY, TOKEN, SECRET, PASSWORD and the
 * like), the passwords of URLs in `env`, and tokens by their shape; by default it replaces them by `[secret]` at every stage. A known
 * secret is also found in base64 (alone or inside a longer text, as in `Authorization: Basic`), percent-encoded, and escaped in JSON.
 * Secrets shorter than 8 characters are left out. Throws `ConfigError`.
 *
 * It does not find a secret that was split, spelled, reversed, encrypted or encoded in any other way, nor a password that neither
 * was told to it nor stands in a URL.
 */
export function secrets(options: SecretsOptions = {}): Policy {
  const { name, known, env, envNames, action, stages } = readOptions(schema, options, "secrets(options)");
  const find = literalSearch([...new Set([...known, ...fromEnvironment(env, envNames)])].flatMap(forms));
  const finders = [{ one: "known secret", many: "known secrets", mark, find }, ...tokenFinders(mark)];
  return definePolicy({ name, stages, check: (value) => screen(value, finders, action) });
}

function fromEnvironment(env: Record<string, string | undefined>, names: RegExp): string[] {
  return Object.entries(env).flatMap(([name, value]) => {
    if (value === undefined) return [];
    // `search` does not move the expression on, as `test` would with the flag `g`.
    return [...(name.search(names) >= 0 ? [value] : []), ...passwordOf(value)];
  });
}

function passwordOf(url: string): string[] {
  const password = url.includes("://") ? (URL.parse(url)?.password ?? "") : "";
  try {
    return [password, decodeURIComponent(password)];
  } catch {
    return [password];
  }
}

/** How a secret may be written. None if it is too short, or is made of the mark: that would be found in what is already redacted. */
function forms(secret: string): string[] {
  if (secret.length < shortest || secret.includes(mark)) return [];
  const percent = encodeURIComponent(secret.toWellFormed());
  return [
    secret,
    percent,
    percent.replace(/%[0-9A-F]{2}/g, (octet) => octet.toLowerCase()),
    percent.replaceAll("%20", "+"),
    JSON.stringify(secret).slice(1, -1),
    ...insideBase64(secret),
  ];
}

/**
 * The characters of base64 (RFC 4648, both alphabets) that are the same whatever stands before and behind the secret: one text for
 * each of its three places in a group of three bytes. A secret of 8 bytes leaves 10 characters.
 */
function insideBase64(secret: string): string[] {
  const bytes = Buffer.from(secret, "utf8");
  return [0, 1, 2].flatMap((before) => {
    const encoded = Buffer.concat([Buffer.alloc(before), bytes]).toString("base64");
    const own = encoded.slice(Math.ceil((before * 8) / 6), Math.floor(((before + bytes.length) * 8) / 6));
    return [own, own.replaceAll("+", "-").replaceAll("/", "_")];
  });
}
