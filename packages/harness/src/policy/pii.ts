/** The policy that finds personal data and, by default, replaces it. */
import { z } from "zod";
import { policyName, readOptions, stages } from "./options.ts";
import { personalData, personalKinds } from "./personal-data.ts";
import { definePolicy, type Policy } from "./policy.ts";
import { screen } from "./screen.ts";

const schema = z.strictObject({
  name: policyName.default("pii"),
  kinds: z
    .array(z.enum(personalKinds))
    .min(1, "must name at least one kind")
    .default([...personalKinds]),
  action: z.enum(["redact", "flag", "ask", "block"]).default("redact"),
  stages: stages.default(["input", "result", "output"]),
});

export type PiiOptions = z.input<typeof schema>;

/**
 * Finds e-mail addresses, payment cards (Luhn), IBANs (country, length, mod 97), US social security numbers, IP addresses, phone
 * numbers and the shapes of API keys; by default it puts `[email]`, `[card]` and so on in their place, in values and in keys. Not
 * asked about a tool's arguments by default: what the model may know, it may use, and a call with `[email]` for an address is a
 * broken call. Throws `ConfigError`.
 *
 * It knows no names, postal addresses, dates of birth, other countries' identity numbers, phone numbers without a country code,
 * trunk zero or North American grouping (unless a word like "phone" stands before them), and nothing that was spelled out or
 * encoded. One bare number of 13 to 19 digits in ten has a correct check digit: a long id may be taken for a card.
 */
export function pii(options: PiiOptions = {}): Policy {
  const { name, kinds, action, stages } = readOptions(schema, options, "pii(options)");
  const finders = personalKinds.filter((kind) => kinds.includes(kind)).flatMap((kind) => personalData[kind]);
  return definePolicy({ name, stages, check: (value) => screen(value, finders, action) });
}
